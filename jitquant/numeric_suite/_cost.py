"""Size and latency of models."""

import io
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from jitquant import _batches

__all__ = ["Cost", "costs"]

_SECONDS = 2.0
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


def costs(models: list[torch.jit.ScriptModule], batch: Any) -> list[Cost]:
    """Measure models on a batch; they take turns, for 2 seconds or 5 rounds after 2 others."""
    times: list[list[float]] = [[] for _ in models]
    with torch.no_grad():
        for _ in range(2):
            for model in models:
                _batches.run(model, batch, "the first batch")
        end = time.perf_counter() + _SECONDS
        while len(times[0]) < _LEAST_RUNS or time.perf_counter() < end:
            for model, seen in zip(models, times, strict=True):
                start = time.perf_counter()
                _batches.run(model, batch, "the first batch")
                seen.append(time.perf_counter() - start)
    return [
        Cost(_size(model), 1000 * statistics.median(seen), len(seen), torch.get_num_threads())
        for model, seen in zip(models, times, strict=True)
    ]


def _size(model: torch.jit.ScriptModule) -> int:
    buffer = io.BytesIO()
    torch.jit.save(model, buffer)
    return buffer.getbuffer().nbytes
