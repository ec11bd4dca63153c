"""The observers that clip where this lowers the squared error."""

import torch
from torch import Tensor

from jitquant.observers._counting import _CountingObserver


class HistogramObserver(_CountingObserver):
    """Per-tensor qparams that clip the range where that lowers the squared quantization error.

    Values are counted in bins whose width is a power of two, at least `bins` of them over the range
    seen; exact zeros are left out, because every quantization maps 0 to itself without error.

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

    def _choose(self, full_low: Tensor, full_high: Tensor) -> tuple[Tensor, Tensor]:
        low, high = torch.ops.jitquant.search_range(
            self.histogram,
            full_low,
            full_high,
            self.exponent,
            self.offset,
            self.quant_min,
            self.quant_max,
            self.eps,
            self.symmetric,
            self.symmetric_zero_point,
        )
        return low, high


class MSEObserver(HistogramObserver):
    """Per-tensor qparams of the range with the least squared error of 100 shrunk by one factor.

    The ranges are f * [min, max] with f from 0.01 to 1, as in the calibrators that other tools call
    "mse"; the error is the exact integral that `HistogramObserver` takes, whose search is finer and
    moves both ends on their own.

    Args: see `HistogramObserver`.

    Raises:
        JitQuantTypeError, JitQuantValueError: see `Observer`.
    """

    def _choose(self, full_low: Tensor, full_high: Tensor) -> tuple[Tensor, Tensor]:
        low, high = full_low, full_high
        if self.symmetric:
            high = torch.maximum(-full_low, full_high)
            low = -high
        factors = torch.linspace(0.01, 1, 100)
        low, high = torch.ops.jitquant.best_range(
            low * factors,
            high * factors,
            self.histogram,
            full_low,
            full_high,
            self.exponent,
            self.offset,
            self.quant_min,
            self.quant_max,
            self.eps,
            self.symmetric,
            self.symmetric_zero_point,
        )
        return low, high
