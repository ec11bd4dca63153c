"""Int8 models of torch.ao, FX, ONNX Runtime, OpenVINO and jitquant: latency, accuracy, size.

    pip install .[peers]
    python benchmarks/compare_peers.py
    python benchmarks/compare_peers.py --models resnet18 mobilenet_v2 --threads 2 --batch 8
    python benchmarks/compare_peers.py --plot peers.png --json peers.json

All start from the same random float weights, and calibrate with the same 8 random images.

- float: traced, and with "frozen" also with BatchNorm folded, which needs no int8.
- torch.ao: `quantize_jit` of PyTorch, for each engine. fbgemm runs the file made for x86, whose
  configuration is the same.
- eager: torch.ao's eager mode, for the models that torchvision has source for.
- FX: torch.ao's `convert_fx`, traced and frozen.
- ONNX Runtime: static, QDQ, per channel, unsigned activations and signed weights.
- OpenVINO: NNCF's defaults.
- jitquant: what `convert_jit` gives for torch's default engine, and for onednn.

What is not installed is left out, with a line that says so. Each variant is run by a process of its
own, and all processes are pinned to the same CPUs. They take turns, several calls each; the first
call of a turn does not count. Ratios and shares are those of medians.

"of the limit" is which part is reached of the multiply-accumulates a second that the CPU can do at
most (`mac_limit.py`). "size, ratio" is the file's size over that of int8 weights, float biases and
100 kB. "load" is to load the file until it can run, the least of three times. `--no-amx` hides AMX
tiles from all (`without_amx.py`).
"""

import argparse
import contextlib
import math
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent))  # runs from any folder

from benchmarks.mac_limit import Limit, measure_or_say_why_not
from benchmarks.profile_model import positive
from benchmarks.report import (
    first_line,
    markdown,
    number,
    parse_with_models,
    print_environment,
    silence_warnings,
    write_json,
)
from benchmarks.runners import Runner
from benchmarks.subjects import Subject, make_subject
from benchmarks.variants import INSTALL, VARIANTS, NotAvailable, Variant
from benchmarks.without_amx import refuse_amx
from jitquant._engine import engine_set
from tutorials.measure import file_mb, run_all, sqnr_db

