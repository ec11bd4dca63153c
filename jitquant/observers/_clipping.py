"""Observers that clip by a rule other than the squared error: percentile and relative entropy."""

import torch
from torch import Tensor

from jitquant.errors import JitQuantTypeError, JitQuantValueError
from jitquant.observers._base import FLOAT32_EPS, _is_real
from jitquant.observers._counting import _CountingObserver


class PercentileObserver(_CountingObserver):
    """Per-tensor qparams that leave out the same share of the values at each end.

    Affine: from the (100 - percentile)-th percentile to the percentile-th one of all values.
    Symmetric: up to the percentile-th percentile of their magnitudes. Within a bin, values count as
    spread evenly.

    Args:
        percentile: above 50, at most 100, in percent; 100 is the range from minimum to maximum.
        others: see `HistogramObserver`.

    Raises:
        JitQuantTypeError, JitQuantValueError: see `Observer`.
    """

    def __init__(
        self,
        percentile: float = 99.99,
        bins: int = 2048,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = FLOAT32_EPS,
    ) -> None:
        super().__init__(bins, dtype, qscheme, reduce_range, quant_min, quant_max, eps)
        name = type(self).__name__
        if not _is_real(percentile):
            raise JitQuantTypeError(f"{name}: percentile must be a float, got {percentile!r}")
        if not 50 < percentile <= 100:
            raise JitQuantValueError(f"{name}: percentile must be in (50, 100], got {percentile!r}")
        self.percentile = float(percentile)

    def _choose(self, full_low: Tensor, full_high: Tensor) -> tuple[Tensor, Tensor]:
        edges, counts = self._counted()
        share = self.percentile / 100
        if self.symmetric:
            magnitudes = self._magnitudes(edges, counts)
            index = torch.arange(magnitudes.numel() + 1, dtype=torch.float64)
            bound = self._quantile(share, index * 2.0**self.exponent, magnitudes)
            high = torch.minimum(bound, torch.maximum(-full_low, full_high))
            return -high, high
        low = torch.maximum(self._quantile(1 - share, edges, counts), full_low)
        return low, torch.minimum(self._quantile(share, edges, counts), full_high)

    def _magnitudes(self, edges: Tensor, counts: Tensor) -> Tensor:
        """Counts of |x|, from 0 up: the bin below 0 joins the one above it, and so on."""
        index = torch.round(edges[:-1] / 2.0**self.exponent).to(torch.int64)
        index = torch.where(index < 0, -index - 1, index)
        folded = torch.zeros(int(index.max()) + 1, dtype=torch.float64)
        return folded.index_add(0, index, counts)

    def _quantile(self, share: float, edges: Tensor, counts: Tensor) -> Tensor:
        """The value that `share` of all values lie below, (1,) float32; zeros lie at 0."""
        below_zero = float(counts[edges[1:] <= 0].sum())
        rank = share * (float(counts.sum()) + self.zeros)
        if rank > below_zero:
            rank = max(rank - self.zeros, below_zero)
            if rank == below_zero:
                return torch.zeros(1)
        ends = torch.cumsum(counts, 0)
        # torch.tensor would round to float32 in TorchScript.
        at = int(torch.searchsorted(ends, torch.full([1], rank, dtype=torch.float64)))
        at = min(at, counts.numel() - 1)
        part = (rank - float(ends[at] - counts[at])) / max(float(counts[at]), 1.0)
        value = float(edges[at]) + part * float(edges[at + 1] - edges[at])
        return torch.tensor([value], dtype=torch.float32)


class EntropyObserver(_CountingObserver):
    """Per-tensor qparams of the range that keeps most of the values' distribution.

    Of 128 ranges [max(min, -t), min(max, t)] (symmetric: [-t, t]), the one with the least relative
    entropy (Kullback-Leibler divergence) of the values clipped to it against the values inside of
    it, levelled out over each quantization step; bins that hold no value stay empty. After S.
    Migacz, "8-bit Inference with TensorRT", GTC 2017. Exact zeros do not count.

    Args: see `HistogramObserver`.

    Raises:
        JitQuantTypeError, JitQuantValueError: see `Observer`.
    """

    def _choose(self, full_low: Tensor, full_high: Tensor) -> tuple[Tensor, Tensor]:
        edges, counts = self._counted()
        full = float(torch.maximum(-full_low, full_high))
        steps = self.quant_max - self.quant_min + 1
        # Fewer bins than steps cannot be levelled out.
        least = min(full, 2.0**self.exponent * steps / 2)
        best_low, best_high = full_low, full_high
        least_divergence = float("inf")
        for i in range(128):
            bound = full - (full - least) * i / 128
            low, high = -bound, bound
            if not self.symmetric:
                low, high = max(float(full_low), -bound), min(float(full_high), bound)
            divergence = self._divergence(edges, counts, min(low, 0.0), max(high, 0.0), steps)
            if divergence < least_divergence:
                least_divergence = divergence
                best_low = torch.tensor([low], dtype=torch.float32)
                best_high = torch.tensor([high], dtype=torch.float32)
        return best_low, best_high

    def _divergence(
        self, edges: Tensor, counts: Tensor, low: float, high: float, steps: int
    ) -> float:
        centers = (edges[1:] + edges[:-1]) / 2
        inside = (centers >= low) & (centers <= high)
        # Bins to steps, those outside to the nearest step.
        step = ((centers - low) * (steps / (high - low))).to(torch.int64).clamp(0, steps - 1)
        kept = torch.where(inside, counts, 0.0)
        first = int((centers < low).sum())
        last = counts.numel() - 1 - int((centers > high).sum())
        clipped = kept.clone()
        clipped[first] += counts[:first].sum()
        clipped[last] += counts[last + 1 :].sum()
        occupied = clipped > 0
        level = torch.zeros(steps, dtype=torch.float64).index_add(0, step, kept)
        width = torch.zeros(steps, dtype=torch.float64)
        width = width.index_add(0, step, occupied.to(torch.float64))
        levelled = (level / width.clamp(min=1))[step]
        p = clipped[occupied] / clipped.sum()
        q = levelled[occupied] / levelled[occupied].sum()
        return float((p * torch.log(p / q.clamp(min=1e-9))).sum())
