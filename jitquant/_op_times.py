"""What each op would cost in float: times of its kernels in an int8 and in a float model."""

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.profiler import record_function
from torch.autograd.profiler_legacy import profile

from jitquant import _batches, _state
from jitquant._cost import reloaded

__all__ = ["costs_in_float"]

_CALL = "jitquant: one call"
_LEAST_RUNS = 5
_QUANTIZE, _DEQUANTIZE = "aten::quantize_per_tensor", "aten::dequantize"


@dataclass(frozen=True)
class _Time:
    """Of one op: its name, least time in ms, and the elements of its first input."""

    name: str
    ms: float
    elements: int


def costs_in_float(
    int8: torch.jit.ScriptModule,
    in_float: torch.jit.ScriptModule,
    units: Sequence[int],
    batch: Any,
    seconds: float,
) -> list[float]:
    """What leaving each of these ops float costs, estimated, in ms; negative if it saves time.

    The time of its kernels in the float model, with those of the activations that it absorbed,
    less that of its int8 kernel, and a dequantize and a quantize of as much as it reads. Neighbours
    that are float as well save the latter two. An op whose kernels the profile cannot tell from
    others, such as one of a branch or a loop, costs the mean of the others, 1 if there are none.

    Args:
        int8, in_float: one prepared model, converted with all ops int8, and with `units` float.
        units: which of the ops of forward.
        batch: what both run on.
        seconds: for how long each is profiled; 5 runs at least.
    """
    fast, ours = _times(int8, batch, seconds)
    _, theirs = _times(in_float, batch, seconds)
    per_element = _per_element(fast, _QUANTIZE) + _per_element(fast, _DEQUANTIZE)
    ops = _ops(int8)
    forward = [index for index, op in enumerate(ops) if op.method == "forward"]
    known: dict[int, float] = {}
    for unit in units:
        index = forward[unit]
        own = [at for at in forward if at == index or ops[at].part_of == index]
        if index in ours and index in theirs:
            absorbed = sum(theirs[at].ms for at in own if at in theirs)
            known[unit] = absorbed - ours[index].ms + ours[index].elements * per_element
    mean = sum(known.values()) / len(known) if known else 1.0
    return [known.get(unit, mean) for unit in units]


def _per_element(times: Sequence[_Time], name: str) -> float:
    of_name = [each for each in times if each.name == name]
    elements = sum(each.elements for each in of_name)
    return sum(each.ms for each in of_name) / elements if elements else 0.0


def _times(
    model: torch.jit.ScriptModule, batch: Any, seconds: float
) -> tuple[list[_Time], dict[int, _Time]]:
    """Of all ops in the order that they run, and of the listed ones by their index."""
    runs = _profiled(reloaded(model), batch, seconds)
    if any([event.name for event in run] != [event.name for event in runs[0]] for run in runs):
        return [], {}
    times = [
        _Time(
            events[0].name,
            min(event.time_range.elapsed_us() for event in events) / 1000,
            math.prod(next(iter(events[0].input_shapes), [])),
        )
        for events in zip(*runs, strict=True)
    ]
    by_name: dict[str, list[_Time]] = defaultdict(list)
    for each in times:
        by_name[each.name].append(each)
    found = {}
    for index, op in enumerate(_ops(model)):
        ran = by_name[op.value_kind]
        if len(op.value_nodes) == 1 and len(ran) == _nodes(model, op.value_kind):
            found[index] = ran[op.value_nodes[0]]
    return times, found


def _ops(model: torch.jit.ScriptModule) -> tuple[_state.OpState, ...]:
    state = _state.read(model)
    assert state is not None, "converted just now"
    return state.ops


def _nodes(model: torch.jit.ScriptModule, kind: str) -> int:
    graph: Any = model.inlined_graph
    return len(graph.findAllNodes(kind, True))


def _profiled(model: torch.jit.ScriptModule, batch: Any, seconds: float) -> list[list[Any]]:
    """The ops of each of several runs."""
    with torch.no_grad():
        for _ in range(2):
            _batches.run(model, _batches.copied(batch), "the first batch")
        runs: list[list[Any]] = []
        end = time.perf_counter() + seconds
        while len(runs) < _LEAST_RUNS or time.perf_counter() < end:
            own = _batches.copied(batch)
            # The other profiler writes to stderr when it starts.
            with profile(record_shapes=True) as profiler, record_function(_CALL):
                _batches.run(model, own, "the first batch")
            call = next(event for event in profiler.function_events if event.name == _CALL)
            runs.append(_ops_of(call))
    return runs


def _ops_of(event: Any) -> list[Any]:
    """What the interpreter runs, without what that runs."""
    found: list[Any] = []
    for child in sorted(event.cpu_children, key=lambda of: of.time_range.start):
        found += [child] if "::" in child.name else _ops_of(child)
    return found
