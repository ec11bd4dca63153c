"""The observer that clips where this lowers the squared error."""

import torch
from torch import Tensor

from jitquant.errors import JitQuantTypeError, JitQuantValueError
from jitquant.observers._base import (
    FLOAT32_EPS,
    _is_int,
    _PerTensorObserver,
)

_MIN_BINS = 256
_MAX_BINS = 16384  # bin indices are counted as int16


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
        return edges, -torch.diff(torch.nn.functional.pad(density, [1, 1]))

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
