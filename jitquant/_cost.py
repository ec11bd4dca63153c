"""Size and latency of models."""

import io
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from jitquant import _batches
from jitquant._engine import engine_set

__all__ = ["Cost", "costs", "reloaded"]

_FIRST_RUNS = 2  # not counted: torch optimizes graphs then
_LEAST_RUNS = 5


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        size: of its file, in bytes.
        latency: median of `runs` runs, in ms.
        runs: how many.
        threads: of torch.
    """

    size: int
    latency: float
    runs: int
    threads: int


def costs(
    models: Sequence[torch.jit.ScriptModule],
    batch: Any,
    seconds: float = 2.0,
    engines: Sequence[str] | None = None,
) -> list[Cost]:
    """Measure models on a batch, for so long or 5 rounds, whichever is longer, after 2 others.

    They take turns. What runs is loaded anew, so that the state of the models stays.

    Args:
        models: float or converted ones.
        batch: of each run a copy.
        seconds: for all models together.
        engines: which quantized engine is set while each of them is loaded and runs; None leaves
            the one that is set.
    """
    engines = engines or [str(torch.backends.quantized.engine)] * len(models)
    files = [_file(model) for model in models]
    loaded: list[Any] = []
    for file, engine in zip(files, engines, strict=True):
        with engine_set(engine):
            loaded.append(torch.jit.load(file))
    times: list[list[float]] = [[] for _ in models]

    def run_all() -> None:
        for model, engine, seen in zip(loaded, engines, times, strict=True):
            with engine_set(engine):
                seen.append(_time(model, batch))

    with torch.no_grad():
        for _ in range(_FIRST_RUNS):
            run_all()
        end = time.perf_counter() + seconds
        while len(times[0]) < _FIRST_RUNS + _LEAST_RUNS or time.perf_counter() < end:
            run_all()
    measured = [seen[_FIRST_RUNS:] for seen in times]
    threads = torch.get_num_threads()
    return [
        Cost(file.getbuffer().nbytes, 1000 * statistics.median(seen), len(seen), threads)
        for file, seen in zip(files, measured, strict=True)
    ]


def reloaded(model: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """As from its file, so that the state of the model stays."""
    loaded: torch.jit.ScriptModule = torch.jit.load(_file(model))
    return loaded


def _file(model: torch.jit.ScriptModule) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.jit.save(model, buffer)
    buffer.seek(0)
    return buffer


def _time(model: torch.jit.ScriptModule, batch: Any) -> float:
    """Seconds of one run, without the copy of the batch."""
    own = _batches.copied(batch)
    start = time.perf_counter()
    _batches.run(model, own, "the batch")
    return time.perf_counter() - start
