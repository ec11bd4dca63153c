"""Where the time of a model goes, op by op, and how near its layers come to what the CPU can do.

    python benchmarks/profile_layers.py resnet18_int8.pt --input 1,3,224,224
    python benchmarks/profile_layers.py MODEL.pt --input 8,3,224,224 --engine onednn --threads 2

Takes any TorchScript file, and is made for what `jitquant.convert_jit` gives. The first table has a
line for each op that runs, in that order; the second adds them up by kind. Times are those of
torch.profiler, the least of `--repeats` calls, since whatever else the machine does only adds.
Multiply-accumulates are those of convolutions and linear layers. The limit is what the vector units
can do without any memory (`mac_limit.py`). The last line compares the sum with calls of the whole
model that nobody profiles.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

sys.path.append(str(Path(__file__).resolve().parent.parent))  # runs from any folder

import jitquant
from benchmarks.mac_limit import Limit, measure_or_say_why_not
from benchmarks.macs import Call, CallRecorder
from benchmarks.profile_model import (
    UsageError,
    load_and_run,
    parse_input,
    positive,
    set_engine,
)
from benchmarks.report import markdown, number, print_environment, silence_warnings, write_json
from tutorials.timing import take_turns

FLOAT_LAYER = re.compile(r"aten::(conv(_transpose)?\dd|linear)")
CALL = "one call of the model"
FEW_CHANNELS = 4  # kernels work on more of them at a time


@dataclass
class Layer:
    """One op that runs, with the ops that it is made of.

    Attributes:
        op: such as "quantized::conv2d_relu".
        module: path in the model that was quantized; "" for what is no layer, or is not known.
        kind: the op, for convolutions with what decides their speed.
        input, output: shapes of the first tensor on either side; None without one.
        weight: of a layer, (out, in / groups, kernel...).
        macs: multiply-accumulates.
        ms: the least of all calls.
        share_of_limit: multiply-accumulates a second over what the CPU can do; None for other ops.
    """

    op: str
    module: str
    kind: str
    input: tuple[int, ...] | None
    output: tuple[int, ...] | None
    weight: tuple[int, ...] | None
    macs: int
    ms: float
    share_of_limit: float | None = None


def main() -> None:
    arguments = parse_arguments()
    silence_warnings()
    try:
        run(arguments)
    except UsageError as error:
        sys.exit(f"profile_layers.py: {error}")


def parse_arguments(texts: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL.pt")
    parser.add_argument(
        *("--input",),
        action="append",
        required=True,
        metavar="SHAPE[:DTYPE]",
        help="one for each argument of forward, as for profile_model.py",
    )
    parser.add_argument("--threads", type=positive, default=1, help="torch's threads (default: 1)")
    parser.add_argument("--engine", help="torch.backends.quantized.engine (default: torch's)")
    parser.add_argument("--warmup", type=positive, default=10, help="calls before (default: 10)")
    parser.add_argument("--repeats", type=positive, default=50, help="timed calls (default: 50)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the layers here")
    return parser.parse_args(texts)


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    set_engine(arguments.engine)
    torch.manual_seed(0)
    inputs = [parse_input(text) for text in arguments.input]
    with torch.no_grad():
        _, model = load_and_run(arguments.model, arguments.model.name, inputs)
        calls = {"model": lambda: model(*inputs)}
        times = take_turns(calls, arguments.repeats, arguments.warmup)
        layers = measure(model, inputs, arguments.repeats)
    limit = measure_or_say_why_not(arguments.threads)
    note_shares(layers, limit)
    print(f"{layer_table(layers)}\n\n{kind_table(layers, limit)}\n")
    if limit is not None:
        print(limit)
    total = sum(layer.ms for layer in layers)
    print(f"sum of all ops: {total:.2f} ms; the model, not profiled: {times['model'].least:.2f} ms")
    print_environment()
    if arguments.json:
        write_json(arguments.json, layers)


def measure(model: Any, inputs: Sequence[Any], repeats: int) -> list[Layer]:
    """All ops that one call of the model runs; the model has been called before.

    Raises:
        UsageError: calls with the same inputs run different ops.
    """
    with CallRecorder() as recorder:
        model(*inputs)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            with record_function(CALL):
                model(*inputs)
    runs = [top_ops(event) for event in profiler.events() if event.name == CALL]
    names = [[event.name for event in run] for run in runs]
    if any(other != names[0] for other in names):
        raise UsageError("calls of this model with the same inputs run different ops")
    layers = []
    calls = iter(recorder.calls)
    pending = next(calls, None)
    for events in zip(*runs, strict=True):
        made_of = []
        for name in names_within(events[0]):
            if pending is not None and pending.op == name:
                made_of.append(pending)
                pending = next(calls, None)
        ms = min(event.time_range.elapsed_us() for event in events) / 1e3
        layers.append(make_layer(events[0].name, made_of, ms))
    if pending is not None:
        raise UsageError(f"the profiler did not see {pending.op}")
    note_modules(layers, model)
    return layers


def top_ops(call: Any) -> list[Any]:
    """The events of ops that the interpreter runs, without those that ops run."""
    found = []
    for event in sorted(call.cpu_children, key=lambda of: of.time_range.start):
        found += [event] if "::" in event.name else top_ops(event)
    return found


def names_within(event: Any) -> list[str]:
    """The event's name, and those of all events in it, in the order that they start."""
    children = sorted(event.cpu_children, key=lambda of: of.time_range.start)
    return [event.name, *(name for child in children for name in names_within(child))]


