"""What observers share that count values in a histogram."""

import math

import torch
from torch import Tensor

from jitquant.errors import JitQuantTypeError, JitQuantValueError
from jitquant.observers._base import FLOAT32_EPS, _is_int, _PerTensorObserver

_MIN_BINS = 256
_MAX_BINS = 16384


class _CountingObserver(_PerTensorObserver):
    """An observer that counts values in bins of width w = 2^exponent, between multiples of w.

    Bin i holds the values of [(offset + i) w, (offset + i + 1) w). There are twice as many as
    `bins`, and w is the least power of two with which the range seen fits: so from `bins` on are in
    use (fewer only where w would be below max |x| / 2^22). When the range grows, neighbouring bins
    are added up. The histogram depends on all values seen, and not on the order in which they
    came. Exact zeros are counted apart, because every quantization maps 0 to itself without error.
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
        self.register_buffer("histogram", torch.zeros(2 * bins, dtype=torch.int64))
        self.lowest_exponent = -120  # as in csrc_passes/observers/histogram.h
        self.exponent = self.lowest_exponent
        self.offset = 0
        self.zeros = 0

    def _observe(self, x: Tensor) -> None:
        counts, low, high, exponent, offset, zeros, nan, inf = torch.ops.jitquant.add_to_histogram(
            x, self.histogram, self.min_val, self.max_val, self.exponent, self.offset, self.zeros
        )
        if self._is_finite(nan, inf):
            self.histogram = counts
            self.min_val = low
            self.max_val = high
            self.exponent = exponent
            self.offset = offset
            self.zeros = zeros

    def _statistics(self) -> list[Tensor]:
        grid = torch.tensor([self.exponent, self.offset, self.zeros], dtype=torch.int64)
        return [self.min_val, self.max_val, self.histogram, grid]

    def _merge_statistics(self, other: list[Tensor], calls: int) -> None:
        grid: list[int] = other[3].tolist()
        merged = torch.ops.jitquant.merge_histograms(
            self.histogram,
            self.min_val,
            self.max_val,
            self.exponent,
            self.offset,
            self.zeros,
            other[2],
            other[0],
            other[1],
            grid[0],
            grid[1],
            grid[2],
        )
        self.histogram, self.min_val, self.max_val, self.exponent, self.offset, self.zeros = merged

    def _is_point(self) -> bool:
        """Whether [min, max] is too narrow to look into."""
        return float(self.max_val) - float(self.min_val) < 1e-30

    def _counted(self) -> tuple[Tensor, Tensor]:
        """Bin edges (N + 1,) and counts (N,) of the bins from min to max, both float64."""
        width = 2.0**self.exponent
        first = math.floor(float(self.min_val) / width) - self.offset
        last = math.floor(float(self.max_val) / width) - self.offset
        counts = self.histogram[first : last + 1].to(torch.float64)
        index = torch.arange(first, last + 2, dtype=torch.float64, device=counts.device)
        return (index + self.offset) * width, counts

    @torch.jit.export
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scale (1,) float32 and zero_point (1,) int64; RuntimeError if there is no data."""
        if not self._has_range():
            raise RuntimeError(self._no_data())
        low, high = self.min_val.reshape(1), self.max_val.reshape(1)
        if not self._is_point():
            low, high = self._choose(low, high)
        return self._qparams(low, high)

    def _choose(self, full_low: Tensor, full_high: Tensor) -> tuple[Tensor, Tensor]:
        """The range to quantize, of the range seen; all (1,) float32."""
        raise NotImplementedError("an observer class that counts must define _choose")

    @torch.jit.export
    def reset(self) -> None:
        """Forget everything seen."""
        self._forget_range()
        self.histogram = torch.zeros_like(self.histogram)
        self.exponent = self.lowest_exponent
        self.offset = 0
        self.zeros = 0