MODELS = (
    *("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "googlenet"),
    *("inception_v3", "shufflenet_v2_x1_0", "densenet121", "regnet_y_800mf", "efficientnet_b0"),
)
NAMES = tuple(variant.name for variant in VARIANTS)
OURS = ("jitquant", "jitquant onednn")
TORCH = ("torch.ao x86", "torch.ao onednn", "torch.ao fbgemm", "FX")
OTHERS = ("ONNX Runtime", "OpenVINO")
SPARE_MB = 0.1  # that a file may be larger than its weights and biases


@dataclass
class Result:
    """What was measured of one variant of one model; None where it could not be.

    Attributes:
        batch: images at a time.
        median_ms, least_ms: of one call.
        share_of_limit: 0 to 1; None for float variants too.
        sqnr_db: of the outputs, against the float model's.
        size_mb: of the saved files, in MB (10^6 bytes).
        size_ratio: over int8 weights, float biases and 100 kB.
        load_ms: until the file can run.
        error: why there is nothing to measure, "" if there is.
    """

    model: str
    variant: str
    batch: int
    median_ms: float | None = None
    least_ms: float | None = None
    share_of_limit: float | None = None
    sqnr_db: float | None = None
    size_mb: float | None = None
    size_ratio: float | None = None
    load_ms: float | None = None
    error: str = ""


def main() -> None:
    arguments = parse_arguments()
    silence_warnings()
    if arguments.no_amx:
        refuse_amx()
    torch.set_num_threads(arguments.threads)
    variants = installed([of for of in VARIANTS if of.name in arguments.variants])
    limit = measure_or_say_why_not(arguments.threads)
    runners = {of.name: Runner(of.runtime, of.engine, arguments.threads) for of in variants}
    results = []
    try:
        for name in arguments.models:
            subject = make_subject(name, arguments.batch, arguments.pixels)
            results += compare(subject, variants, runners, limit, arguments)
            print(f"{name} done", file=sys.stderr, flush=True)
    finally:
        for runner in runners.values():
            runner.close()
    print(f"{long_table(results)}\n\n{overview(results)}\n")
    print("\n".join([*closing_lines(results), *([str(limit)] if limit else [])]))
    print_environment()
    if arguments.json:
        write_json(arguments.json, results)
    if arguments.plot:
        plot(results, arguments.plot)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS, help=f"default: {' '.join(MODELS)}")
    parser.add_argument(
        "--variants", nargs="+", default=NAMES, choices=NAMES, metavar="NAME", help="default: all"
    )
    parser.add_argument("--threads", type=positive, default=1, help="default: 1")
    parser.add_argument("--batch", type=positive, default=1, help="images at a time (default: 1)")
    parser.add_argument("--no-amx", action="store_true", help="as on a CPU that has VNNI only")
    parser.add_argument("--pixels", type=positive, help="size of images (default: the model's)")
    parser.add_argument("--turns", type=positive, default=20, help="of each (default: 20)")
    parser.add_argument("--calls", type=positive, default=4, help="in a turn (default: 4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="a chart (needs .[plot])")
    return parse_with_models(parser)


def installed(variants: Sequence[Variant]) -> list[Variant]:
    """Those that can run here; a line on stderr for each other one."""
    for variant in variants:
        if variant.missing:
            names = ", ".join(variant.missing)
            print(f"{variant.name} is left out: {INSTALL} installs {names}", file=sys.stderr)
    return [variant for variant in variants if not variant.missing]


def compare(
    subject: Subject,
    variants: Sequence[Variant],
    runners: dict[str, Runner],
    limit: Limit | None,
    arguments: argparse.Namespace,
) -> list[Result]:
    """Make, save, load and measure all variants of one model."""
    expected = run_all(subject.module, subject.evaluation)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for variant in variants:
            result = Result(subject.name, variant.name, arguments.batch)
            results.append(result)
            path = Path(folder, variant.file_name)
            try:
                if not path.exists():
                    with engine_set(variant.engine), contextlib.redirect_stdout(sys.stderr):
                        variant.make(subject, path)
                note_size(result, path, subject)
                result.load_ms = runners[variant.name].load(path, subject.evaluation[0])
                outputs = runners[variant.name].outputs(subject.evaluation)
                result.sqnr_db = sqnr_db(expected, outputs)
            except Exception as error:
                result.error = str(error) if isinstance(error, NotAvailable) else first_line(error)
    able = [result for result in results if not result.error]
    times = take_turns_in_processes(
        {of.variant: runners[of.variant] for of in able}, arguments.turns, arguments.calls
    )
    for result in able:
        result.median_ms = statistics.median(times[result.variant])
        result.least_ms = min(times[result.variant])
        if limit is not None and not result.variant.startswith("float"):
            result.share_of_limit = limit.share(subject.macs, result.median_ms)
    return results


def note_size(result: Result, path: Path, subject: Subject) -> None:
    files = [path, path.with_suffix(".bin")]  # OpenVINO keeps weights apart
    result.size_mb = sum(file_mb(file) for file in files if file.exists())
    result.size_ratio = result.size_mb / (subject.int8_mb + SPARE_MB)


def take_turns_in_processes(
    runners: dict[str, Runner], turns: int, calls: int
) -> dict[str, list[float]]:
    """Times in ms; each turn starts with another runner than the one before."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    names = list(runners)
    for turn in range(turns):
        first = turn % max(len(names), 1)
        for name in names[first:] + names[:first]:
            times[name] += runners[name].times_ms(calls)
    return times


def long_table(results: Sequence[Result]) -> str:
    fastest = {
        model: min(of.median_ms for of in results if of.model == model and of.median_ms is not None)
        for model in {of.model for of in results if of.median_ms is not None}
    }
    rows = [
        (
            of.model,
            of.variant,
            number(of.median_ms, ".2f"),
            number(of.least_ms, ".2f"),
            number(of.median_ms and of.median_ms / fastest[of.model], ".2f"),
            number(of.share_of_limit, ".0%"),
            number(of.sqnr_db, ".1f"),
            number(of.size_mb, ".2f"),
            number(of.size_ratio, ".3f"),
            number(of.load_ms, ".0f"),
            of.error[:60],
        )
        for of in results
    ]
    headers = (
        *("model", "variant", "median (ms)", "least (ms)", "over the fastest", "of the limit"),
        *("SQNR (dB)", "size (MB)", "size, ratio", "load (ms)", "error"),
    )
    return markdown(headers, rows, left=2)


def overview(results: Sequence[Result]) -> str:
    """Medians, a line for each model."""
    medians = {(of.model, of.variant): of.median_ms for of in results}
    models = unique(of.model for of in results)
    variants = unique(of.variant for of in results)
    rows = [
        (model, *(number(medians.get((model, variant)), ".2f") for variant in variants))
        for model in models
    ]
    return markdown(("median (ms)", *variants), rows)


def unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def closing_lines(results: Sequence[Result]) -> list[str]:
    """How fast ours are against the fastest of each group, over all models that both can run."""
    lines = []
    for ours in OURS:
        for text, group in (("torch.ao and FX", TORCH), ("ONNX Runtime and OpenVINO", OTHERS)):
            speeds = speed_against(results, ours, group)
            if speeds:
                slowest = min(speeds, key=lambda model: speeds[model])
                mean = statistics.geometric_mean(speeds.values())
                lines.append(
                    f"{ours}: {mean:.3f} times as fast as the fastest of {text} (geometric mean of "
                    f"{len(speeds)} models; least {speeds[slowest]:.3f}, {slowest})"
                )
    return lines


def speed_against(results: Sequence[Result], ours: str, group: Sequence[str]) -> dict[str, float]:
    """By model, the least median of a group over that of ours: more than 1 where ours is faster."""
    medians = {(of.model, of.variant): of.median_ms for of in results if of.median_ms is not None}
    speeds = {}
    for model in unique(of.model for of in results):
        others = [medians[model, name] for name in group if (model, name) in medians]
        if others and (model, ours) in medians:
            speeds[model] = min(others) / medians[model, ours]
    return speeds


def plot(results: Sequence[Result], path: Path) -> None:
    """Bars: how many times as fast as float each variant is."""
    from matplotlib import pyplot

    medians = {(of.model, of.variant): of.median_ms or math.nan for of in results}
    models = unique(of.model for of in results)
    variants = [name for name in unique(of.variant for of in results) if name != "float"]
    figure, axis = pyplot.subplots(figsize=(2 + 1.6 * len(models), 5), layout="constrained")
    width = 0.85 / max(len(variants), 1)
    for index, variant in enumerate(variants):
        speeds = [
            medians.get((model, "float"), math.nan) / medians.get((model, variant), math.nan)
            for model in models
        ]
        shift = (index - (len(variants) - 1) / 2) * width
        axis.bar([at + shift for at in range(len(models))], speeds, width, label=variant)
    axis.set_xticks(range(len(models)), models, rotation=20)
    axis.set_ylabel("times as fast as float TorchScript")
    figure.legend(loc="outside upper center", ncols=4, fontsize="small")
    figure.savefig(path)


if __name__ == "__main__":
    main()