def make_layer(op: str, made_of: Sequence[Call], ms: float) -> Layer:
    weighted = [call for call in made_of if call.weight is not None]
    call = next(iter([*weighted, *made_of]), None)
    return Layer(
        op=op,
        module="",
        kind=op if not weighted else kind_of(weighted[0]),
        input=call.input if call else None,
        output=made_of[-1].output if made_of else None,
        weight=weighted[0].weight if weighted else None,
        macs=sum(of.macs for of in weighted),
        ms=ms,
    )


def kind_of(call: Call) -> str:
    """What kind of layer it is, and whether it is int8."""
    assert call.weight is not None and call.input is not None
    number_type = "int8" if call.op.startswith("quantized::") else "float"
    if len(call.weight) == 2:
        return f"{number_type} linear"
    size = "x".join(str(of) for of in call.weight[2:])
    channels = call.input[1]
    if call.groups > 1:
        size += ", depthwise" if call.groups == channels else ", grouped"
    elif channels <= FEW_CHANNELS:
        size += f", {channels} channels"
    return f"{number_type} convolution {size}"


def note_modules(layers: Sequence[Layer], model: Any) -> None:
    """Where layers come from, if the file says so and each of them runs exactly once."""
    try:
        ops = jitquant.coverage(model).ops
    except jitquant.JitQuantError:
        return
    modules = [op.module for op in ops if op.method == "forward" and FLOAT_LAYER.match(op.op)]
    weighted = [layer for layer in layers if layer.weight is not None]
    if len(modules) == len(weighted):
        for layer, module in zip(weighted, modules, strict=True):
            layer.module = module


def note_shares(layers: Sequence[Layer], limit: Limit | None) -> None:
    for layer in layers:
        if limit is not None and layer.macs:
            layer.share_of_limit = limit.share(layer.macs, layer.ms)


def layer_table(layers: Sequence[Layer]) -> str:
    total = sum(layer.ms for layer in layers)
    rows = [
        (
            layer.op,
            layer.module,
            shape_text(layer.input),
            shape_text(layer.output),
            shape_text(layer.weight),
            number(layer.macs / 1e6 if layer.macs else None, ".2f"),
            f"{layer.ms:.3f}",
            f"{layer.ms / total:.1%}",
            number(layer.share_of_limit, ".0%"),
        )
        for layer in layers
    ]
    headers = (
        *("op", "module", "input", "output", "weight"),
        *("MACs (M)", "ms", "of the time", "of the limit"),
    )
    return markdown(headers, rows, left=5)


def kind_table(layers: Sequence[Layer], limit: Limit | None) -> str:
    """Sums over the layers of each kind, the slowest kind first."""
    total = sum(layer.ms for layer in layers)
    kinds: dict[str, list[Layer]] = {}
    for layer in layers:
        kinds.setdefault(layer.kind, []).append(layer)
    sums = [
        (kind, len(of), sum(layer.macs for layer in of), sum(layer.ms for layer in of))
        for kind, of in kinds.items()
    ]
    sums.append(("all", len(layers), sum(layer.macs for layer in layers), total))
    rows = [
        (
            kind,
            str(count),
            number(macs / 1e6 if macs else None, ".1f"),
            f"{ms:.3f}",
            f"{ms / total:.1%}",
            number(limit.share(macs, ms) if limit is not None and macs else None, ".0%"),
        )
        for kind, count, macs, ms in sorted(sums, key=lambda of: (of[0] == "all", -of[3]))
    ]
    headers = ("kind", "calls", "MACs (M)", "ms", "of the time", "of the limit")
    return markdown(headers, rows)


def shape_text(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else "x".join(str(size) for size in shape)


if __name__ == "__main__":
    main()
