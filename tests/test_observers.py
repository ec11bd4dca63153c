"""Observers: the record they keep, their qparams, and the clipping search of HistogramObserver."""

import copy
import io
import math
import re
import time
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from jitquant.errors import JitQuantTypeError, JitQuantValueError
from jitquant.observers import (
    EntropyObserver,
    FixedQParamsObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    MSEObserver,
    NoopObserver,
    Observer,
    ObserverFactory,
    PercentileObserver,
    PerChannelMinMaxObserver,
    PerChannelMSEObserver,
    PlaceholderObserver,
    RecordingObserver,
    ShapeRecorder,
    merge,
)

SYMMETRIC = torch.per_tensor_symmetric
PER_CHANNEL_SYMMETRIC = torch.per_channel_symmetric
FLOAT32, FLOAT64, INT64 = 6, 7, 4

STATISTICAL: list[ObserverFactory] = [
    MinMaxObserver.with_args(),
    MovingAverageMinMaxObserver.with_args(averaging_constant=0.25),
    PerChannelMinMaxObserver.with_args(ch_axis=1),
    MovingAveragePerChannelMinMaxObserver.with_args(averaging_constant=0.25, ch_axis=1),
    HistogramObserver.with_args(),
    HistogramObserver.with_args(dtype=torch.qint8, qscheme=SYMMETRIC),
    MSEObserver.with_args(),
    PerChannelMSEObserver.with_args(ch_axis=1),
    PerChannelMSEObserver.with_args(ch_axis=1, dtype=torch.qint8, qscheme=PER_CHANNEL_SYMMETRIC),
    PercentileObserver.with_args(percentile=95.0),
    PercentileObserver.with_args(dtype=torch.qint8, qscheme=SYMMETRIC),
    EntropyObserver.with_args(),
    EntropyObserver.with_args(dtype=torch.qint8, qscheme=SYMMETRIC),
    RecordingObserver.with_args(),
]
ALL = [*STATISTICAL, FixedQParamsObserver.with_args(scale=0.5, zero_point=3)]
every_observer = pytest.mark.parametrize("factory", ALL, ids=repr)
every_statistical = pytest.mark.parametrize("factory", STATISTICAL, ids=repr)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def script(factory: ObserverFactory) -> Any:
    return torch.jit.script(factory())


def save_and_load(module: Any) -> Any:
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    return torch.jit.load(file)


def record(observer: Any) -> tuple[Any, ...]:
    return (
        observer.calls,
        observer.shapes,
        observer.seen_dtypes,
        observer.saw_nan,
        observer.saw_inf,
    )


NO_RECORD: tuple[Any, ...] = (0, [], [], False, False)


# --- what every observer does ---


@every_observer
def test_scripted_observer_returns_its_input_and_survives_saving(factory: ObserverFactory) -> None:
    observer = script(factory)
    for seed in range(3):
        x = randn(2, 3, 4, 5, seed=seed)
        assert observer(x) is x
    loaded = save_and_load(observer)
    assert record(loaded) == (3, [[2, 3, 4, 5]], [FLOAT32], False, False)
    for got, expected in zip(loaded.calculate_qparams(), observer.calculate_qparams(), strict=True):
        assert torch.equal(got, expected)
    loaded(randn(7, 3) * 50)  # and goes on
    assert record(loaded) == (4, [[2, 3, 4, 5], [7, 3]], [FLOAT32], False, False)


@every_observer
def test_protocol_attributes(factory: ObserverFactory) -> None:
    eager = factory()
    observer = save_and_load(torch.jit.script(eager))
    assert observer.dtype == (12 if eager.dtype == torch.qint8 else 13)
    assert (observer.quant_min, observer.quant_max) == (eager.quant_min, eager.quant_max)
    assert observer.ch_axis == (1 if "PerChannel" in repr(factory) else -1)
    assert record(observer) == NO_RECORD


@every_observer
def test_eager_and_scripted_agree(factory: ObserverFactory) -> None:
    eager, scripted = factory(), script(factory)
    for seed in range(3):
        x = randn(4, 3, 5, seed=seed) * (seed + 1)
        eager(x), scripted(x)
    assert record(eager) == record(scripted)
    for got, expected in zip(eager.calculate_qparams(), scripted.calculate_qparams(), strict=True):
        assert torch.equal(got, expected)


@every_observer
def test_qparams_have_the_promised_form(factory: ObserverFactory) -> None:
    observer = script(factory)
    observer(randn(2, 3, 4))
    scale, zero_point = observer.calculate_qparams()
    channels = 3 if observer.ch_axis >= 0 else 1
    assert (scale.shape, scale.dtype) == ((channels,), torch.float32)
    assert (zero_point.shape, zero_point.dtype) == ((channels,), torch.int64)


