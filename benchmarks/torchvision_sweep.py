"""Quantizes torchvision's models, scripted and traced, and compares int8 with float.

    python benchmarks/torchvision_sweep.py
    python benchmarks/torchvision_sweep.py resnet18 swin_t --way script --json FILE

By default: every classification model of up to 30 million parameters, two for segmentation, two
for detection and two for video. Columns:

- int8 MACs: which part of the multiply-accumulates of convolutions and linear layers is int8,
  counted from the shapes in one run of the float model.
- SQNR: of the int8 model's outputs against the float model's.
- emulated SQNR: the same for `convert_jit(debug=True)`, which rounds alike and computes in float.
  The difference of the two is what int8 kernels cost beyond rounding.
- reload: whether the saved and loaded model gives the same bits.

Weights are random. A few batches in training mode give BatchNorm statistics that are not trivial.
Detection models are compared by their scores, sorted, since one step of rounding may swap boxes.
The exit status is 1 if a model fails, if one is below 20 dB where emulation is not, or if a
classification model has less than 99 % of its multiply-accumulates in int8.
"""

import argparse
import io
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from tabulate import tabulate
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parent.parent))  # runs from any folder

import jitquant
from benchmarks.macs import macs_by_module
from benchmarks.report import first_line, number, parse_with_models, write_json
from tutorials.measure import silence_torch_deprecations, sqnr_db
from tutorials.timing import timed

WAYS = ("script", "trace")
WEIGHTED = ("aten::conv2d", "aten::conv3d", "aten::linear")
MOST_PARAMETERS = 30e6
LEAST_SQNR_DB = 20.0
LEAST_INT8_MACS = 0.99

# Without pretrained weights; aux heads stay, to script what users script.
OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
    # All boxes: what a threshold or a top-k keeps would change with the last bit of a score.
    "ssdlite320_mobilenet_v3_large": {"score_thresh": 0.0},
    "fasterrcnn_mobilenet_v3_large_320_fpn": {"box_score_thresh": 0.0},
}
OTHER_MODELS = {
    "deeplabv3_mobilenet_v3_large": "segmentation",
    "lraspp_mobilenet_v3_large": "segmentation",
    "ssdlite320_mobilenet_v3_large": "detection",
    "fasterrcnn_mobilenet_v3_large_320_fpn": "detection",
    "r3d_18": "video",
    "mc3_18": "video",
}
SMALLEST_SIZES = {"inception_v3": 96}  # in pixels


@dataclass
class Result:
    """What was measured of one model; None where it could not be.

    Attributes:
        model: torchvision's name.
        task: "classification", "segmentation", "detection" or "video".
        way: "script" or "trace".
        parameters: how many.
        status: "ok", or the first line of the error.
        int8_macs: part of the multiply-accumulates of convolutions and linear layers, 0 to 1.
        sqnr_db: of int8 outputs against float.
        emulated_sqnr_db: of the debug model's outputs against float.
        reload_equal: the loaded file gives the same bits.
        seconds: for all of this; None after an error.
        float_layers: why convolutions and linear layers stay float, with their number.
    """

    model: str
    task: str
    way: str
    parameters: int = 0
    status: str = "ok"
    int8_macs: float | None = None
    sqnr_db: float | None = None
    emulated_sqnr_db: float | None = None
    reload_equal: bool | None = None
    seconds: float | None = None
    float_layers: dict[str, int] = field(default_factory=dict)


