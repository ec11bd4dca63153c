"""Profiles TorchScript files op by op, and compares them.

    python benchmarks/profile_model.py resnet18.pt resnet18_int8.pt --input 1,3,224,224
    python benchmarks/profile_model.py bert.pt --input 1,128:int64 --input 1,128:int64 --threads 2
    python benchmarks/profile_model.py vad.jit --input 1,512 --input =16000 --json vad.json

For each file: torch.profiler's table by op, with "Self CPU time total". At the end one table with
latency, memory and speed-up against the first file. For latency the models take turns, after a
warm-up in which TorchScript optimizes.

One --input for each argument of forward: a shape, with a dtype behind a colon where it is not
float32, or "=" and a number. Floats are normally distributed, integers and booleans are 0 or 1.

"memory" is how far the resident memory of the process rises while the file is loaded and run
once. Models that were quantized for another engine than torch's default need --engine.
"""

import argparse
import ast
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile

sys.path.append(str(Path(__file__).resolve().parent.parent))  # runs from any folder

from benchmarks.memory import PeakMemory
from benchmarks.report import first_line, number, print_environment, silence_warnings, write_json
from tutorials.measure import file_mb
from tutorials.timing import Times, take_turns, timed

DTYPES = {
    name: getattr(torch, name)
    for name in (
        *("float32", "float64", "float16", "bfloat16"),
        *("int64", "int32", "int16", "int8", "uint8", "bool"),
    )
}
PERCENTILES = (50, 90, 99)


class UsageError(Exception):
    """What the user gave cannot be profiled; the message says why, and what to do."""


@dataclass
class Result:
    """What was measured of one file.

    Attributes:
        label: its name, or its whole path where two names are equal.
        load_ms: to load the file, in ms.
        memory_mb: rise of resident memory while it was loaded and run once, in MB (10^6 bytes);
            None where it cannot be measured.
        latency_ms: by "p50", "p90", "p99", "mean" and "least", of one call, in ms.
        speed_up: the median of the first file over that of this one.
        self_cpu_ms: "Self CPU time total" of one profiled call, in ms.
        ops: by op, calls and self CPU time in microseconds of one profiled call.
    """

    label: str
    file_mb: float
    load_ms: float
    memory_mb: float | None
    latency_ms: dict[str, float] = field(default_factory=dict)
    speed_up: float = 1.0
    self_cpu_ms: float = 0.0
    ops: dict[str, dict[str, float]] = field(default_factory=dict)


def main() -> None:
    arguments = parse_arguments()
    silence_warnings()
    try:
        run(arguments)
    except UsageError as error:
        sys.exit(f"profile_model.py: {error}")


