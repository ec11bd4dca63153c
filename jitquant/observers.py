"""Observers: modules that watch the values of one tensor and choose its qparams.

Every observer is an `nn.Module` that `torch.jit.script` compiles, and that saves and loads with the
model it sits in. The graph passes know an observer only by what it has after scripting:

| name | type | meaning |
|---|---|---|
| `dtype` | int (ScalarType) | quint8, qint8, or float32 for `ShapeRecorder`, which has no qparams |
| `qscheme` | QScheme | per_tensor_affine, per_tensor_symmetric, per_channel_affine or _symmetric |
| `quant_min`, `quant_max` | int | lowest and highest quantized value |
| `ch_axis` | int | channel axis, -1 for per tensor |
| `shapes` | List[List[int]] | one example shape for each rank seen, first seen wins |
| `calls` | int | forward calls with a floating-point tensor of at least one element |
| `seen_dtypes` | List[int] | distinct dtypes seen, in order, floating point or not |
| `saw_nan`, `saw_inf` | bool | whether a NaN or an infinite value was seen |
| `forward(x)` | Tensor -> Tensor | returns x itself |
| `calculate_qparams()` | -> (Tensor, Tensor) | scale float32 and zero_point int64, (1,) or (C,) |
| `reset()` | -> None | forgets everything seen |

Formulas are those of the observers of the same name in torch.ao.quantization (see
`Observer._qparams`), except for the clipping search of `HistogramObserver`, which is our own.
A tensor with NaN or infinite values sets the flags and leaves the statistics as they were.
An error raised inside a scripted observer arrives as `torch.jit.Error` with the same text.
State is replaced, never written in place, so two observers that share a tensor do not disturb each
other, and calibrating works in and out of `torch.inference_mode`.
"""

import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._jit_internal import is_scripting

from jitquant.errors import JitQuantTypeError, JitQuantValueError

__all__ = [
    "FixedQParamsObserver",
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "Observer",
    "ObserverFactory",
    "PerChannelMinMaxObserver",
    "ShapeRecorder",
]

FLOAT32_EPS = torch.finfo(torch.float32).eps

_FULL_RANGE = {torch.quint8: (0, 255), torch.qint8: (-128, 127)}
_REDUCED_RANGE = {torch.quint8: (0, 127), torch.qint8: (-64, 63)}
_PER_TENSOR = (torch.per_tensor_affine, torch.per_tensor_symmetric)
_PER_CHANNEL = (torch.per_channel_affine, torch.per_channel_symmetric)

_MIN_BINS = 256
_MAX_BINS = 16384  # bin indices are counted as int16


# A dtype is an int in TorchScript only.
_DTYPE_CODE = torch.jit.CompilationUnit("def dtype_code(x: Tensor) -> int:\n    return x.dtype\n")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class ObserverFactory:
    """Builds observers of one class with fixed arguments: `cls(**kwargs)`, new at each call.

    Attributes:
        cls: the observer class.
        kwargs: the arguments as (name, value) pairs, sorted by name, so that a factory is hashable
            and equal to any other with the same class and arguments.

    Raises:
        JitQuantTypeError: an argument that the class does not have.
    """

    cls: "type[Observer]"
    kwargs: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        known = [name for name in inspect.signature(self.cls.__init__).parameters if name != "self"]
        for name, _ in self.kwargs:
            if name not in known:
                raise JitQuantTypeError(
                    f"{self.cls.__name__} has no argument {name!r}, it has: {', '.join(known)}"
                )

    def __call__(self) -> "Observer":
        """Return a new observer."""
        return self.cls(**dict(self.kwargs))

    def with_args(self, **kwargs: Any) -> "ObserverFactory":
        """Return a factory with these arguments added to (or in place of) this one's."""
        return ObserverFactory(self.cls, tuple(sorted({**dict(self.kwargs), **kwargs}.items())))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.kwargs)
        return f"{self.cls.__name__}.with_args({arguments})"


