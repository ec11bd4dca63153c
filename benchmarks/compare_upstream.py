"""Float TorchScript, torch.ao's TorchScript quantizer and jitquant, on torchvision's models.

    python benchmarks/compare_upstream.py
    python benchmarks/compare_upstream.py resnet18 mobilenet_v2 --threads 2 --json results.json

For each model: latency of one image (median; the variants take turns), size of the saved file, SQNR
of the outputs against the float model, seconds for prepare and convert together, and seconds for
calibration. All but the seconds are measured with the file loaded again.

The models are traced. Their weights are random; a few batches in training mode give BatchNorm
statistics that are not trivial. "float, frozen" is `torch.jit.freeze`, which folds BatchNorm: the
part of a speed-up that needs no int8. Where a quantizer fails, the first line of its error stands
in the table.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from tabulate import tabulate

sys.path.append(str(Path(__file__).resolve().parent.parent))  # runs from any folder

import jitquant
from benchmarks.report import (
    first_line,
    number,
    parse_with_models,
    print_environment,
    silence_warnings,
    write_json,
)
from tutorials.measure import file_mb, run_all, sqnr_db
from tutorials.timing import latency_ms, timed

MODELS = ("resnet18", "mobilenet_v2", "mobilenet_v3_large", "googlenet", "resnet50")
OPTIONS = {"googlenet": {"aux_logits": False, "init_weights": True}}
CALIBRATION_IMAGES = 16
EVALUATION_IMAGES = 8

Images = list[torch.Tensor]


@dataclass
class Result:
    """What was measured of one variant of one model; None where it could not be made.

    Attributes:
        latency_ms: median time for one image of (1, 3, 224, 224).
        size_mb: size of the saved file, in MB (10^6 bytes).
        sqnr_db: of the outputs, against the float model's.
        convert_s: seconds to prepare and convert.
        calibrate_s: seconds to run the prepared model on 16 images.
        error: the first line of the error, "" if there was none.
    """

    model: str
    variant: str
    latency_ms: float | None = None
    size_mb: float | None = None
    sqnr_db: float | None = None
    convert_s: float | None = None
    calibrate_s: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Quantizer:
    """The two graph steps of a quantizer; calibration lies between them."""

    prepare: Callable[[torch.jit.ScriptModule], torch.jit.ScriptModule]
    convert: Callable[[torch.jit.ScriptModule], torch.jit.ScriptModule]


def main() -> None:
    arguments = parse_arguments()
    silence_warnings()
    torch.set_num_threads(arguments.threads)
    results = []
    for name in arguments.models:
        results += compare(name, arguments.runs)
        print(f"{name} done", file=sys.stderr)
    print(table(results))
    print_environment()
    if arguments.json:
        write_json(arguments.json, results)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=MODELS, help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default: 1)")
    parser.add_argument("--runs", type=int, default=30, help="runs of each variant (default: 30)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    return parse_with_models(parser)


def compare(name: str, runs: int) -> list[Result]:
    """Make, save, load and measure all variants of one model."""
    torch.manual_seed(0)
    float_model = make_float_model(name)
    calibration, evaluation = random_images(CALIBRATION_IMAGES), random_images(EVALUATION_IMAGES)
    results = [Result(name, "float"), Result(name, "float, frozen")]
    made = {"float": float_model, "float, frozen": torch.jit.freeze(float_model)}
    for variant, quantizer in {"torch.ao": torch_ao(), "jitquant": ours()}.items():
        result = Result(name, variant)
        model = quantize(quantizer, float_model, calibration, result)
        results.append(result)
        if model is not None:
            made[variant] = model

    loaded = {}
    for result in results:
        if result.variant in made:
            model = save_and_load(made[result.variant], result)
            if measure_outputs(model, float_model, evaluation, result):
                loaded[result.variant] = model
    latency = latency_ms(loaded, evaluation[0], runs=runs)
    for result in results:
        result.latency_ms = latency.get(result.variant)
    return results


def make_float_model(name: str) -> torch.jit.ScriptModule:
    model = torchvision.models.get_model(name, weights=None, **OPTIONS.get(name, {}))
    with torch.no_grad():
        for _ in range(4):
            model.train()(torch.randn(8, 3, 224, 224))
        traced: torch.jit.ScriptModule = torch.jit.trace(model.eval(), torch.randn(1, 3, 224, 224))
    return traced


def random_images(count: int) -> Images:
    return [torch.randn(1, 3, 224, 224) for _ in range(count)]


def ours() -> Quantizer:
    qconfig_dict = {"": jitquant.get_default_qconfig("x86")}
    return Quantizer(
        lambda model: jitquant.prepare_jit(model, qconfig_dict),
        lambda model: jitquant.convert_jit(model),
    )


def torch_ao() -> Quantizer:
    from torch.ao.quantization import get_default_qconfig
    from torch.ao.quantization.quantize_jit import convert_jit, prepare_jit

    qconfig_dict = {"": get_default_qconfig("x86")}
    return Quantizer(
        lambda model: prepare_jit(model, qconfig_dict), lambda model: convert_jit(model)
    )


def quantize(
    quantizer: Quantizer, model: torch.jit.ScriptModule, images: Images, result: Result
) -> torch.jit.ScriptModule | None:
    """The int8 model; None if there is an error, which `result` then holds."""
    try:
        prepared, prepare_ms = timed(lambda: quantizer.prepare(model))
        _, calibrate_ms = timed(lambda: run_all(prepared, images))
        converted, convert_ms = timed(lambda: quantizer.convert(prepared))
        result.calibrate_s = calibrate_ms / 1e3
        result.convert_s = (prepare_ms + convert_ms) / 1e3
    except Exception as error:
        result.error = first_line(error)
        return None
    return converted


def save_and_load(model: torch.jit.ScriptModule, result: Result) -> torch.jit.ScriptModule:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt")
        torch.jit.save(model, path)
        result.size_mb = file_mb(path)
        loaded: torch.jit.ScriptModule = torch.jit.load(path)
        return loaded


def measure_outputs(
    model: torch.jit.ScriptModule,
    reference: torch.jit.ScriptModule,
    images: Images,
    result: Result,
) -> bool:
    """Note the SQNR, or the error and return False."""
    try:
        outputs = run_all(model, images)
    except Exception as error:
        result.error = first_line(error)
        return False
    result.sqnr_db = sqnr_db(run_all(reference, images), outputs)
    return True


def table(results: list[Result]) -> str:
    rows = [
        (
            result.model,
            result.variant,
            number(result.latency_ms, ".1f"),
            number(result.size_mb, ".2f"),
            number(result.sqnr_db, ".1f"),
            number(result.convert_s, ".2f"),
            number(result.calibrate_s, ".2f"),
            result.error[:60],
        )
        for result in results
    ]
    headers = (
        *("model", "variant", "latency (ms)", "size (MB)", "SQNR (dB)"),
        *("prepare + convert (s)", f"calibrate, {CALIBRATION_IMAGES} images (s)", "error"),
    )
    columns = ("left", "left", *["right"] * 5, "left")
    return str(tabulate(rows, headers=headers, colalign=columns, disable_numparse=True))


if __name__ == "__main__":
    main()
