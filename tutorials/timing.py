"""How the tutorials and benchmarks take times: everything that is compared takes turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

Model = Callable[[torch.Tensor], torch.Tensor]
Output = TypeVar("Output")


@dataclass(frozen=True)
class Times:
    """Times of repeated calls.

    Attributes:
        ms: of each call, in ms, in the order that they ran.
    """

    ms: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.ms)

    @property
    def least(self) -> float:
        return min(self.ms)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.ms)

    def percentile(self, percent: int) -> float:
        """The time, in ms, that `percent` % of the calls do not exceed (nearest rank)."""
        rank = -(-percent * len(self.ms) // 100)  # rounded up
        return sorted(self.ms)[max(rank, 1) - 1]


def take_turns(
    calls: Mapping[str, Callable[[], object]], runs: int = 50, warmup: int = 10
) -> dict[str, Times]:
    """Times of each call, which take turns: whatever else the machine does slows all of them alike.

    The first `warmup` turns do not count. Each turn starts with another call than the one before,
    so that none always finds the caches as the same other one leaves them.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(warmup + runs):
        first = turn % max(len(names), 1)
        for name in names[first:] + names[:first]:
            _, ms = timed(calls[name])
            if turn >= warmup:
                times[name].append(ms)
    return {name: Times(tuple(values)) for name, values in times.items()}


def timed(call: Callable[[], Output]) -> tuple[Output, float]:
    """What the call returns, and its time in ms."""
    start = time.perf_counter()
    output = call()
    return output, (time.perf_counter() - start) * 1e3


def latency_ms(
    models: Mapping[str, Model], x: torch.Tensor, runs: int = 50, warmup: int = 10
) -> dict[str, float]:
    """The median time of one call without gradients, in ms, for each model; they take turns.

    TorchScript still optimizes in the first calls, which therefore do not count.
    """

    def call(model: Model) -> Callable[[], object]:
        return lambda: model(x)

    with torch.no_grad():
        times = take_turns({name: call(model) for name, model in models.items()}, runs, warmup)
    return {name: of.median for name, of in times.items()}
