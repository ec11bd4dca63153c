"""What calibration costs over the float model: time of a forward pass, and peak memory.

    python benchmarks/calibration_cost.py
    python benchmarks/calibration_cost.py resnet18 mobilenet_v2 --runs 100 --json results.json

For each model, scripted and traced: the median time of the float TorchScript model on one image,
and how many times as long the models take that jitquant and torch.ao prepare with their default
(histogram) qconfig, as the median over the turns. The variants take turns on the same images, a new
one in each turn, after all of them saw 16: by then few images hold new extremes.

Peak memory is that of a process that loads the float model and runs it on 4 images, and that of
one that also prepares it and runs the prepared model; both include Python and torch. Where
torch.ao fails, the first line of its error stands in the table.

The weights are random, with BatchNorm statistics of a few batches.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import torch
import torchvision
from tabulate import tabulate

sys.path.append(str(Path(__file__).resolve().parent.parent))  # runs from any folder

import jitquant
from benchmarks.quantizers import Quantizer, ours, torch_ao
from benchmarks.report import (
    first_line,
    number,
    parse_with_models,
    print_environment,
    silence_warnings,
    write_json,
)
from benchmarks.subjects import OPTIONS
from tutorials.timing import Times, take_turns

MODELS = ("resnet18", "mobilenet_v2", "mobilenet_v3_large", "googlenet", "resnet50")
IMAGES = 16
IMAGES_FOR_MEMORY = 4

PEAK = """
import sys
from pathlib import Path
import torch
import jitquant
torch.set_num_threads(1)
model = torch.jit.load(sys.argv[1])
run = model
if sys.argv[2] == "calibrate":
    run = jitquant.prepare_jit(model, {"": jitquant.get_default_qconfig()})
with torch.no_grad():
    for seed in range(int(sys.argv[3])):
        run(torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(seed)))
print(*[line.split()[1] for line in Path("/proc/self/status").open() if line.startswith("VmHWM")])
"""


@dataclass
class Result:
    """What was measured of one model, scripted or traced.

    Attributes:
        float_ms: median time of the float model for one image of (1, 3, 224, 224).
        ratio: time of the model that jitquant prepared over that of the float model.
        torch_ao_ratio: the same for torch.ao, None where it fails.
        float_mb: peak memory of the float run, in MiB.
        memory_ratio: peak memory of the calibration over that of the float run.
        torch_ao_error: the first line of torch.ao's error, "" if there was none.
    """

    model: str
    form: str
    float_ms: float
    ratio: float
    torch_ao_ratio: float | None
    float_mb: float
    memory_ratio: float
    torch_ao_error: str = ""


def main() -> None:
    arguments = parse_arguments()
    silence_warnings()
    warnings.filterwarnings("ignore", message="Scripted GoogleNet always returns")
    torch.set_num_threads(1)
    results = []
    for name in arguments.models:
        for form in ("scripted", "traced"):
            results.append(measure(name, form, arguments.runs))
            print(f"{name} {form} done", file=sys.stderr)
    print(table(results))
    print_environment()
    if arguments.json:
        write_json(arguments.json, results)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=MODELS, help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--runs", type=int, default=30, help="runs of each variant (default: 30)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    return parse_with_models(parser)


def measure(name: str, form: str, runs: int) -> Result:
    torch.manual_seed(0)
    model = make_model(name, form)
    images = [torch.randn(1, 3, 224, 224) for _ in range(IMAGES)]
    models = {"float": model, "jitquant": ours().prepare(model)}
    error = ""
    try:
        models["torch.ao"] = prepared_by_torch_ao(torch_ao(), model, images[0])
    except Exception as caught:
        error = first_line(caught)
    for each in models.values():
        run(each, images)
    with torch.no_grad():
        times = take_turns({key: runner(each, images) for key, each in models.items()}, runs, 2)
    torch_ao_ratio = ratio(times["torch.ao"], times["float"]) if "torch.ao" in times else None
    float_mb, calibrate_mb = peaks(model)
    return Result(
        *(name, form, times["float"].median, ratio(times["jitquant"], times["float"])),
        *(torch_ao_ratio, float_mb, calibrate_mb / float_mb, error),
    )


def ratio(times: Times, reference: Times) -> float:
    """The median over the turns: what slows one of a turn, often slows the other too."""
    return statistics.median(a / b for a, b in zip(times.ms, reference.ms, strict=True))


def run(model: torch.jit.ScriptModule, images: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for image in images:
            model(image)


def make_model(name: str, form: str) -> torch.jit.ScriptModule:
    model = torchvision.models.get_model(name, weights=None, **OPTIONS.get(name, {}))
    with torch.no_grad():
        for _ in range(2):
            model.train()(torch.randn(8, 3, 224, 224))
    model.eval()
    if form == "scripted":
        made: torch.jit.ScriptModule = torch.jit.script(model)
        return made
    with torch.no_grad():
        traced: torch.jit.ScriptModule = torch.jit.trace(model, torch.randn(1, 3, 224, 224))
    return traced


def prepared_by_torch_ao(
    quantizer: Quantizer, model: torch.jit.ScriptModule, image: torch.Tensor
) -> torch.jit.ScriptModule:
    prepared = quantizer.prepare(model)
    run(prepared, [image])  # some fail here only
    return prepared


def runner(model: torch.jit.ScriptModule, images: list[torch.Tensor]) -> Callable[[], torch.Tensor]:
    following: Iterator[torch.Tensor] = cycle(images)
    return lambda: model(next(following))


def peaks(model: torch.jit.ScriptModule) -> tuple[float, float]:
    """Peak memory in MiB of the float run and of the calibration."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt")
        torch.jit.save(model, path)
        float_mb, calibrate_mb = peak(path, "float"), peak(path, "calibrate")
    return float_mb, calibrate_mb


def peak(path: Path, what: str) -> float:
    command = [sys.executable, "-W", "ignore", "-c", PEAK, str(path), what, str(IMAGES_FOR_MEMORY)]
    root = Path(jitquant.__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def table(results: list[Result]) -> str:
    rows = [
        (
            *(result.model, result.form, number(result.float_ms, ".1f")),
            *(number(result.ratio, ".2f"), number(result.torch_ao_ratio, ".2f")),
            *(number(result.float_mb, ".0f"), number(result.memory_ratio, ".2f")),
            result.torch_ao_error[:60],
        )
        for result in results
    ]
    theirs = [result.torch_ao_ratio for result in results if result.torch_ao_ratio]
    rows.append(
        (
            *("geometric mean", "", ""),
            number(statistics.geometric_mean(result.ratio for result in results), ".2f"),
            number(statistics.geometric_mean(theirs) if theirs else None, ".2f"),
            "",
            number(statistics.geometric_mean(result.memory_ratio for result in results), ".2f"),
            "",
        )
    )
    headers = (
        *("model", "form", "float (ms)", "jitquant, times", "torch.ao, times"),
        *("float peak (MiB)", "jitquant peak, times", "torch.ao's error"),
    )
    columns = ("left", "left", *["right"] * 5, "left")
    return str(tabulate(rows, headers=headers, colalign=columns, disable_numparse=True))


if __name__ == "__main__":
    main()