def parse_arguments(texts: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.pt")
    parser.add_argument(
        "--input", action="append", required=True, metavar="SHAPE[:DTYPE]", help="see above"
    )
    parser.add_argument("--threads", type=positive, default=1, help="torch's threads (default: 1)")
    parser.add_argument("--engine", help="torch.backends.quantized.engine (default: torch's)")
    parser.add_argument("--warmup", type=positive, default=10, help="calls before (default: 10)")
    parser.add_argument("--repeats", type=positive, default=50, help="timed calls (default: 50)")
    parser.add_argument(
        "--profiled", type=positive, default=10, help="calls under the profiler (default: 10)"
    )
    parser.add_argument("--rows", type=positive, default=15, help="of op tables (default: 15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    parser.add_argument(
        "--chrome-trace", type=Path, metavar="FOLDER", help="one call of each model, as a trace"
    )
    return parser.parse_args(texts)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    set_engine(arguments.engine)
    torch.manual_seed(0)
    inputs = [parse_input(text) for text in arguments.input]
    results, models = [], {}
    with torch.inference_mode():
        for path in arguments.models:  # torch loads libraries and code when it first needs them
            load_and_run(path, "", inputs)
        for path, label in zip(arguments.models, labels(arguments.models), strict=True):
            result, models[label] = load_and_run(path, label, inputs)
            results.append(result)
        calls = {label: (lambda model=model: model(*inputs)) for label, model in models.items()}
        times = take_turns(calls, arguments.repeats, arguments.warmup)
        for result in results:
            note_latency(result, times[result.label], times[results[0].label])
            print(f"\n{result.label}")
            print(profile_calls(result, models[result.label], inputs, arguments))
    print(f"\n{comparison(results)}")
    print_environment()
    if arguments.json:
        write_json(arguments.json, results)


def set_engine(engine: str | None) -> None:
    """Before models are loaded: weights are packed for the engine that is set then."""
    known = [name for name in torch.backends.quantized.supported_engines if name != "none"]
    if engine is None:
        return
    if engine not in known:
        raise UsageError(f"torch has no engine {engine} here; give one of {', '.join(known)}")
    torch.backends.quantized.engine = engine


def parse_input(text: str) -> Any:
    """The argument that `text` stands for: "1,3,224,224", "1,128:int64", "=16000"."""
    if text.startswith("="):
        try:
            value = ast.literal_eval(text[1:])
        except (SyntaxError, ValueError):
            value = None
        if not isinstance(value, (int, float, bool)):
            raise UsageError(f"--input {text}: behind = a number is needed, or True or False")
        return value
    shape_text, _, dtype_name = text.partition(":")
    dtype = DTYPES.get(dtype_name or "float32")
    if dtype is None:
        raise UsageError(f"--input {text}: no dtype {dtype_name}; give one of {', '.join(DTYPES)}")
    sizes = shape_text.split(",")
    if not all(size.strip().isdigit() for size in sizes):
        raise UsageError(f"--input {text}: a shape is sizes with commas, as in 1,3,224,224")
    shape = [int(size) for size in sizes]
    if dtype.is_floating_point:
        return torch.randn(shape).to(dtype)
    return torch.randint(0, 2, shape).to(dtype)


def labels(paths: Sequence[Path]) -> list[str]:
    """Names that are all different."""
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("a file is given twice")
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def load_and_run(path: Path, label: str, inputs: list[Any]) -> tuple[Result, Any]:
    """Load a file and run it once, which also tells whether the inputs fit."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    with PeakMemory() as peak:
        try:
            model, load_ms = timed(lambda: torch.jit.load(path).eval())
        except RuntimeError as error:
            raise UsageError(
                f"{path} is not a file that torch.jit.load can load, as torch.jit.save "
                f"writes it: {first_line(error)}"
            ) from error
        try:
            model(*inputs)
        except RuntimeError as error:
            raise UsageError(
                f"{path} does not run on these inputs: {last_line(error)}\n{advice(error, model)}"
            ) from error
    return Result(label, file_mb(path), load_ms, peak.mb), model


def last_line(error: Exception) -> str:
    """TorchScript says where before it says what."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else first_line(error)


def advice(error: Exception, model: Any) -> str:
    if "Didn't find engine" in str(error):
        engine = torch.backends.quantized.engine
        return f"It was made for another engine than {engine}: give --engine onednn, or its own."
    return f"It takes {signature(model)}; give one --input for each that has no default."


def signature(model: Any) -> str:
    arguments = model.forward.schema.arguments[1:]  # without self
    return "(" + ", ".join(map(described, arguments)) + ")"


def described(argument: Any) -> str:
    default = f" = {argument.default_value}" if argument.has_default_value() else ""
    return f"{argument.name}: {argument.type.annotation_str}{default}"


def note_latency(result: Result, times: Times, first: Times) -> None:
    result.latency_ms = {f"p{percent}": times.percentile(percent) for percent in PERCENTILES}
    result.latency_ms |= {"mean": times.mean, "least": times.least}
    result.speed_up = first.percentile(50) / times.percentile(50)


def profile_calls(
    result: Result, model: Any, inputs: list[Any], arguments: argparse.Namespace
) -> str:
    """Note the ops, write the trace if asked to, and give the profiler's table."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for _ in range(arguments.profiled):
            model(*inputs)
    averages = profiler.key_averages()
    for op in averages:
        result.ops[op.key] = {
            "calls": op.count / arguments.profiled,
            "self_cpu_us": op.self_cpu_time_total / arguments.profiled,
        }
    result.self_cpu_ms = sum(op["self_cpu_us"] for op in result.ops.values()) / 1e3
    if arguments.chrome_trace:
        arguments.chrome_trace.mkdir(parents=True, exist_ok=True)
        with profile(activities=[ProfilerActivity.CPU]) as once:
            model(*inputs)
        name = result.label.replace("/", "_") + ".trace.json"
        once.export_chrome_trace(str(arguments.chrome_trace / name))
    table = averages.table(
        sort_by="self_cpu_time_total", row_limit=arguments.rows, max_name_column_width=40
    )
    return f"{arguments.profiled} calls:\n{table}"


def comparison(results: list[Result]) -> str:
    rows = [
        (
            result.label,
            number(result.file_mb, ".2f"),
            number(result.load_ms, ".0f"),
            number(result.memory_mb, ".0f"),
            *(number(result.latency_ms[name], ".2f") for name in result.latency_ms),
            number(result.self_cpu_ms, ".2f"),
            number(result.speed_up, ".2f") + "x",
        )
        for result in results
    ]
    headers = (
        *("model", "file (MB)", "load (ms)", "memory (MB)"),
        *(f"{name} (ms)" for name in results[0].latency_ms),
        *("self CPU (ms)", "speed-up"),
    )
    columns = ("left", *["right"] * (len(headers) - 1))
    return str(tabulate(rows, headers=headers, colalign=columns, disable_numparse=True))


if __name__ == "__main__":
    main()