@every_observer
def test_first_shape_of_each_rank_is_kept(factory: ObserverFactory) -> None:
    observer = script(factory)
    for shape in ([2, 3], [5, 3], [4, 3, 1], [1, 3]):
        observer(torch.ones(shape))
    assert observer.shapes == [[2, 3], [4, 3, 1]]
    assert observer.calls == 4


@every_observer
def test_empty_tensor_leaves_no_trace(factory: ObserverFactory) -> None:
    observer = script(factory)
    x = torch.empty(0, 3)
    assert observer(x) is x
    assert record(observer) == NO_RECORD


@every_observer
def test_integers_leave_their_dtype_and_shape_only(factory: ObserverFactory) -> None:
    observer = script(factory)
    x = torch.arange(6).reshape(2, 3)
    assert observer(x) is x
    assert record(observer) == (0, [[2, 3]], [INT64], False, False)


@every_observer
def test_float64_is_observed_and_named(factory: ObserverFactory) -> None:
    observer, reference = script(factory), script(factory)
    x = randn(2, 3, 4)
    observer(x.double())
    reference(x)
    assert observer.seen_dtypes == [FLOAT64]
    assert torch.equal(observer.calculate_qparams()[0], reference.calculate_qparams()[0])


@every_observer
@pytest.mark.parametrize(
    ("bad", "saw_nan", "saw_inf"),
    [
        ([math.nan], True, False),
        ([math.inf], False, True),
        ([-math.inf], False, True),
        ([math.nan, -math.inf], True, True),
    ],
)
def test_batch_that_is_not_finite_sets_flags_and_is_skipped(
    factory: ObserverFactory, bad: list[float], saw_nan: bool, saw_inf: bool
) -> None:
    observer, reference = script(factory), script(factory)
    x = randn(2, 3, 4)
    poisoned = x.clone() * 100
    for position, value in enumerate(bad):
        poisoned[0, position, 0] = value
    observer(x), observer(poisoned), reference(x)
    assert (observer.saw_nan, observer.saw_inf, observer.calls) == (saw_nan, saw_inf, 2)
    for got, expected in zip(
        observer.calculate_qparams(), reference.calculate_qparams(), strict=True
    ):
        assert torch.equal(got, expected)


def test_float64_beyond_float32_counts_as_infinite() -> None:
    observer = script(MinMaxObserver.with_args())
    observer(torch.tensor([1e300], dtype=torch.float64))
    assert observer.saw_inf


@every_observer
def test_reset_forgets_everything(factory: ObserverFactory) -> None:
    observer, fresh = script(factory), script(factory)
    observer(randn(2, 3, 4) * 100)
    observer(torch.full((1, 3), math.nan))
    observer.reset()
    assert record(observer) == NO_RECORD
    x = randn(4, 3)
    observer(x), fresh(x)
    for got, expected in zip(observer.calculate_qparams(), fresh.calculate_qparams(), strict=True):
        assert torch.equal(got, expected)


@every_statistical
def test_no_data_is_an_error(factory: ObserverFactory) -> None:
    observer = script(factory)
    with pytest.raises(
        torch.jit.Error, match="the observer saw no data: run sample inputs through"
    ):
        observer.calculate_qparams()
    observer(torch.full((1, 3), math.nan))
    with pytest.raises(torch.jit.Error, match="saw only tensors with NaN or infinite values"):
        observer.calculate_qparams()


@every_statistical
def test_no_gradient_is_recorded(factory: ObserverFactory) -> None:
    observer = script(factory)
    x = randn(2, 3, 4).requires_grad_()
    for _ in range(2):
        assert observer(x * 2).requires_grad
    assert not any(tensor.requires_grad for tensor in observer.calculate_qparams())
    assert not any(buffer.requires_grad for buffer in observer.buffers())


@every_statistical
def test_works_in_and_out_of_inference_mode(factory: ObserverFactory) -> None:
    observer, reference = script(factory), script(factory)
    with torch.inference_mode():
        observer(randn(2, 3, 4))
    observer(randn(2, 3, 4, seed=1))
    reference(randn(2, 3, 4)), reference(randn(2, 3, 4, seed=1))
    assert torch.equal(observer.calculate_qparams()[0], reference.calculate_qparams()[0])


@every_statistical
def test_observers_scripted_from_one_module_are_independent(factory: ObserverFactory) -> None:
    eager = factory()
    first, second = torch.jit.script(eager), torch.jit.script(eager)
    first(randn(2, 3))
    assert record(second) == NO_RECORD
    with pytest.raises(torch.jit.Error, match="the observer saw no data"):
        second.calculate_qparams()