def main() -> None:
    arguments = parse_arguments()
    silence_torch_deprecations()
    torch.set_num_threads(arguments.threads)
    results = []
    for name in arguments.models or default_models():
        for way in ways_of(name) if arguments.way is None else [arguments.way]:
            results.append(measure(name, way, arguments.size))
            print(f"{name} {way}: {results[-1].status}", file=sys.stderr, flush=True)
    print(table(results))
    complaints = [text for result in results for text in shortcomings(result)]
    print("\n".join(["", *complaints]) if complaints else "\nall as required")
    if arguments.json:
        write_json(arguments.json, results)
    sys.exit(1 if complaints else 0)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="names; default: all")
    parser.add_argument("--way", choices=WAYS, help="default: both")
    parser.add_argument("--size", type=int, default=64, help="of images, in pixels (default: 64)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    return parse_with_models(parser)


def default_models() -> list[str]:
    return [*classification_models(), *OTHER_MODELS]


def classification_models() -> list[str]:
    """Names of those with few enough parameters, as torchvision's own tables say."""
    names = torchvision.models.list_models(module=torchvision.models)
    return [name for name in names if parameters_in_table(name) <= MOST_PARAMETERS]


def parameters_in_table(name: str) -> int:
    weights = list(torchvision.models.get_model_weights(name))
    return int(weights[0].meta["num_params"])


def task_of(name: str) -> str:
    return OTHER_MODELS.get(name, "classification")


def ways_of(name: str) -> tuple[str, ...]:
    """A traced detection model would keep the boxes of the image that it was traced with."""
    return ("script",) if task_of(name) == "detection" else WAYS


def measure(
    name: str, way: str, size: int, qconfig: jitquant.QConfig | None = None, batches: int = 4
) -> Result:
    """Make, quantize, save, load and compare one model.

    Args:
        name: torchvision's name.
        way: "script" or "trace".
        size: height and width of the images, in pixels.
        qconfig: by default `get_default_qconfig()`.
        batches: of two images each, to calibrate with.
    """
    result = Result(name, task_of(name), way)
    size = max(size, SMALLEST_SIZES.get(name, 0))
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            chosen = qconfig or jitquant.get_default_qconfig()
            _, ms = timed(lambda: compare(result, size, chosen, batches))
            result.seconds = ms / 1e3
    except Exception as error:
        result.status = first_line(error)
    return result


def compare(result: Result, size: int, qconfig: jitquant.QConfig, batches: int) -> None:
    model = float_model(result.model, size)
    result.parameters = sum(parameter.numel() for parameter in model.parameters())
    sample = inputs(result.task, size)
    script = torch.jit.script(model) if result.way == "script" else trace(model, sample)
    prepared = jitquant.prepare_jit(script, {"": qconfig})
    for _ in range(batches):
        prepared(inputs(result.task, size))
    int8 = jitquant.convert_jit(prepared)
    debug = jitquant.convert_jit(prepared, debug=True)

    expected = numbers(script(sample), result.task)
    actual = int8(sample)
    result.sqnr_db = sqnr_db(expected, numbers(actual, result.task))
    result.emulated_sqnr_db = sqnr_db(expected, numbers(debug(sample), result.task))
    result.reload_equal = same(actual, reload(int8)(sample))
    coverage = jitquant.coverage(int8)
    result.int8_macs = int8_part(model, sample, coverage.ops)
    for op in coverage.float:
        if op.op in WEIGHTED:
            text = f"{op.op}: {op.reason}"
            result.float_layers[text] = result.float_layers.get(text, 0) + 1


def float_model(name: str, size: int) -> nn.Module:
    """The model in eval mode, with parameters and statistics that are not trivial."""
    options = {"weights": None, **OPTIONS.get(name, {})}
    if task_of(name) in ("segmentation", "detection"):
        options["weights_backbone"] = None
    model: Any = torchvision.models.get_model(name, **options)
    for path, parameter in model.named_parameters():
        if path.endswith("layer_scale"):  # starts at 1e-6, which switches the layer off
            parameter.fill_(0.5)
    aux_logits = getattr(model, "AuxLogits", None)  # of inception_v3: needs images of 299 pixels
    if aux_logits is not None:
        model.AuxLogits = None
    trunk = model.train().backbone if task_of(name) == "detection" else model.train()
    for _ in range(4):
        trunk(torch.randn(images_shape(task_of(name), 4, size)))
    if aux_logits is not None:
        model.AuxLogits = aux_logits
    result: nn.Module = model.eval()
    return result


def images_shape(task: str, count: int, size: int) -> tuple[int, ...]:
    return (count, 3, 4, size, size) if task == "video" else (count, 3, size, size)


def inputs(task: str, size: int) -> Any:
    """What forward takes: images as one tensor, or for detection as a list."""
    if task == "detection":
        return [torch.rand(3, size, size) for _ in range(2)]
    return torch.randn(images_shape(task, 2, size))


def trace(model: nn.Module, sample: Tensor) -> torch.jit.ScriptModule:
    traced: torch.jit.ScriptModule
    traced = torch.jit.trace(model, sample, check_trace=False, strict=False)
    return traced


def tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for key in sorted(output):
            yield from tensors(output[key])
    elif isinstance(output, (list, tuple)):
        for element in output:
            yield from tensors(element)


def numbers(output: Any, task: str) -> Tensor:
    """All of an output in one dimension; of a detection model, the scores of each image sorted."""
    if task == "detection":
        _, detections = output  # scripted detection models return losses too
        return torch.cat([image["scores"].sort().values for image in detections])
    return torch.cat([tensor.flatten() for tensor in tensors(output)])


def same(a: Any, b: Any) -> bool:
    pairs = zip(tensors(a), tensors(b), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def reload(model: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    file = io.BytesIO()
    torch.jit.save(model, file)
    file.seek(0)
    loaded: torch.jit.ScriptModule = torch.jit.load(file)
    return loaded


def int8_part(model: nn.Module, sample: Any, ops: Iterable[jitquant.OpCoverage]) -> float:
    """Which part of the multiply-accumulates of `model` is int8, by its coverage; 0 to 1."""
    layers: dict[str, list[bool]] = {}
    for op in ops:
        if op.op in WEIGHTED:
            layers.setdefault(op.module, []).append(op.int8)
    counted = macs_by_module(model, sample)
    int8 = 0.0
    for path, macs in counted.items():
        flags = layers.get(path, [False])
        if len(flags) == len(macs):
            int8 += sum(count for count, flag in zip(macs, flags, strict=True) if flag)
        else:  # a loop, or branches that did not run
            int8 += sum(macs) * sum(flags) / len(flags)
    return int8 / sum(sum(macs) for macs in counted.values())


def shortcomings(result: Result) -> list[str]:
    """What of the requirements a result does not meet, in words."""
    name = f"{result.model} ({result.way})"
    if result.status != "ok":
        return [f"{name}: {result.status}"]
    assert result.sqnr_db is not None and result.emulated_sqnr_db is not None
    assert result.int8_macs is not None
    found = []
    if not result.reload_equal:
        found.append(f"{name}: the loaded file gives other numbers")
    if result.sqnr_db < LEAST_SQNR_DB <= result.emulated_sqnr_db:
        found.append(f"{name}: {result.sqnr_db:.1f} dB, emulated {result.emulated_sqnr_db:.1f} dB")
    if result.task == "classification" and result.int8_macs < LEAST_INT8_MACS:
        reasons = "; ".join(result.float_layers)
        found.append(f"{name}: {result.int8_macs:.2%} of multiply-accumulates int8 ({reasons})")
    return found


def table(results: list[Result]) -> str:
    rows = [
        (
            result.model,
            result.way,
            f"{result.parameters / 1e6:.1f}",
            number(result.int8_macs, ".1%"),
            number(result.sqnr_db, ".1f"),
            number(result.emulated_sqnr_db, ".1f"),
            {True: "equal", False: "differs", None: "-"}[result.reload_equal],
            number(result.seconds, ".0f"),
            result.status[:60],
        )
        for result in results
    ]
    headers = (
        *("model", "way", "parameters (M)", "int8 MACs", "SQNR (dB)", "emulated SQNR (dB)"),
        *("reload", "time (s)", "status"),
    )
    columns = ("left", "left", *["right"] * 4, "left", "right", "left")
    return str(tabulate(rows, headers=headers, colalign=columns, disable_numparse=True))


if __name__ == "__main__":
    main()
