"""Observers of the lowest and highest value."""

import torch
from torch import Tensor

from jitquant.errors import JitQuantTypeError, JitQuantValueError
from jitquant.observers._base import (
    _PER_CHANNEL,
    FLOAT32_EPS,
    Observer,
    _is_real,
    _PerTensorObserver,
)


class MinMaxObserver(_PerTensorObserver):
    """Per-tensor qparams from the lowest and highest value seen.

    Args: see `Observer`. qscheme is per_tensor_affine or per_tensor_symmetric.

    Raises:
        JitQuantTypeError, JitQuantValueError: see `Observer`.
    """

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


class RecordingObserver(MinMaxObserver):
    """Keeps a copy of every floating-point tensor that it saw, to look at values, not to calibrate.

    Its qparams are those of `MinMaxObserver` (torch.ao's has none). Memory grows with each batch.

    Args: see `MinMaxObserver`.

    Raises:
        JitQuantTypeError, JitQuantValueError: see `Observer`.
    """

    tensor_val: list[Tensor]

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
        self.tensor_val = []

    def _observe(self, x: Tensor) -> None:
        # A copy: the model may go on to write to x.
        self.tensor_val = self.tensor_val + [x.detach().clone()]  # noqa: RUF005
        low, high, nan, inf = torch.ops.jitquant.min_max(x)
        if self._is_finite(nan, inf):
            self._update(low, high)

    def _statistics(self) -> list[Tensor]:
        return [self.min_val, self.max_val] + self.tensor_val  # noqa: RUF005

    def _merge_statistics(self, other: list[Tensor], calls: int) -> None:
        self.min_val = torch.minimum(self.min_val, other[0])
        self.max_val = torch.maximum(self.max_val, other[1])
        self.tensor_val = self.tensor_val + other[2:]

    @torch.jit.export
    def get_tensor_value(self) -> list[Tensor]:
        """Return what was seen, in order, also batches with NaN or infinite values."""
        return self.tensor_val

    @torch.jit.export
    def reset(self) -> None:
        """Forget everything seen."""
        self._forget_range()
        nothing: list[Tensor] = []
        self.tensor_val = nothing


class MovingAverageMinMaxObserver(MinMaxObserver):
    """Per-tensor qparams from moving averages of the batches' lowest and highest values.

    The first batch sets minimum and maximum; each later one moves them by `averaging_constant` of
    the difference: `min += averaging_constant * (min(x) - min)`. Merging takes the
    mean of two averages, weighted by their numbers of batches, whose order is not known.

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

    def _update(self, low: Tensor, high: Tensor) -> None:
        if self._has_range():
            low = self.min_val + self.averaging_constant * (low - self.min_val)
            high = self.max_val + self.averaging_constant * (high - self.max_val)
        self.min_val = low
        self.max_val = high

    def _merge_statistics(self, other: list[Tensor], calls: int) -> None:
        if not self._has_range():
            self.min_val, self.max_val = other[0], other[1]
        elif bool(other[0] <= other[1]):
            share = calls / (self.calls + calls)
            self.min_val = self.min_val + share * (other[0] - self.min_val)
            self.max_val = self.max_val + share * (other[1] - self.max_val)


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
        x = x.detach().to(torch.float32)
        low, high = x, x
        other_axes: list[int] = []
        for axis in range(x.dim()):
            if axis != self.ch_axis:
                other_axes.append(axis)
        if len(other_axes) > 0:
            low, high = x.amin(other_axes), x.amax(other_axes)
        if not self._is_finite(bool(torch.isnan(low).any()), self._has_inf(low, high, x)):
            return
        if self.min_val.numel() == 0:
            self.min_val = low.clone()
            self.max_val = high.clone()
        else:
            self._check_channels(low.numel())
            self._update(low, high)
        self._keep(x)

    def _keep(self, x: Tensor) -> None:
        """What a subclass keeps of a batch besides the range."""

    def _has_inf(self, low: Tensor, high: Tensor, x: Tensor) -> bool:
        """Whether x, with these extremes, has an infinite value; a NaN hides it from them."""
        if bool(torch.isfinite(low).all()) and bool(torch.isfinite(high).all()):
            return False
        return bool(torch.isinf(x).any())

    def _update(self, low: Tensor, high: Tensor) -> None:
        self.min_val = torch.minimum(self.min_val, low)
        self.max_val = torch.maximum(self.max_val, high)

    def _statistics(self) -> list[Tensor]:
        return [self.min_val, self.max_val]

    def _merge_statistics(self, other: list[Tensor], calls: int) -> None:
        if self.min_val.numel() == 0:
            self.min_val, self.max_val = other[0], other[1]
        elif other[0].numel() > 0:
            self._check_channels(other[0].numel())
            self._merge_range(other[0], other[1], calls)
        self._merge_values(other)

    def _merge_range(self, low: Tensor, high: Tensor, calls: int) -> None:
        self._update(low, high)

    def _merge_values(self, other: list[Tensor]) -> None:
        """What a subclass does with statistics besides the range."""

    def _check_channels(self, channels: int) -> None:
        if self.min_val.numel() != channels:
            raise RuntimeError(
                f"a per-channel observer of {self.min_val.numel()} channels "
                f"got a tensor with {channels}"
            )

    @torch.jit.export
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scale (C,) float32 and zero_point (C,) int64; RuntimeError if there is no data."""
        if self.min_val.numel() == 0:
            raise RuntimeError(self._no_data())
        return self._qparams(self.min_val, self.max_val)

    @torch.jit.export
    def reset(self) -> None:
        """Forget everything seen."""
        self._forget_ranges()

    def _forget_ranges(self) -> None:
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

    def _merge_range(self, low: Tensor, high: Tensor, calls: int) -> None:
        share = calls / (self.calls + calls)
        self.min_val = self.min_val + share * (low - self.min_val)
        self.max_val = self.max_val + share * (high - self.max_val)


def _averaging_constant(name: str, value: float) -> float:
    if not _is_real(value):
        raise JitQuantTypeError(f"{name}: averaging_constant must be a float, got {value!r}")
    if not 0 < value <= 1:
        raise JitQuantValueError(f"{name}: averaging_constant must be in (0, 1], got {value!r}")
    return float(value)
