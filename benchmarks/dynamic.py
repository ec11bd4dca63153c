"""Dynamic int8 transformers of torch.ao, ONNX Runtime and jitquant: ms by number of tokens.

    pip install .[peers]
    python benchmarks/dynamic.py
    python benchmarks/dynamic.py --models silero-stress --tokens 16 128 --json dynamic.json

Two BERTs with random weights, which every tool can quantize, and the trained one in the package
silero-stress, which comes without source. Linear layers are int8, per channel; tables stay float.

- float: scripted, and with "frozen" also what torch.jit.freeze does, which needs no int8.
- torch.ao: PyTorch's `quantize_dynamic_jit`.
- eager: `torch.ao.quantization.quantize_dynamic`, scripted and frozen. Needs Python source.
- ONNX Runtime: `quantize_dynamic`.
- jitquant: what `quantize_dynamic_jit` gives.

"onednn" is the same on that engine, which alone uses AMX where the CPU has it; all others run on
torch's default engine, x86.

What is not installed is left out, with a line that says so. Each variant is run by a process of its
own, and all processes are pinned to the same CPUs. They take turns, several calls each; the first
call of a turn does not count. Times are medians.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

sys.path.append(str(Path(__file__).resolve().parent.parent))  # runs from any folder

import jitquant
from benchmarks.compare_peers import installed, take_turns_in_processes, unique
from benchmarks.profile_model import positive
from benchmarks.report import (
    first_line,
    markdown,
    number,
    print_environment,
    silence_warnings,
    write_json,
)
from benchmarks.runners import Runner
from benchmarks.subjects import Subject
from benchmarks.text_models import LEAST_TOKENS, NAMES, SIZES, make_text_model
from benchmarks.variants import NotAvailable, Variant, make_float, make_frozen
from jitquant._engine import engine_set
from tutorials.measure import file_mb, run_all, sqnr_db

LENGTHS = [16, 64, 128, 256]
OURS = ("jitquant", "jitquant onednn")


def make_upstream(subject: Subject, path: Path) -> None:
    from torch.ao.quantization import per_channel_dynamic_qconfig
    from torch.ao.quantization.quantize_jit import quantize_dynamic_jit

    model = quantize_dynamic_jit(subject.traced, {"": per_channel_dynamic_qconfig})
    torch.jit.save(model, path)


def make_eager(subject: Subject, path: Path) -> None:
    from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

    if subject.name not in SIZES:
        raise NotAvailable("it comes without Python source")
    model = quantize_dynamic(subject.module, {nn.Linear: per_channel_dynamic_qconfig})
    torch.jit.save(torch.jit.freeze(torch.jit.script(model)), path)


def make_onnxruntime(subject: Subject, path: Path) -> None:
    from onnxruntime import quantization

    float_path = path.with_suffix(".float.onnx")
    torch.onnx.export(
        subject.module,
        (subject.evaluation[0],),
        str(float_path),
        dynamo=False,
        opset_version=17,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {1: "tokens"}},
    )
    quantization.quantize_dynamic(
        str(float_path),
        str(path),
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
        extra_options={"DefaultTensorType": 1},  # float32, of what its shape inference misses
    )
    float_path.unlink()


def make_ours(subject: Subject, path: Path) -> None:
    config = {"": jitquant.per_channel_dynamic_qconfig}
    torch.jit.save(jitquant.quantize_dynamic_jit(subject.traced, config), path)


VARIANTS = (
    Variant("float", "torch", ".pt", make_float),
    Variant("float, frozen", "torch", ".pt", make_frozen),
    Variant("torch.ao", "torch", ".pt", make_upstream),
    Variant("torch.ao onednn", "torch", ".pt", make_upstream, engine="onednn"),
    Variant("eager", "torch", ".pt", make_eager),
    Variant(
        "ONNX Runtime", "onnxruntime", ".onnx", make_onnxruntime, needs=("onnx", "onnxruntime")
    ),
    Variant("jitquant", "torch", ".pt", make_ours),
    Variant("jitquant onednn", "torch", ".pt", make_ours, engine="onednn"),
)
VARIANT_NAMES = tuple(of.name for of in VARIANTS)


@dataclass
class Result:
    """What was measured of one variant of one model; None where it could not be.

    Attributes:
        sqnr_db: of the outputs for all lengths, against the float model's.
        size_mb: of the file, in MB (10^6 bytes).
        median_ms: of one call, by number of tokens.
        error: why there is nothing to measure, "" if there is.
    """

    model: str
    variant: str
    sqnr_db: float | None = None
    size_mb: float | None = None
    median_ms: dict[int, float] = field(default_factory=dict)
    error: str = ""


def main() -> None:
    arguments = parse_arguments()
    silence_warnings()
    torch.set_num_threads(arguments.threads)
    variants = installed([of for of in VARIANTS if of.name in arguments.variants])
    runners = {of.name: Runner(of.runtime, of.engine, arguments.threads) for of in variants}
    results = []
    try:
        for name in arguments.models:
            subject = make_text_model(name, arguments.tokens)
            results += compare(subject, variants, runners, arguments)
            print(f"{name} done", file=sys.stderr, flush=True)
    finally:
        for runner in runners.values():
            runner.close()
    print(f"{time_table(results, arguments.tokens)}\n\n{file_table(results)}\n")
    print("\n".join(closing_lines(results)))
    print_environment()
    if arguments.json:
        write_json(arguments.json, results)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=NAMES, choices=NAMES, metavar="NAME")
    parser.add_argument(
        "--variants",
        nargs="+",
        default=VARIANT_NAMES,
        choices=VARIANT_NAMES,
        metavar="NAME",
        help="default: all",
    )
    parser.add_argument("--tokens", nargs="+", type=positive, default=LENGTHS)
    parser.add_argument("--threads", type=positive, default=1, help="default: 1")
    parser.add_argument("--turns", type=positive, default=20, help="of each (default: 20)")
    parser.add_argument("--calls", type=positive, default=4, help="in a turn (default: 4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    arguments = parser.parse_args()
    if min(arguments.tokens) < LEAST_TOKENS:
        parser.error(f"--tokens must be at least {LEAST_TOKENS}, got {min(arguments.tokens)}")
    return arguments


def compare(
    subject: Subject,
    variants: Sequence[Variant],
    runners: dict[str, Runner],
    arguments: argparse.Namespace,
) -> list[Result]:
    """Make, save, load and measure all variants of one model."""
    expected = run_all(subject.traced, subject.evaluation)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        paths = {of.name: Path(folder, of.file_name) for of in variants}
        for variant in variants:
            result = Result(subject.name, variant.name)
            results.append(result)
            path = paths[variant.name]
            try:
                with engine_set(variant.engine), contextlib.redirect_stdout(sys.stderr):
                    variant.make(subject, path)
                result.size_mb = file_mb(path)
                runners[variant.name].load(path, subject.evaluation[0])
                outputs = runners[variant.name].outputs(subject.evaluation)
                result.sqnr_db = sqnr_db(expected, outputs)
            except Exception as error:
                result.error = str(error) if isinstance(error, NotAvailable) else first_line(error)
        able = {of.variant: of for of in results if not of.error}
        for x in subject.evaluation:
            for name in able:
                runners[name].load(paths[name], x)
            turns = {name: runners[name] for name in able}
            times = take_turns_in_processes(turns, arguments.turns, arguments.calls)
            for name, result in able.items():
                result.median_ms[x.shape[1]] = statistics.median(times[name])
    return results


def time_table(results: Sequence[Result], lengths: Sequence[int]) -> str:
    """Medians in ms, a line for each model and number of tokens."""
    variants = unique(of.variant for of in results)
    by_name = {(of.model, of.variant): of.median_ms for of in results}
    rows = [
        (
            model,
            str(length),
            *(number(by_name[model, variant].get(length), ".2f") for variant in variants),
        )
        for model in unique(of.model for of in results)
        for length in lengths
    ]
    return markdown(("median (ms)", "tokens", *variants), rows)


def file_table(results: Sequence[Result]) -> str:
    rows = [
        (of.model, of.variant, number(of.size_mb, ".2f"), number(of.sqnr_db, ".1f"), of.error[:70])
        for of in results
    ]
    return markdown(("model", "variant", "size (MB)", "SQNR (dB)", "error"), rows, left=2)


def closing_lines(results: Sequence[Result]) -> list[str]:
    """How many times as fast ours are as each other variant, over models and lengths."""
    times = {
        (of.model, of.variant, length): ms for of in results for length, ms in of.median_ms.items()
    }
    lines = []
    for ours in OURS:
        speeds: dict[str, list[float]] = {}
        for (model, variant, length), ms in times.items():
            if variant not in OURS and (model, ours, length) in times:
                speeds.setdefault(variant, []).append(ms / times[model, ours, length])
        lines += [
            f"{ours}: {statistics.geometric_mean(of):.2f} times as fast as {variant} "
            f"(geometric mean of {len(of)}; least {min(of):.2f})"
            for variant, of in speeds.items()
        ]
    return lines


if __name__ == "__main__":
    main()
