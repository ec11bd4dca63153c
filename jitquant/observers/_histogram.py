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
        if self.symmetric:
            return self._search_symmetric(full_low, full_high)
        return self._search(full_low, full_high)

    def _edge_weights(self, edges: Tensor, counts: Tensor) -> Tensor:
        """What the antiderivative of the error at each edge counts for, (N + 1,) float64."""
        density = counts / 2.0**self.exponent
        return -torch.diff(torch.nn.functional.pad(density, [1, 1]))

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
        edges, counts = self._counted()
        weights = self._edge_weights(edges, counts)
        low, high = self._coarse(full_low, full_high, edges, counts)
        for width, count in [(0.15, 25), (0.0125, 13)]:
            factors = torch.linspace(1 - width, 1 + width, count)
            tried = torch.cat([torch.minimum(high * factors, full_high * 1.05), full_high])
            low, high = self._best(low.expand(tried.numel()), tried, edges, weights)
            tried = torch.cat([torch.maximum(low * factors, full_low * 1.05), full_low])
            low, high = self._best(tried, high.expand(tried.numel()), edges, weights)
        return self._best(torch.cat([low, full_low]), torch.cat([high, full_high]), edges, weights)

    def _coarse(
        self, full_low: Tensor, full_high: Tensor, edges: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The best of a joint grid of bounds, down to 1 / 1024 of the full range on each side."""
        factors = self._grid(48)
        low = torch.clamp(full_low, max=0.0) * factors
        high = torch.clamp(full_high, min=0.0) * factors
        centers = (edges[1:] + edges[:-1]) / 2
        above = torch.relu(centers - high.unsqueeze(1))
        below = torch.relu(low.unsqueeze(1) - centers)
        clipped = torch.mv(below * below, counts).unsqueeze(1)
        clipped = clipped + torch.mv(above * above, counts)
        inside = counts.sum() - torch.mv((below > 0).to(torch.float64), counts).unsqueeze(1)
        inside = inside - torch.mv((above > 0).to(torch.float64), counts)
        step = (high - low.unsqueeze(1)).to(torch.float64) / (self.quant_max - self.quant_min)
        best = int(torch.argmin(clipped + inside * step * step / 12))
        count = factors.numel()
        return low[best // count].reshape(1), high[best % count].reshape(1)

    def _search_symmetric(self, full_low: Tensor, full_high: Tensor) -> tuple[Tensor, Tensor]:
        edges, counts = self._counted()
        weights = self._edge_weights(edges, counts)
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
        edges, counts = self._counted()
        if self.symmetric:
            full_high = torch.maximum(-full_low, full_high)
            full_low = -full_high
        factors = torch.linspace(0.01, 1, 100)
        weights = self._edge_weights(edges, counts)
        return self._best(full_low * factors, full_high * factors, edges, weights)