class Observer(nn.Module):
    """What all observers share: the record of calls, and the formula for qparams.

    A subclass defines `_observe`, `calculate_qparams` and `reset`.

    Args:
        dtype: torch.quint8 or torch.qint8.
        qscheme: one of `qschemes`.
        reduce_range: 7 bits, [0, 127] or [-64, 63]. Not together with quant_min and quant_max.
        quant_min, quant_max: a range of your own; both or none, and 0 must be in it.
        eps: lowest scale.
        ch_axis: channel axis, -1 for per tensor.
        qschemes: the schemes that the subclass takes.

    Raises:
        JitQuantTypeError: an argument of the wrong type.
        JitQuantValueError: an argument out of range.
    """

    shapes: list[list[int]]
    seen_dtypes: list[int]

    def __init_subclass__(cls) -> None:
        """Give the class its bases' annotations: torch.jit.script reads only the nearest ones."""
        super().__init_subclass__()
        own = inspect.get_annotations(cls)
        for base in cls.__mro__[1:]:
            if issubclass(base, Observer):
                own = {**inspect.get_annotations(base), **own}
        cls.__annotations__ = own

    def __init__(
        self,
        dtype: torch.dtype,
        qscheme: torch.qscheme,
        reduce_range: bool,
        quant_min: int | None,
        quant_max: int | None,
        eps: float,
        ch_axis: int,
        qschemes: tuple[torch.qscheme, ...],
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not isinstance(dtype, torch.dtype):
            raise JitQuantTypeError(f"{name}: dtype must be a torch.dtype, got {dtype!r}")
        if dtype not in _FULL_RANGE:
            raise JitQuantValueError(
                f"{name}: dtype must be torch.quint8 or torch.qint8, got {dtype}"
            )
        if not isinstance(qscheme, torch.qscheme):
            raise JitQuantTypeError(f"{name}: qscheme must be a torch.qscheme, got {qscheme!r}")
        if qscheme not in qschemes:
            allowed = " or ".join(str(scheme) for scheme in qschemes)
            raise JitQuantValueError(f"{name}: qscheme must be {allowed}, got {qscheme}")
        if not isinstance(reduce_range, bool):
            raise JitQuantTypeError(f"{name}: reduce_range must be a bool, got {reduce_range!r}")
        if not _is_real(eps):
            raise JitQuantTypeError(f"{name}: eps must be a float, got {eps!r}")
        if not 0 < eps < math.inf:
            raise JitQuantValueError(f"{name}: eps must be positive and finite, got {eps!r}")
        if not _is_int(ch_axis):
            raise JitQuantTypeError(f"{name}: ch_axis must be an int, got {ch_axis!r}")
        if qscheme in _PER_CHANNEL and ch_axis < 0:
            raise JitQuantValueError(f"{name}: ch_axis must be 0 or more, got {ch_axis}")

        symmetric = qscheme in (torch.per_tensor_symmetric, torch.per_channel_symmetric)
        if symmetric and reduce_range and dtype == torch.quint8:
            raise JitQuantValueError(
                f"{name}: reduce_range with quint8 and {qscheme} would put zero point 128 outside "
                "of [0, 127]; use quant_min=0, quant_max=127, or qint8"
            )

        self.dtype = dtype
        self.qscheme = qscheme
        self.quant_min, self.quant_max = self._quant_range(
            name, dtype, reduce_range, quant_min, quant_max
        )
        self.ch_axis = ch_axis
        self.eps = float(eps)
        self.symmetric = symmetric
        self.symmetric_zero_point = 0
        if dtype == torch.quint8:
            own_range = quant_min is not None
            self.symmetric_zero_point = (self.quant_min + self.quant_max) // 2 if own_range else 128

        self.calls = 0
        self.shapes = []
        self.seen_dtypes = []
        self.saw_nan = False
        self.saw_inf = False

    @staticmethod
    def _quant_range(
        name: str,
        dtype: torch.dtype,
        reduce_range: bool,
        quant_min: int | None,
        quant_max: int | None,
    ) -> tuple[int, int]:
        if quant_min is None and quant_max is None:
            return _REDUCED_RANGE[dtype] if reduce_range else _FULL_RANGE[dtype]
        if quant_min is None or quant_max is None:
            raise JitQuantValueError(
                f"{name}: give both quant_min and quant_max or none, "
                f"got quant_min={quant_min!r}, quant_max={quant_max!r}"
            )
        if not (_is_int(quant_min) and _is_int(quant_max)):
            raise JitQuantTypeError(
                f"{name}: quant_min and quant_max must be ints, got {quant_min!r}, {quant_max!r}"
            )
        if reduce_range:
            raise JitQuantValueError(
                f"{name}: reduce_range and quant_min, quant_max exclude each other, "
                f"got reduce_range=True and [{quant_min}, {quant_max}]"
            )
        lowest, highest = _FULL_RANGE[dtype]
        if not lowest <= quant_min < quant_max <= highest:
            raise JitQuantValueError(
                f"{name}: quant_min < quant_max must lie in [{lowest}, {highest}] for {dtype}, "
                f"got [{quant_min}, {quant_max}]"
            )
        if not quant_min <= 0 <= quant_max:
            raise JitQuantValueError(
                f"{name}: [quant_min, quant_max] must hold 0, got [{quant_min}, {quant_max}]"
            )
        return quant_min, quant_max

    @classmethod
    def with_args(cls, **kwargs: Any) -> ObserverFactory:
        """Return a factory that builds this observer with these arguments."""
        return ObserverFactory(cls).with_args(**kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Record `x` (any shape) and return `x` itself.

        A tensor without elements leaves no trace. One that is not floating point leaves only its
        dtype and shape. float16, bfloat16 and float64 values are observed as float32.
        """
        if self._accepts(x):
            self._observe(x.detach())
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scale float32 and zero_point int64, (1,) or (C,); RuntimeError without data."""
        raise NotImplementedError("an observer class must define calculate_qparams")

    def reset(self) -> None:
        """Forget everything seen."""
        raise NotImplementedError("an observer class must define reset")

    def _accepts(self, x: Tensor) -> bool:
        if x.numel() == 0:
            return False
        code: int = x.dtype if is_scripting() else _DTYPE_CODE.dtype_code(x)  # type: ignore[assignment]
        if code not in self.seen_dtypes:
            self.seen_dtypes = self.seen_dtypes + [code]  # noqa: RUF005
        is_new_rank = True
        for shape in self.shapes:
            is_new_rank = is_new_rank and len(shape) != x.dim()
        if is_new_rank:
            self.shapes = self.shapes + [list(x.size())]  # noqa: RUF005
        if not x.is_floating_point():
            return False
        self.calls += 1
        return True

    def _observe(self, x: Tensor) -> None:
        raise NotImplementedError("an observer class must define _observe")

    def _values(self, x: Tensor) -> Tensor:
        """All elements of x as one float32 row, without a copy when x is dense channels-last."""
        if x.dim() > 2 and not x.is_contiguous():
            channels_last = x.movedim(1, -1)
            if channels_last.is_contiguous():
                x = channels_last
        return x.reshape(-1).to(torch.float32)

    def _is_finite(self, low: Tensor, high: Tensor, x: Tensor) -> bool:
        """Whether low and high (the extremes of x) are finite; sets the flags if they are not."""
        if bool(torch.isfinite(low).all()) and bool(torch.isfinite(high).all()):
            return True
        if bool(torch.isnan(low).any()):
            self.saw_nan = True
            if bool(torch.isinf(x).any()):
                self.saw_inf = True
        else:
            self.saw_inf = True
        return False

    def _forget(self) -> None:
        shapes: list[list[int]] = []
        seen_dtypes: list[int] = []
        self.calls = 0
        self.shapes = shapes
        self.seen_dtypes = seen_dtypes
        self.saw_nan = False
        self.saw_inf = False

    def _no_data(self) -> str:
        if self.calls == 0:
            return "the observer saw no data: run sample inputs through the model"
        return "the observer saw only tensors with NaN or infinite values"

    def _qparams(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Scale (float32) and zero_point (int64) for float32 ranges [low, high], all of shape (N,).

        Formulas of torch.ao.quantization.observer.UniformQuantizationObserverBase, in float32:

        affine: the range is widened to hold 0,
            scale = max((high - low) / (quant_max - quant_min), eps)
            zero_point = clamp(quant_min - round(low / scale), quant_min, quant_max)
        symmetric:
            scale = max(max(-low, high) / ((quant_max - quant_min) / 2), eps)
            zero_point = 0 for qint8; for quint8 128, or the middle of quant_min, quant_max given

        One difference: a high - low beyond float32 gives the right scale instead of infinity.
        """
        low = torch.clamp(low, max=0.0)
        high = torch.clamp(high, min=0.0)
        steps = float(self.quant_max - self.quant_min)
        if self.symmetric:
            scale = torch.clamp(torch.maximum(-low, high) / (steps / 2), min=self.eps)
            return scale, torch.full_like(scale, self.symmetric_zero_point, dtype=torch.int64)
        span = high - low
        scale = torch.where(torch.isfinite(span), span / steps, high / steps - low / steps)
        scale = torch.clamp(scale, min=self.eps)
        zero_point = self.quant_min - torch.round(low / scale).to(torch.int64)
        return scale, torch.clamp(zero_point, self.quant_min, self.quant_max)


class _PerTensorObserver(Observer):
    """An observer with one running minimum and maximum, () float32, +inf and -inf at first."""

    min_val: Tensor
    max_val: Tensor

    def __init__(
        self,
        dtype: torch.dtype,
        qscheme: torch.qscheme,
        reduce_range: bool,
        quant_min: int | None,
        quant_max: int | None,
        eps: float,
    ) -> None:
        super().__init__(
            dtype, qscheme, reduce_range, quant_min, quant_max, eps, -1, qschemes=_PER_TENSOR
        )
        self.register_buffer("min_val", torch.tensor(math.inf))
        self.register_buffer("max_val", torch.tensor(-math.inf))

    def _observe(self, x: Tensor) -> None:
        values = self._values(x)
        low, high = values.amin(), values.amax()
        if self._is_finite(low, high, values):
            self._update(values, low, high)

    def _update(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        self.min_val = torch.minimum(self.min_val, low)
        self.max_val = torch.maximum(self.max_val, high)

    def _has_range(self) -> bool:
        return bool(self.min_val <= self.max_val)

    def _forget_range(self) -> None:
        self._forget()
        self.min_val = torch.full_like(self.min_val, math.inf)
        self.max_val = torch.full_like(self.max_val, -math.inf)

    def extra_repr(self) -> str:
        return f"min_val={self.min_val.item()}, max_val={self.max_val.item()}, calls={self.calls}"


class MinMaxObserver(_PerTensorObserver):
    """Per-tensor qparams from the lowest and highest value seen.

    Args: see `Observer`. qscheme is per_tensor_affine or per_tensor_symmetric.

    Raises:
        JitQuantTypeError, JitQuantValueError: see `Observer`.
    """

    def __init__(
        self,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = FLOAT32_EPS,
    ) -> None:
        super().__init__(dtype, qscheme, reduce_range, quant_min, quant_max, eps)

    @torch.jit.export
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scale (1,) float32 and zero_point (1,) int64; RuntimeError if there is no data."""
        if not self._has_range():
            raise RuntimeError(self._no_data())
        return self._qparams(self.min_val.reshape(1), self.max_val.reshape(1))

    @torch.jit.export
    def reset(self) -> None:
        """Forget everything seen."""
        self._forget_range()


class MovingAverageMinMaxObserver(MinMaxObserver):
    """Per-tensor qparams from moving averages of the batches' lowest and highest values.

    The first batch sets minimum and maximum; each later one moves them by `averaging_constant` of
    the difference: `min += averaging_constant * (min(x) - min)`.

    Args:
        averaging_constant: in (0, 1]; 1 keeps only the last batch.
        others: see `MinMaxObserver`.

    Raises:
        JitQuantTypeError, JitQuantValueError: see `Observer`.
    """

    def __init__(
        self,
        averaging_constant: float = 0.01,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = FLOAT32_EPS,
    ) -> None:
        super().__init__(dtype, qscheme, reduce_range, quant_min, quant_max, eps)
        self.averaging_constant = _averaging_constant(type(self).__name__, averaging_constant)

    def _update(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        if self._has_range():
            low = self.min_val + self.averaging_constant * (low - self.min_val)
            high = self.max_val + self.averaging_constant * (high - self.max_val)
        self.min_val = low
        self.max_val = high


class PerChannelMinMaxObserver(Observer):
    """Qparams for each channel from the lowest and highest value seen in it.

    Args:
        ch_axis: the channel axis, 0 or more.
        others: see `Observer`. qscheme is per_channel_affine or per_channel_symmetric.

    Raises:
        JitQuantTypeError, JitQuantValueError: see `Observer`.
        RuntimeError: in forward, a tensor without axis ch_axis or with another number of channels
            than the first.
    """

    min_val: Tensor
    max_val: Tensor

    def __init__(
        self,
        ch_axis: int = 0,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_channel_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = FLOAT32_EPS,
    ) -> None:
        super().__init__(
            dtype, qscheme, reduce_range, quant_min, quant_max, eps, ch_axis, qschemes=_PER_CHANNEL
        )
        # (0,) until the first tensor, then (C,), float32
        self.register_buffer("min_val", torch.empty(0))
        self.register_buffer("max_val", torch.empty(0))

    def _observe(self, x: Tensor) -> None:
        if self.ch_axis >= x.dim():
            raise RuntimeError(
                f"a per-channel observer of axis {self.ch_axis} got a tensor with {x.dim()} axes"
            )
        x = x.to(torch.float32)
        low, high = x, x
        other_axes: list[int] = []
        for axis in range(x.dim()):
            if axis != self.ch_axis:
                other_axes.append(axis)
        if len(other_axes) > 0:
            low, high = x.amin(other_axes), x.amax(other_axes)
        if not self._is_finite(low, high, x):
            return
        if self.min_val.numel() == 0:
            self.min_val = low.clone()
            self.max_val = high.clone()
            return
        if self.min_val.numel() != low.numel():
            raise RuntimeError(
                f"a per-channel observer of {self.min_val.numel()} channels "
                f"got a tensor with {low.numel()}"
            )
        self._update(low, high)

    def _update(self, low: Tensor, high: Tensor) -> None:
        self.min_val = torch.minimum(self.min_val, low)
        self.max_val = torch.maximum(self.max_val, high)

    @torch.jit.export
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scale (C,) float32 and zero_point (C,) int64; RuntimeError if there is no data."""
        if self.min_val.numel() == 0:
            raise RuntimeError(self._no_data())
        return self._qparams(self.min_val, self.max_val)

    @torch.jit.export
    def reset(self) -> None:
        """Forget everything seen."""
        self._forget()
        self.min_val = self.min_val.new_empty([0])
        self.max_val = self.max_val.new_empty([0])

    def extra_repr(self) -> str:
        return f"channels={self.min_val.numel()}, ch_axis={self.ch_axis}, calls={self.calls}"


class MovingAveragePerChannelMinMaxObserver(PerChannelMinMaxObserver):
    """Qparams for each channel from moving averages of the batches' lowest and highest values.

    Args:
        averaging_constant: see `MovingAverageMinMaxObserver`.
        others: see `PerChannelMinMaxObserver`.

    Raises:
        JitQuantTypeError, JitQuantValueError, RuntimeError: see `PerChannelMinMaxObserver`.
    """

    def __init__(
        self,
        averaging_constant: float = 0.01,
        ch_axis: int = 0,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_channel_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = FLOAT32_EPS,
    ) -> None:
        super().__init__(ch_axis, dtype, qscheme, reduce_range, quant_min, quant_max, eps)
        self.averaging_constant = _averaging_constant(type(self).__name__, averaging_constant)

    def _update(self, low: Tensor, high: Tensor) -> None:
        self.min_val = self.min_val + self.averaging_constant * (low - self.min_val)
        self.max_val = self.max_val + self.averaging_constant * (high - self.max_val)


class HistogramObserver(_PerTensorObserver):
    """Per-tensor qparams that clip the range where that lowers the squared quantization error.

    Values are counted in `bins` equal bins over [min, max] seen so far; exact zeros are left out,
    because every quantization maps 0 to itself without error. When the range grows, old
    counts move to the new bins, as if spread evenly over their old bin.

    The search minimises the sum over bins of the integral of (x - quantized(x))^2, with values
    spread evenly over each bin. First a joint grid of upper and lower bounds under the usual model
    (step^2 / 12 inside, (x - bound)^2 outside), then upper and lower bound in turn with the exact
    integral and the exact qparams of each candidate, in two rounds, the second one finer. Bounds up
    to 5 % beyond the data are tried too: data of few distinct values may lie on that grid.

    Args:
        bins: 256 to 16384.
        others: see `MinMaxObserver`.

    Raises:
        JitQuantTypeError, JitQuantValueError: see `Observer`.
    """

    histogram: Tensor

    def __init__(
        self,
        bins: int = 2048,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = FLOAT32_EPS,
    ) -> None:
        super().__init__(dtype, qscheme, reduce_range, quant_min, quant_max, eps)
        name = type(self).__name__
        if not _is_int(bins):
            raise JitQuantTypeError(f"{name}: bins must be an int, got {bins!r}")
        if not _MIN_BINS <= bins <= _MAX_BINS:
            raise JitQuantValueError(
                f"{name}: bins must be from {_MIN_BINS} to {_MAX_BINS}, got {bins}"
            )
        self.bins = bins
        self.register_buffer("histogram", torch.zeros(bins, dtype=torch.float64))

    def _update(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        low = torch.minimum(self.min_val, low)
        high = torch.maximum(self.max_val, high)
        if self._has_range() and not (bool(low == self.min_val) and bool(high == self.max_val)):
            self.histogram = self._moved(float(low), float(high))
        self.min_val = low
        self.max_val = high
        self._count(values, float(low), float(high))

    def _is_point(self, low: float, high: float) -> bool:
        """Whether [low, high] is too narrow for float32 bins; all counts are then in bin 0."""
        return high - low < 1e-30

    def _count(self, values: Tensor, low: float, high: float) -> None:
        counts = torch.zeros_like(self.histogram)
        if self._is_point(low, high):
            counts[0] = values.count_nonzero()
            self.histogram = self.histogram + counts
            return
        if high - low > 1e38:  # the difference may not fit float32
            values = values * 0.125
            low = low * 0.125
            high = high * 0.125
        bins_per_unit = self.bins / (high - low)
        # In pieces that stay in the cache. sub, mul, bincount take a third of histc's time, and
        # sign, abs, sum a small part of count_nonzero's.
        nonzeros = 0
        for piece in torch.split(values, 1 << 18):
            nonzeros += int(piece.sign().abs_().sum())
            index = torch.sub(piece, low).mul_(bins_per_unit).to(torch.int16)
            found = torch.bincount(index, minlength=self.bins + 1)
            counts += found[: self.bins]
            counts[-1] += found[self.bins]  # values equal to high
        zeros = values.numel() - nonzeros
        if zeros > 0:
            zero = torch.zeros(1, dtype=values.dtype, device=values.device)
            zero_bin = int(torch.sub(zero, low).mul_(bins_per_unit))
            counts[min(zero_bin, self.bins - 1)] -= zeros
        self.histogram = self.histogram + counts

    def _moved(self, low: float, high: float) -> Tensor:
        """The histogram of the old range counted in bins over [low, high], which holds it."""
        old_low = float(self.min_val)
        old_high = float(self.max_val)
        if self._is_point(low, high):
            return self.histogram
        if self._is_point(old_low, old_high):
            moved = torch.zeros_like(self.histogram)
            point = int((old_low - low) / (high - low) * self.bins)
            moved[min(point, self.bins - 1)] = self.histogram.sum()
            return moved
        edges = self._edges(low, high)
        at = torch.clamp((edges - old_low) * (self.bins / (old_high - old_low)), 0, self.bins)
        left = torch.clamp(at.to(torch.int64), max=self.bins - 1)
        below = torch.cumsum(self.histogram, 0) - self.histogram
        return torch.diff(below[left] + (at - left) * self.histogram[left])

    @torch.jit.export
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scale (1,) float32 and zero_point (1,) int64; RuntimeError if there is no data."""
        if not self._has_range():
            raise RuntimeError(self._no_data())
        low, high = self.min_val.reshape(1), self.max_val.reshape(1)
        if not self._is_point(float(low), float(high)):
            if self.symmetric:
                low, high = self._search_symmetric(low, high)
            else:
                low, high = self._search(low, high)
        return self._qparams(low, high)

    def _edges(self, low: float, high: float) -> Tensor:
        device = self.histogram.device
        return torch.linspace(low, high, self.bins + 1, dtype=torch.float64, device=device)

    def _edge_weights(self) -> tuple[Tensor, Tensor]:
        """Bin edges and what the antiderivative at each edge counts for, (bins + 1,) float64."""
        low = float(self.min_val)
        high = float(self.max_val)
        edges = self._edges(low, high)
        density = self.histogram * (self.bins / (high - low))
        return edges, -torch.diff(nn.functional.pad(density, [1, 1]))

    def _errors(self, low: Tensor, high: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
        """Sums of squared quantization errors for ranges low, high, (N,) float32 -> (N,) float64.

        With u = x / scale + zero_point, q = clamp(round(u)) and r = u - q, the integral of the
        squared error up to x is scale^3 * (q / 12 + r^3 / 3): a whole step is worth 1 / 12.
        """
        scale, zero_point = self._qparams(low, high)
        scale = scale.to(torch.float64).unsqueeze(1)
        u = edges / scale + zero_point.unsqueeze(1)
        q = torch.clamp(torch.round(u), self.quant_min, self.quant_max)
        r = u.sub_(q)
        integral = q.div_(4).add_(r * r * r)  # 3 times the integral, in steps
        return torch.mv(integral, weights) * scale.squeeze(1).pow(3) / 3

    def _best(
        self, low: Tensor, high: Tensor, edges: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        low = torch.clamp(low, min=-3.4e38)
        high = torch.clamp(high, max=3.4e38)
        best = torch.argmin(self._errors(low, high, edges, weights)).reshape(1)
        return low[best], high[best]

    def _search(self, full_low: Tensor, full_high: Tensor) -> tuple[Tensor, Tensor]:
        edges, weights = self._edge_weights()
        low, high = self._coarse(full_low, full_high, edges)
        for width, count in [(0.15, 25), (0.0125, 13)]:
            factors = torch.linspace(1 - width, 1 + width, count)
            tried = torch.cat([torch.minimum(high * factors, full_high * 1.05), full_high])
            low, high = self._best(low.expand(tried.numel()), tried, edges, weights)
            tried = torch.cat([torch.maximum(low * factors, full_low * 1.05), full_low])
            low, high = self._best(tried, high.expand(tried.numel()), edges, weights)
        return self._best(torch.cat([low, full_low]), torch.cat([high, full_high]), edges, weights)

    def _coarse(self, full_low: Tensor, full_high: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        """The best of a joint grid of bounds, down to 1 / 1024 of the full range on each side."""
        factors = self._grid(48)
        low = torch.clamp(full_low, max=0.0) * factors
        high = torch.clamp(full_high, min=0.0) * factors
        centers = (edges[1:] + edges[:-1]) / 2
        above = torch.relu(centers - high.unsqueeze(1))
        below = torch.relu(low.unsqueeze(1) - centers)
        clipped = torch.mv(below * below, self.histogram).unsqueeze(1)
        clipped = clipped + torch.mv(above * above, self.histogram)
        inside = self.histogram.sum() - torch.mv(
            (below > 0).to(torch.float64), self.histogram
        ).unsqueeze(1)
        inside = inside - torch.mv((above > 0).to(torch.float64), self.histogram)
        step = (high - low.unsqueeze(1)).to(torch.float64) / (self.quant_max - self.quant_min)
        best = int(torch.argmin(clipped + inside * step * step / 12))
        count = factors.numel()
        return low[best // count].reshape(1), high[best % count].reshape(1)

    def _search_symmetric(self, full_low: Tensor, full_high: Tensor) -> tuple[Tensor, Tensor]:
        edges, weights = self._edge_weights()
        full = torch.maximum(-full_low, full_high)
        bound = full
        for factors in [
            self._grid(48),
            torch.linspace(0.85, 1.15, 25),
            torch.linspace(0.9875, 1.0125, 13),
        ]:
            tried = torch.cat([torch.minimum(bound * factors, full * 1.05), full])
            _, bound = self._best(-tried, tried, edges, weights)
        return -bound, bound

    def _grid(self, count: int) -> Tensor:
        return torch.logspace(0, -10, count, base=2.0)

    @torch.jit.export
    def reset(self) -> None:
        """Forget everything seen."""
        self._forget_range()
        self.histogram = torch.zeros_like(self.histogram)


class FixedQParamsObserver(Observer):
    """Known qparams, whatever the data: for outputs of known range, such as sigmoid's.

    Args:
        scale: positive and finite.
        zero_point: in [quant_min, quant_max].
        others: see `Observer`. qscheme is per_tensor_affine or per_tensor_symmetric.

    Raises:
        JitQuantTypeError, JitQuantValueError: see `Observer`.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        scale: float,
        zero_point: int,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        quant_min: int | None = None,
        quant_max: int | None = None,
    ) -> None:
        super().__init__(
            dtype, qscheme, False, quant_min, quant_max, FLOAT32_EPS, -1, qschemes=_PER_TENSOR
        )
        name = type(self).__name__
        if not _is_real(scale):
            raise JitQuantTypeError(f"{name}: scale must be a float, got {scale!r}")
        if not 0 < scale < math.inf:
            raise JitQuantValueError(f"{name}: scale must be positive and finite, got {scale!r}")
        if not _is_int(zero_point):
            raise JitQuantTypeError(f"{name}: zero_point must be an int, got {zero_point!r}")
        if not self.quant_min <= zero_point <= self.quant_max:
            raise JitQuantValueError(
                f"{name}: zero_point must be in [{self.quant_min}, {self.quant_max}], "
                f"got {zero_point}"
            )
        self.register_buffer("scale", torch.tensor([scale], dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor([zero_point], dtype=torch.int64))

    def _observe(self, x: Tensor) -> None:
        values = self._values(x)
        self._is_finite(values.amin(), values.amax(), values)

    @torch.jit.export
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return the given scale (1,) float32 and zero_point (1,) int64, also without data."""
        return self.scale, self.zero_point

    @torch.jit.export
    def reset(self) -> None:
        """Forget everything seen; the qparams stay."""
        self._forget()

    def extra_repr(self) -> str:
        return f"scale={self.scale.item()}, zero_point={self.zero_point.item()}"


class ShapeRecorder(Observer):
    """Records calls, shapes and dtypes of a value that has no qparams; reads no values.

    Its `dtype` is float32, and `saw_nan` and `saw_inf` stay False.
    """

    def __init__(self) -> None:
        super().__init__(
            torch.quint8,
            torch.per_tensor_affine,
            False,
            None,
            None,
            FLOAT32_EPS,
            -1,
            qschemes=_PER_TENSOR,
        )
        self.dtype = torch.float32

    def _observe(self, x: Tensor) -> None:
        pass

    @torch.jit.export
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Raise RuntimeError: there are no statistics."""
        raise RuntimeError("a ShapeRecorder has no qparams: it records shapes only")

    @torch.jit.export
    def reset(self) -> None:
        """Forget everything seen."""
        self._forget()


def _averaging_constant(name: str, value: float) -> float:
    if not _is_real(value):
        raise JitQuantTypeError(f"{name}: averaging_constant must be a float, got {value!r}")
    if not 0 < value <= 1:
        raise JitQuantValueError(f"{name}: averaging_constant must be in (0, 1], got {value!r}")
    return float(value)
