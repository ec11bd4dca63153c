"""tutorials/timing.py: calls take turns, warm-up does not count, percentiles are those of times."""

import time

import pytest
import torch

from tutorials.timing import Times, latency_ms, take_turns, timed


def test_calls_take_turns_and_each_turn_starts_with_another() -> None:
    order: list[str] = []
    times = take_turns({name: lambda n=name: order.append(n) for name in "abc"}, runs=3, warmup=1)  # type: ignore[misc]
    assert "".join(order) == "abcbcacababc"
    assert {name: len(of.ms) for name, of in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_warmup_does_not_count() -> None:
    pauses = iter([0.05, 0.0, 0.0])
    times = take_turns({"call": lambda: time.sleep(next(pauses))}, runs=2, warmup=1)
    assert max(times["call"].ms) < 50


def test_nothing_to_time() -> None:
    assert take_turns({}) == {}


def test_statistics_of_times() -> None:
    times = Times((4.0, 1.0, 2.0, 13.0))
    assert (times.median, times.least, times.mean) == (3.0, 1.0, 5.0)


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1.0), (1, 1.0), (50, 50.0), (90, 90.0), (99, 99.0), (100, 100.0)]
)
def test_percentiles_are_nearest_ranks(percent: int, expected: float) -> None:
    assert Times(tuple(float(ms) for ms in range(100, 0, -1))).percentile(percent) == expected


def test_timed_gives_the_output_and_milliseconds() -> None:
    def call() -> str:
        time.sleep(0.01)
        return "output"

    output, ms = timed(call)
    assert output == "output"
    assert 10 <= ms < 1000


def test_latency_is_measured_without_gradients_on_the_given_input() -> None:
    seen = []

    def model(x: torch.Tensor) -> torch.Tensor:
        seen.append((x, torch.is_grad_enabled()))
        return x

    x = torch.ones(2)
    assert latency_ms({"model": model}, x, runs=2, warmup=1)["model"] > 0
    assert [(value is x, grad) for value, grad in seen] == [(True, False)] * 3
