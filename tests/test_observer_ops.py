"""The C++ ops behind the observers: what they count, whatever the strides, threads and order."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from jitquant.observers import HistogramObserver, MinMaxObserver

State = tuple[list[int], int, int, int, float, float]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def observed(*batches: Tensor, bins: int = 2048) -> HistogramObserver:
    observer = HistogramObserver(bins=bins)
    for batch in batches:
        observer(batch)
    return observer


def state(observer: HistogramObserver) -> State:
    counts: list[int] = observer.histogram.tolist()
    extremes = (observer.min_val.item(), observer.max_val.item())
    return (counts, observer.exponent, observer.offset, observer.zeros, *extremes)


def expected(x: Tensor, bins: int = 2048) -> State:
    """Straight from the definition, in float64."""
    x = x.double().flatten()
    low, high = x.min().item(), x.max().item()
    exponent = -120
    while (
        math.floor(high / 2.0**exponent) - math.floor(low / 2.0**exponent) >= 2 * bins
        or max(abs(low), abs(high)) / 2.0**exponent > 2**22
    ):
        exponent += 1
    first, last = math.floor(low / 2.0**exponent), math.floor(high / 2.0**exponent)
    offset = first - (2 * bins - (last - first + 1)) // 2
    nonzero = x[x != 0]
    indices = torch.floor(nonzero / 2.0**exponent).long() - offset
    counts = torch.bincount(indices, minlength=2 * bins).tolist()
    return counts, exponent, offset, x.numel() - nonzero.numel(), low, high


VALUES: dict[str, Callable[[], Tensor]] = {
    "normal": lambda: randn(50_000),
    "relu": lambda: randn(50_000).relu(),
    "few": lambda: randn(13),
    "one": lambda: torch.tensor([5.0]),
    "zeros": lambda: torch.zeros(17),
    "far from zero": lambda: randn(50_000) * 1e-3 + 1e3,
    "far beyond the last digit": lambda: randn(1_000) * 1e-3 + 1e7,
    "tiny": lambda: randn(1_000) * 1e-38,
    "below float32's normal range": lambda: torch.tensor([1e-42, -3e-44, 0.0] * 10),
    "huge": lambda: randn(1_000).clamp(-1, 1) * 3.4e38,
    "edges of bins": lambda: torch.arange(-64, 65) / 32,
    "outlier at the end": lambda: torch.cat([randn(40_000) * 1e-6, torch.tensor([1e6])]),
}


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("bins", [256, 2048])
def test_counts_are_those_of_the_definition(values: str, bins: int) -> None:
    x = VALUES[values]()
    assert state(observed(x, bins=bins)) == expected(x, bins)


@pytest.mark.parametrize("values", VALUES)
def test_order_and_pieces_do_not_matter(values: str) -> None:
    """Single values take the plain loops, long rows those of AVX2 where the CPU has it."""
    x = VALUES[values]()
    shuffled = x[torch.randperm(x.numel(), generator=torch.Generator().manual_seed(1))]
    whole = state(observed(x))
    assert state(observed(*shuffled.split(777))) == whole
    if x.numel() <= 1_000:
        assert state(observed(*shuffled.split(1))) == whole


@pytest.mark.parametrize("values", ["normal", "relu", "outlier at the end"])
def test_at_least_the_bins_asked_for_are_in_use(values: str) -> None:
    observer = observed(VALUES[values](), bins=512)
    width = 2.0**observer.exponent
    assert 512 <= (observer.max_val.item() - observer.min_val.item()) / width <= 1024


@pytest.mark.parametrize("kind", [HistogramObserver, MinMaxObserver])
def test_number_of_threads_does_not_matter(kind: type[MinMaxObserver | HistogramObserver]) -> None:
    x = randn(700_001).relu() * 10
    x[400_000] = 1e4
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            observer: Any = kind()
            observer(x), observer(x * 2)
            found.append([tensor.tolist() for tensor in observer.state()])
    finally:
        torch.set_num_threads(threads)
    assert all(each == found[0] for each in found)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT,
    "some channels": lambda x: x[:, 1:3],
    "some channels of channels last": lambda x: x.contiguous(memory_format=torch.channels_last)[:, 1:3],
    "every other column": lambda x: x[..., ::2],
    "expanded": lambda x: x[:, :, :1].expand(-1, -1, 7, -1),
    "expanded innermost": lambda x: x[..., :1].expand(-1, -1, -1, 3),
    "unfolded": lambda x: x.unfold(3, 3, 1),
    "scalar": lambda x: x[0, 0, 0, 0],
    "float64": lambda x: x.double(),
    "strided float64": lambda x: x.double()[..., ::2],
    "bfloat16": lambda x: x.bfloat16(),
    "float16": lambda x: x.half().mT,
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", [5, 300])
def test_every_value_is_read_once_whatever_the_strides(layout: str, width: int) -> None:
    x = LAYOUTS[layout](randn(2, 4, 6, width))
    assert state(observed(x)) == expected(x.float())


def test_views_of_imaginary_parts_are_read_with_their_sign() -> None:
    """Such a view is negated when it is read, not in memory."""
    x = torch.complex(randn(9), randn(9, seed=1)).conj().imag
    assert x.is_neg()
    assert state(observed(x)) == expected(x)


@pytest.mark.parametrize("kind", [HistogramObserver, MinMaxObserver])
@pytest.mark.parametrize("layout", ["channels last", "some channels", "every other column"])
def test_no_copy_of_the_activation_is_made(
    kind: type[MinMaxObserver | HistogramObserver], layout: str
) -> None:
    x = LAYOUTS[layout](randn(1, 4, 512, 512))
    observer = kind()
    observer(x)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        observer(x)
    allocated = [event.self_cpu_memory_usage for event in profiler.events()]
    assert max(allocated) < 100_000  # the histogram takes 32,768 bytes, x from 2 to 4 MB


def test_tensors_that_are_not_strided_are_refused() -> None:
    with pytest.raises(RuntimeError, match="takes strided floating-point tensors on the CPU, got"):
        MinMaxObserver()(torch.eye(3).to_sparse())


def test_batch_that_is_not_finite_leaves_the_counts_alone() -> None:
    """Also where thousands of finite values come before."""
    x = randn(100_000)
    observer = observed(x)
    for bad in (math.nan, math.inf, -math.inf):
        poisoned = x * 100
        poisoned[-1] = bad
        observer(poisoned)
        assert state(observer) == expected(x)


def test_more_values_than_a_float32_can_count() -> None:
    observer = observed(torch.tensor([0.0, 1.0]), torch.tensor(0.5).expand(2**24 + 10), bins=256)
    assert int(observer.histogram.sum()) == 2**24 + 11


@pytest.mark.parametrize("place", [0, 7, 15, 16, 1030, 1999])
def test_nan_is_found_wherever_it_is(place: int) -> None:
    x = torch.ones(2000)
    x[place] = math.nan
    low, high, nan, inf = torch.ops.jitquant.min_max(x)
    assert (float(low), float(high), nan, inf) == (1.0, 1.0, True, False)


@pytest.mark.parametrize("kwargs", [{}, {"qscheme": torch.per_tensor_symmetric}], ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 13, 5_000])
def test_best_range_has_the_least_integral_of_squared_errors(
    count: int, kwargs: dict[str, Any]
) -> None:
    """Against the midpoint rule with 4000 points in each bin; few values end within a vector."""
    observer = HistogramObserver(bins=256, **kwargs)
    observer(randn(count) + 0.1)
    low, high = observer.min_val.reshape(1), observer.max_val.reshape(1)
    lows, highs = low * torch.linspace(0.5, 1.1, 7), high * torch.linspace(1.2, 0.3, 7)
    chosen = torch.cat(
        torch.ops.jitquant.best_range(
            lows,
            highs,
            observer.histogram,
            low,
            high,
            observer.exponent,
            observer.offset,
            observer.quant_min,
            observer.quant_max,
            observer.eps,
            observer.symmetric,
            observer.symmetric_zero_point,
        )
    )
    errors = [
        integral(observer, *observer._qparams(a, b)) for a, b in zip(lows, highs, strict=True)
    ]
    best = min(range(7), key=errors.__getitem__)
    assert chosen.tolist() == [lows[best].item(), highs[best].item()]


def integral(observer: HistogramObserver, scale: Tensor, zero_point: Tensor) -> float:
    width = 2.0**observer.exponent
    bins = observer.histogram.nonzero().flatten()
    inside = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    x = ((bins + observer.offset).unsqueeze(1) + inside) * width
    q = torch.clamp(torch.round(x / scale.double()) + zero_point, 0, 255)
    squares = ((q - zero_point) * scale.double() - x) ** 2
    return float(squares.mean(1) @ observer.histogram[bins].double())


def test_best_range_needs_pairs() -> None:
    one, two, counts = torch.ones(1), torch.ones(2), torch.ones(512, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="as many lows as highs, got 1 and 2"):
        torch.ops.jitquant.best_range(one, two, counts, -one, one, 0, -1, 0, 255, 1e-6, False, 0)
