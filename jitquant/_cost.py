"""Size and latency of models."""

import io
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from jitquant import _batches

__all__ = ["Cost", "costs"]

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


def costs(models: list[torch.jit.ScriptModule], batch: Any, seconds: float = 2.0) -> list[Cost]:
    """Measure models on a batch, for so long or 5 rounds, whichever is longer, after 2 others.

    They take turns. What runs is loaded anew, so that the state of the models stays.
    """
    files = [_file(model) for model in models]
    loaded: list[Any] = [torch.jit.load(file) for file in files]
    times: list[list[float]] = [[] for _ in models]
    with torch.no_grad():
        for model in loaded * 2:
            _time(model, batch)
        end = time.perf_counter() + seconds
        while len(times[0]) < _LEAST_RUNS or time.perf_counter() < end:
            for model, seen in zip(loaded, times, strict=True):
                seen.append(_time(model, batch))
    threads = torch.get_num_threads()
    return [
        Cost(file.getbuffer().nbytes, 1000 * statistics.median(seen), len(seen), threads)
        for file, seen in zip(files, times, strict=True)
    ]


def _file(model: torch.jit.ScriptModule) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.jit.save(model, buffer)
    buffer.seek(0)
    return buffer


def _time(model: torch.jit.ScriptModule, batch: Any) -> float:
    """Seconds of one run, without the copy of the batch."""
    own = _batches.copied(batch)
    start = time.perf_counter()
    _batches.run(model, own, "the first batch")
    return time.perf_counter() - start