@every_statistical
def test_memory_format_does_not_matter(factory: ObserverFactory) -> None:
    x = randn(2, 3, 4, 5)
    plain, channels_last, strided = script(factory), script(factory), script(factory)
    plain(x)
    channels_last(x.contiguous(memory_format=torch.channels_last))
    strided(torch.stack([x, x * 9], dim=-1)[..., 0])
    for other in (channels_last, strided):
        for got, expected in zip(other.calculate_qparams(), plain.calculate_qparams(), strict=True):
            assert torch.equal(got, expected)


# --- qparams equal torch.ao's ---

CUSTOM = {"quant_min": 0, "quant_max": 100}
SAME_AS_TORCH_AO: list[tuple[str, dict[str, Any]]] = [
    ("MinMaxObserver", {}),
    ("MinMaxObserver", {"reduce_range": True}),
    ("MinMaxObserver", {"dtype": torch.qint8, "reduce_range": True}),
    ("MinMaxObserver", {"dtype": torch.qint8}),
    ("MinMaxObserver", {"dtype": torch.qint8, "qscheme": SYMMETRIC}),
    ("MinMaxObserver", {"qscheme": SYMMETRIC}),
    ("MinMaxObserver", {"qscheme": SYMMETRIC, **CUSTOM}),
    ("MinMaxObserver", CUSTOM),
    ("MinMaxObserver", {"eps": 0.25}),
    ("MovingAverageMinMaxObserver", {}),
    ("MovingAverageMinMaxObserver", {"averaging_constant": 0.5, "qscheme": SYMMETRIC}),
    ("PerChannelMinMaxObserver", {}),
    ("PerChannelMinMaxObserver", {"ch_axis": 1}),
    ("PerChannelMinMaxObserver", {"dtype": torch.qint8, "qscheme": PER_CHANNEL_SYMMETRIC}),
    ("MovingAveragePerChannelMinMaxObserver", {"averaging_constant": 0.3, "ch_axis": 2}),
]


@pytest.mark.parametrize(("name", "kwargs"), SAME_AS_TORCH_AO)
@pytest.mark.parametrize("shift", [-3.0, 0.0, 3.0])
def test_qparams_equal_torch_ao(name: str, kwargs: dict[str, Any], shift: float) -> None:
    import torch.ao.quantization.observer as torch_ao

    import jitquant.observers as ours

    observer: Any = torch.jit.script(getattr(ours, name)(**kwargs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = getattr(torch_ao, name)(**kwargs)
    for seed in range(4):
        x = randn(4, 3, 5, seed=seed) * (seed + 1) + shift
        observer(x), reference(x)
    scale, zero_point = observer.calculate_qparams()
    expected_scale, expected_zero_point = reference.calculate_qparams()
    torch.testing.assert_close(scale, expected_scale, rtol=1e-6, atol=0)
    assert zero_point.tolist() == expected_zero_point.tolist()


def test_range_whose_width_overflows_float32_gives_the_right_scale() -> None:
    for cls in (MinMaxObserver, HistogramObserver):
        observer: Any = cls()
        observer(torch.tensor([-3e38, 3e38]))
        scale, zero_point = observer.calculate_qparams()
        assert scale.item() == pytest.approx(6e38 / 255, rel=0.06)
        assert zero_point.item() in (127, 128)


def test_per_channel_on_a_vector_is_per_element() -> None:
    observer = PerChannelMinMaxObserver(dtype=torch.qint8, qscheme=PER_CHANNEL_SYMMETRIC)
    observer(torch.tensor([1.0, -2.0]))
    assert observer.calculate_qparams()[0].tolist() == pytest.approx([1 / 127.5, 2 / 127.5])


def test_per_channel_refuses_other_channels_and_missing_axes() -> None:
    observer = script(PerChannelMinMaxObserver.with_args(ch_axis=1))
    observer(randn(2, 3))
    with pytest.raises(torch.jit.Error, match="observer of 3 channels got a tensor with 4"):
        observer(randn(2, 4))
    with pytest.raises(torch.jit.Error, match="observer of axis 1 got a tensor with 1 axes"):
        observer(randn(3))


def test_fixed_qparams_need_no_data() -> None:
    scale, zero_point = script(
        FixedQParamsObserver.with_args(scale=0.5, zero_point=3)
    ).calculate_qparams()
    assert (scale.tolist(), zero_point.tolist()) == ([0.5], [3])


@pytest.mark.parametrize("kind", [ShapeRecorder, NoopObserver, PlaceholderObserver])
def test_observers_without_qparams(kind: type[ShapeRecorder]) -> None:
    observer = save_and_load(script(kind.with_args()))
    observer(torch.full((2, 3), math.nan))
    assert record(observer) == (1, [[2, 3]], [FLOAT32], False, False)
    assert observer.dtype == FLOAT32
    with pytest.raises(
        torch.jit.Error, match="this observer has no qparams: it records shapes only"
    ):
        observer.calculate_qparams()
    observer.reset()
    assert record(observer) == NO_RECORD


# --- HistogramObserver ---


def with_outliers(count: int, times: float) -> Tensor:
    x = randn(100_000)
    x[:count] *= times
    return x


def exponential(count: int) -> Tensor:
    return -torch.log1p(-rand(count))


CALIBRATION: dict[str, list[Tensor]] = {
    "normal": [randn(100_000)],
    "few_normal": [randn(200)],
    "relu": [randn(100_000).relu()],
    "laplace": [exponential(100_000) * randn(100_000, seed=1).sign()],
    "uniform": [rand(100_000)],
    "uniform_two_sided": [rand(100_000) * 3 - 1],
    "outliers_10": [with_outliers(20, 10)],
    "outliers_100": [with_outliers(5, 100)],
    "outliers_1000": [with_outliers(3, 1000)],
    "cauchy": [randn(100_000) / randn(100_000, seed=1)],
    "exponential": [exponential(100_000)],
    "negative_exponential": [-exponential(100_000)],
    "lognormal": [(randn(100_000) * 1.5).exp()],
    "hardswish": [torch.nn.functional.hardswish(randn(100_000) * 3)],
    "far_from_zero": [randn(10_000) * 0.1 + 10],
    "growing": [randn(5_000, seed=i) * (i + 1) for i in range(20)],
    "growing_relu": [randn(5_000, seed=i).relu() * (1 + i / 10) for i in range(50)],
    "moving": [randn(5_000, seed=i) + i for i in range(20)],
    "constant": [torch.full((100,), 5.0)],
    "negative_constant": [torch.full((100,), -0.3)],
    "zeros": [torch.zeros(100)],
    "constant_then_normal": [torch.full((10,), 0.5), randn(10_000)],
    "scalar": [torch.tensor(0.7)],
    "scalars": [torch.tensor(value) for value in (0.7, 0.9, 0.2)],
    "two_values": [torch.tensor([1.0, 2.0] * 50)],
    "binary": [(rand(10_000) > 0.5).float()],
    "integers": [(rand(10_000) * 20 - 10).floor()],
}


def squared_error(
    x: Tensor, qparams: tuple[Tensor, Tensor], low: int = 0, high: int = 255
) -> float:
    scale, zero_point = qparams[0].double(), qparams[1].double()
    q = (torch.round(x / scale) + zero_point).clamp(low, high)
    return float(((q - zero_point) * scale - x).square().sum())


@pytest.mark.parametrize("kwargs", [{}, {"dtype": torch.qint8, "qscheme": SYMMETRIC}], ids=str)
@pytest.mark.parametrize("data", CALIBRATION)
def test_histogram_error_is_no_worse_than_torch_ao(data: str, kwargs: dict[str, Any]) -> None:
    from torch.ao.quantization.observer import HistogramObserver as TorchAoHistogramObserver

    batches = CALIBRATION[data]
    observer, reference = (
        script(HistogramObserver.with_args(**kwargs)),
        TorchAoHistogramObserver(**kwargs),
    )
    for batch in batches:
        observer(batch), reference(batch)
    x = torch.cat([batch.flatten() for batch in batches]).double()
    levels = (observer.quant_min, observer.quant_max)
    ours = squared_error(x, observer.calculate_qparams(), *levels)
    theirs = squared_error(x, reference.calculate_qparams(), *levels)
    rounding = 1e-12 * float(x.square().sum())
    assert ours <= 1.02 * theirs + rounding


def test_histogram_clips_outliers_that_min_max_keeps() -> None:
    x = with_outliers(20, 50)
    histogram, min_max = HistogramObserver(), MinMaxObserver()
    histogram(x), min_max(x)
    ours = squared_error(x.double(), histogram.calculate_qparams())
    assert ours < 0.9 * squared_error(x.double(), min_max.calculate_qparams())


@pytest.mark.parametrize(
    ("sign", "kwargs"),
    [(1, {}), (-1, {}), (1, {"dtype": torch.qint8, "qscheme": SYMMETRIC})],
    ids=str,
)
def test_range_is_widened_when_few_values_then_lie_on_the_grid(
    sign: int, kwargs: dict[str, Any]
) -> None:
    x = torch.tensor([1.0, 2.0] * 50) * sign
    histogram, min_max = HistogramObserver(**kwargs), MinMaxObserver(**kwargs)
    histogram(x), min_max(x)
    levels = (histogram.quant_min, histogram.quant_max)
    ours = squared_error(x.double(), histogram.calculate_qparams(), *levels)
    assert ours < 0.1 * squared_error(x.double(), min_max.calculate_qparams(), *levels)


def test_one_sided_data_keeps_zero_point_at_its_end() -> None:
    for sign, expected in ((1, 0), (-1, 255)):
        observer = HistogramObserver()
        observer(exponential(10_000) * sign)
        assert observer.calculate_qparams()[1].item() == expected


@pytest.mark.parametrize("levels", [(0, 255), (0, 127), (0, 15)])
def test_histogram_search_is_near_the_best_range(levels: tuple[int, int]) -> None:
    """Against 400 upper bounds tried on the data themselves."""
    x = exponential(20_000)
    observer = HistogramObserver(quant_min=levels[0], quant_max=levels[1])
    observer(x)
    ours = squared_error(x.double(), observer.calculate_qparams(), *levels)
    bounds = x.max() * torch.linspace(0.05, 1, 400)
    zero = torch.zeros(1)
    best = min(
        squared_error(x.double(), ((b / levels[1]).reshape(1), zero), *levels) for b in bounds
    )
    assert ours <= 1.01 * best


@pytest.mark.parametrize("scheme", [torch.per_tensor_affine, SYMMETRIC], ids=str)
def test_histogram_qparams_take_less_than_5_ms(scheme: torch.qscheme) -> None:
    observer = script(HistogramObserver.with_args(qscheme=scheme))
    observer(randn(100_000))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = []
    for _ in range(20):  # CPU time of one thread: a busy machine does not count
        start = time.process_time()
        observer.calculate_qparams()
        times.append((time.process_time() - start) * 1e3)
    torch.set_num_threads(threads)
    assert min(times) < 5


# --- other rules for the range ---


@pytest.mark.parametrize(
    "data", ["normal", "relu", "outliers_100", "negative_exponential", "laplace"]
)
@pytest.mark.parametrize("percentile", [75.0, 99.0, 99.9, 100.0])
def test_percentile_is_that_of_the_values(data: str, percentile: float) -> None:
    """Within one bin, and the next value, of which there may be few."""
    (x,) = CALIBRATION[data]
    observer = script(PercentileObserver.with_args(percentile=percentile))
    observer(x)
    scale, zero_point = observer.calculate_qparams()
    low = -zero_point.item() * scale.item()
    share = torch.tensor([1 - percentile / 100, percentile / 100], dtype=torch.float64)
    expected = torch.quantile(x.double(), share)
    bin_and_step = 2.0**observer.exponent + scale.item()
    assert low == pytest.approx(min(expected[0].item(), 0), abs=bin_and_step)
    assert low + 255 * scale.item() == pytest.approx(max(expected[1].item(), 0), abs=bin_and_step)


def test_symmetric_percentile_is_that_of_the_magnitudes() -> None:
    x = torch.cat([randn(30_000), torch.zeros(10_000), -3 * randn(10_000, seed=1).abs()])
    observer = script(
        PercentileObserver.with_args(percentile=99.0, dtype=torch.qint8, qscheme=SYMMETRIC)
    )
    observer(x)
    bound = observer.calculate_qparams()[0].item() * 127.5
    expected = torch.quantile(x.abs().double(), 0.99).item()
    assert bound == pytest.approx(expected, abs=2 * 2.0**observer.exponent)


def test_percentile_counts_zeros() -> None:
    x = torch.cat([torch.zeros(980), torch.linspace(1, 2, 20)])
    for percentile, expected in ((97.0, 0.0), (99.0, 1.5)):
        observer = PercentileObserver(percentile=percentile, eps=1e-6)
        observer(x)
        assert observer.calculate_qparams()[0].item() * 255 == pytest.approx(expected, abs=0.03)


def test_mse_is_the_best_of_its_ranges() -> None:
    """Tried on the values themselves."""
    x = with_outliers(20, 10)
    observer = MSEObserver()
    observer(x)
    low, high = x.min().reshape(1), x.max().reshape(1)
    errors = [
        squared_error(x.double(), observer._qparams(low * f, high * f))
        for f in torch.linspace(0.01, 1, 100)
    ]
    ours = squared_error(x.double(), observer.calculate_qparams())
    assert ours <= 1.001 * min(errors) < 0.9 * errors[-1]


def test_mse_of_symmetric_ranges() -> None:
    x = with_outliers(20, 10).abs()
    observer = MSEObserver(dtype=torch.qint8, qscheme=SYMMETRIC)
    observer(x)
    scale, zero_point = observer.calculate_qparams()
    assert zero_point.item() == 0 and scale.item() * 127.5 < 0.7 * x.max().item()


@pytest.mark.parametrize("kwargs", [{}, {"dtype": torch.qint8, "qscheme": SYMMETRIC}], ids=str)
def test_entropy_clips_outliers_and_keeps_what_has_none(kwargs: dict[str, Any]) -> None:
    for x, low, high in (
        (with_outliers(20, 50), 0.03, 0.3),
        (rand(100_000) * 2 - 1, 0.98, 1.01),
    ):
        observer = script(EntropyObserver.with_args(**kwargs))
        observer(x)
        width = observer.calculate_qparams()[0].item() * 255
        assert low < width / (2 * x.abs().max().item()) < high


def test_entropy_of_one_sided_values_uses_all_steps() -> None:
    observer = EntropyObserver()
    observer(exponential(100_000))
    assert observer.calculate_qparams()[1].item() == 0


def test_recording_keeps_copies_of_what_it_saw() -> None:
    observer = script(RecordingObserver.with_args())
    x, y = randn(2, 3), torch.tensor([math.nan])
    expected = x.clone()
    observer(x), observer(torch.arange(3)), observer(y)
    x.zero_()
    values = save_and_load(observer).get_tensor_value()
    assert len(values) == 2
    assert torch.equal(values[0], expected) and torch.isnan(values[1]).all()
    observer.reset()
    assert observer.get_tensor_value() == []


# --- merging ---

EXACT = [factory for factory in ALL if "MovingAverage" not in repr(factory)]


def statistics(observer: Any) -> list[str]:
    return [str(tensor.tolist()) for tensor in observer.state()]  # NaN equals itself


@pytest.mark.parametrize("factory", EXACT, ids=repr)
def test_merged_shards_equal_one_observer(factory: ObserverFactory) -> None:
    batches = [randn(2, 3, 5, seed=seed) * (10**seed) for seed in (2, 0, 1, 3)]
    batches.append(torch.full((3, 3), math.nan))
    batches.append(torch.arange(6).reshape(2, 3))
    whole, a, b = script(factory), script(factory), save_and_load(script(factory))
    for batch in batches:
        whole(batch)
    for batch in batches[:2]:
        a(batch)
    for batch in batches[2:]:
        b(batch)
    before = statistics(a), statistics(b)
    merged = merge(a, b)
    assert statistics(merged) == statistics(whole)
    assert record(merged) == record(whole)
    assert (statistics(a), statistics(b)) == before
    for got, expected in zip(merged.calculate_qparams(), whole.calculate_qparams(), strict=True):
        assert torch.equal(got, expected)


@every_observer
def test_merging_with_one_that_saw_nothing_changes_nothing(factory: ObserverFactory) -> None:
    seen, fresh = factory(), factory()
    seen(randn(2, 3))
    for merged in (merge(seen, fresh), merge(fresh, seen)):
        assert statistics(merged) == statistics(seen)


@pytest.mark.parametrize(
    "factory",
    [
        MovingAverageMinMaxObserver.with_args(),
        MovingAveragePerChannelMinMaxObserver.with_args(ch_axis=1),
    ],
    ids=repr,
)
def test_moving_averages_merge_to_their_mean_weighted_by_calls(factory: ObserverFactory) -> None:
    a, b = script(factory), script(factory)
    for _ in range(3):
        a(torch.tensor([[-1.0, 1.0]]).T.expand(2, 4))
    b(torch.tensor([[-3.0, 5.0]]).T.expand(2, 4))
    merged = merge(a, b)
    assert torch.unique(merged.min_val).tolist() == [-1.5]
    assert torch.unique(merged.max_val).tolist() == [2.0]
    assert merged.calls == 4


def test_merge_refuses_what_does_not_fit() -> None:
    for a, b, error, message in (
        (MinMaxObserver(), HistogramObserver(), JitQuantTypeError, "of one class, got MinMaxObserver and HistogramObserver$"),
        (MinMaxObserver(), torch.jit.script(MinMaxObserver()), JitQuantTypeError, "of which one is scripted"),
        (MinMaxObserver(), torch.nn.ReLU(), JitQuantTypeError, "takes two observers, got ReLU"),
        (HistogramObserver(), HistogramObserver(bins=256), JitQuantValueError, "bins is 2048 and 256"),
        (FixedQParamsObserver(1.0, 0), FixedQParamsObserver(2.0, 0), JitQuantValueError, re.escape("scale is [1.0] and [2.0]")),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            merge(a, b)
    four, three = PerChannelMinMaxObserver(), PerChannelMinMaxObserver()
    four(randn(4, 1)), three(randn(3, 1))
    with pytest.raises(RuntimeError, match="observer of 4 channels got a tensor with 3"):
        merge(four, three)


def test_subclass_without_statistics_cannot_be_merged() -> None:
    a, b = SilentObserver(), SilentObserver()
    a(randn(2)), b(randn(2))
    with pytest.raises(NotImplementedError, match="must define _statistics to be merged"):
        merge(a, b)


class SilentObserver(Observer):
    def __init__(self) -> None:
        super().__init__(
            *(torch.quint8, torch.per_tensor_affine, False, None, None, 1e-6, -1),
            qschemes=(torch.per_tensor_affine,),
        )

    def _observe(self, x: Tensor) -> None:
        pass


# --- arguments ---

VALUE_ERRORS: list[tuple[type[Observer], dict[str, Any], str]] = [
    (MinMaxObserver, {"dtype": torch.qint32}, "MinMaxObserver: dtype must be torch.quint8 or torch.qint8, got torch.qint32"),
    (MinMaxObserver, {"qscheme": torch.per_channel_affine}, "MinMaxObserver: qscheme must be torch.per_tensor_affine or torch.per_tensor_symmetric, got torch.per_channel_affine"),
    (PerChannelMinMaxObserver, {"qscheme": SYMMETRIC}, "PerChannelMinMaxObserver: qscheme must be torch.per_channel_affine or torch.per_channel_symmetric, got torch.per_tensor_symmetric"),
    (PerChannelMinMaxObserver, {"ch_axis": -1}, "PerChannelMinMaxObserver: ch_axis must be 0 or more, got -1"),
    (MinMaxObserver, {"quant_min": 0}, "MinMaxObserver: give both quant_min and quant_max or none, got quant_min=0, quant_max=None"),
    (MinMaxObserver, {"quant_min": 9, "quant_max": 9}, "MinMaxObserver: quant_min < quant_max must lie in [0, 255] for torch.quint8, got [9, 9]"),
    (MinMaxObserver, {"quant_min": 0, "quant_max": 256}, "MinMaxObserver: quant_min < quant_max must lie in [0, 255] for torch.quint8, got [0, 256]"),
    (MinMaxObserver, {"quant_min": 1, "quant_max": 255}, "MinMaxObserver: [quant_min, quant_max] must hold 0, got [1, 255]"),
    (MinMaxObserver, {"quant_min": 0, "quant_max": 255, "reduce_range": True}, "MinMaxObserver: reduce_range and quant_min, quant_max exclude each other, got reduce_range=True and [0, 255]"),
    (MinMaxObserver, {"qscheme": SYMMETRIC, "reduce_range": True}, "MinMaxObserver: reduce_range with quint8 and torch.per_tensor_symmetric would put zero point 128 outside of [0, 127]; use quant_min=0, quant_max=127, or qint8"),
    (MinMaxObserver, {"eps": 0.0}, "MinMaxObserver: eps must be positive and finite, got 0.0"),
    (MovingAverageMinMaxObserver, {"averaging_constant": 0}, "MovingAverageMinMaxObserver: averaging_constant must be in (0, 1], got 0"),
    (MovingAveragePerChannelMinMaxObserver, {"averaging_constant": 1.5}, "MovingAveragePerChannelMinMaxObserver: averaging_constant must be in (0, 1], got 1.5"),
    (HistogramObserver, {"bins": 255}, "HistogramObserver: bins must be from 256 to 16384, got 255"),
    (HistogramObserver, {"bins": 16385}, "HistogramObserver: bins must be from 256 to 16384, got 16385"),
    (PercentileObserver, {"percentile": 50}, "PercentileObserver: percentile must be in (50, 100], got 50"),
    (FixedQParamsObserver, {"scale": math.inf, "zero_point": 0}, "FixedQParamsObserver: scale must be positive and finite, got inf"),
    (FixedQParamsObserver, {"scale": 1, "zero_point": 256}, "FixedQParamsObserver: zero_point must be in [0, 255], got 256"),
]  # fmt: skip

TYPE_ERRORS: list[tuple[type[Observer], dict[str, Any], str]] = [
    (MinMaxObserver, {"dtype": "quint8"}, "MinMaxObserver: dtype must be a torch.dtype, got 'quint8'"),
    (MinMaxObserver, {"qscheme": "affine"}, "MinMaxObserver: qscheme must be a torch.qscheme, got 'affine'"),
    (MinMaxObserver, {"reduce_range": 1}, "MinMaxObserver: reduce_range must be a bool, got 1"),
    (MinMaxObserver, {"eps": "1e-7"}, "MinMaxObserver: eps must be a float, got '1e-7'"),
    (MinMaxObserver, {"quant_min": 0.0, "quant_max": 255}, "MinMaxObserver: quant_min and quant_max must be ints, got 0.0, 255"),
    (PerChannelMinMaxObserver, {"ch_axis": True}, "PerChannelMinMaxObserver: ch_axis must be an int, got True"),
    (MovingAverageMinMaxObserver, {"averaging_constant": None}, "MovingAverageMinMaxObserver: averaging_constant must be a float, got None"),
    (HistogramObserver, {"bins": 2048.0}, "HistogramObserver: bins must be an int, got 2048.0"),
    (PercentileObserver, {"percentile": "99"}, "PercentileObserver: percentile must be a float, got '99'"),
    (FixedQParamsObserver, {"scale": "1", "zero_point": 0}, "FixedQParamsObserver: scale must be a float, got '1'"),
    (FixedQParamsObserver, {"scale": 1.0, "zero_point": 0.0}, "FixedQParamsObserver: zero_point must be an int, got 0.0"),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "kwargs", "message"), VALUE_ERRORS, ids=lambda v: str(v)[:40])
def test_arguments_out_of_range(cls: type[Observer], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(JitQuantValueError, match=f"^{re.escape(message)}$"):
        cls(**kwargs)


@pytest.mark.parametrize(("cls", "kwargs", "message"), TYPE_ERRORS, ids=lambda v: str(v)[:40])
def test_arguments_of_the_wrong_type(
    cls: type[Observer], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(JitQuantTypeError, match=f"^{re.escape(message)}$"):
        cls(**kwargs)


# --- factories ---


def test_factory_builds_a_new_observer_each_time() -> None:
    factory = HistogramObserver.with_args(bins=256)
    first, second = factory(), factory()
    assert isinstance(first, HistogramObserver) and first.bins == 256
    assert first is not second


def test_factory_arguments_add_up_and_later_ones_win() -> None:
    factory = MinMaxObserver.with_args(eps=0.5, reduce_range=True).with_args(eps=0.25)
    assert (factory().eps, factory().quant_max) == (0.25, 127)


def test_factories_are_equal_and_hashable_by_content() -> None:
    first = MinMaxObserver.with_args(eps=0.5, reduce_range=True)
    second = MinMaxObserver.with_args(reduce_range=True, eps=0.5)
    assert first == second and hash(first) == hash(second) and copy.deepcopy(first) == second
    assert first != MinMaxObserver.with_args(eps=0.5)
    assert first != MovingAverageMinMaxObserver.with_args(eps=0.5, reduce_range=True)


def test_factory_repr_can_be_read_back() -> None:
    factory = MinMaxObserver.with_args(reduce_range=True, dtype=torch.qint8)
    assert repr(factory) == "MinMaxObserver.with_args(dtype=torch.qint8, reduce_range=True)"


def test_factory_refuses_unknown_arguments() -> None:
    message = (
        "MinMaxObserver has no argument 'bins', it has: "
        "dtype, qscheme, reduce_range, quant_min, quant_max, eps"
    )
    with pytest.raises(JitQuantTypeError, match=f"^{re.escape(message)}$"):
        MinMaxObserver.with_args(bins=256)


def test_subclass_with_annotations_of_its_own_is_scripted() -> None:
    observer: Any = torch.jit.script(DoublingObserver())
    observer(torch.tensor([1.0]))
    assert observer.notes == ["seen"]
    assert observer.calculate_qparams()[0].item() == pytest.approx(2 / 255)


class DoublingObserver(MinMaxObserver):
    notes: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.notes = []

    def _observe(self, x: Tensor) -> None:
        self.notes = self.notes + ["seen"]  # noqa: RUF005
        self.min_val, self.max_val = 2 * x.amin(), 2 * x.amax()


def test_arguments_of_with_args_may_be_positional() -> None:
    expected = FixedQParamsObserver.with_args(scale=0.5, zero_point=3)
    assert FixedQParamsObserver.with_args(0.5, 3) == expected
    assert FixedQParamsObserver.with_args(0.25, zero_point=3).with_args(0.5) == expected
    with pytest.raises(JitQuantTypeError, match=r"^NoopObserver has 0 arguments, got 1"):
        NoopObserver.with_args(1)
    with pytest.raises(
        JitQuantTypeError, match=r"^FixedQParamsObserver got the argument 'scale' t"
    ):
        FixedQParamsObserver.with_args(0.5, scale=0.5)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_nested_tensors_leave_no_trace() -> None:
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)])
    for observer in (MinMaxObserver(), torch.jit.script(HistogramObserver())):
        assert observer(nested) is nested
        assert (observer.calls, observer.shapes, observer.seen_dtypes) == (0, [], [])


@pytest.mark.parametrize("largest", [1e13, 1e20, 3e38])
@pytest.mark.parametrize("observer", [HistogramObserver, MSEObserver, EntropyObserver])
def test_magnitudes_that_are_further_apart_than_64_bits(
    observer: type[HistogramObserver], largest: float
) -> None:
    small, large = 1e-30 * torch.randn(4, 100), largest * torch.rand(4, 5)
    scales = []
    for values in ([small, large], [large, small]):
        both, first, second = observer(), observer(), observer()
        both(values[0])
        both(values[1])
        first(values[0])
        second(values[1])
        first.merge_state(second.state())
        scales += [float(each.calculate_qparams()[0]) for each in (both, first)]
    # A merged histogram may have its bins elsewhere by one, with which another range is the best.
    assert 0 < max(scales) < 1.5 * min(scales) and max(scales) < largest / 200
