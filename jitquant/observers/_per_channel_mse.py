"""The observer that clips each channel of a weight where this lowers the squared error."""

import torch
from torch import Tensor

from jitquant.observers._base import FLOAT32_EPS
from jitquant.observers._min_max import PerChannelMinMaxObserver


class PerChannelMSEObserver(PerChannelMinMaxObserver):
    """Qparams for each channel of the range with the least squared quantization error.

    For weights: it keeps all values that it saw, and counts the error of each with the qparams that
    a range gives. The ranges are f * [min, max], or f * [-m, m] with the greatest magnitude m if
    symmetric: 48 of f from 1 down to 1 / 1024, 25 within 15 % of the best of them, 13 within 1.25 %
    of the best of those, and 1. f goes up to 1.05: few distinct values may lie on that grid.

    Args: see `PerChannelMinMaxObserver`.

    Raises:
        JitQuantTypeError, JitQuantValueError, RuntimeError: see `PerChannelMinMaxObserver`.
    """

    values: Tensor

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
        super().__init__(ch_axis, dtype, qscheme, reduce_range, quant_min, quant_max, eps)
        # (0, 0) until the first tensor, then (C, values of a channel), float32
        self.register_buffer("values", torch.empty(0, 0))

    def _keep(self, x: Tensor) -> None:
        rows = x.transpose(0, self.ch_axis).flatten(1) if x.dim() > 1 else x.unsqueeze(1)
        first = self.values.numel() == 0
        self.values = rows.clone() if first else torch.cat([self.values, rows], 1)

    def _statistics(self) -> list[Tensor]:
        return [self.min_val, self.max_val, self.values]

    def _merge_values(self, other: list[Tensor]) -> None:
        first = self.values.numel() == 0
        self.values = other[2] if first else torch.cat([self.values, other[2]], 1)

    @torch.jit.export
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scale (C,) float32 and zero_point (C,) int64; RuntimeError if there is no data."""
        if self.min_val.numel() == 0:
            raise RuntimeError(self._no_data())
        low, high = self.min_val, self.max_val
        if self.symmetric:
            high = torch.maximum(-low, high)
            low = -high
        rows = max(1, 65536 // self.values.size(1))  # what a cache holds next to copies of it
        factors: list[Tensor] = []
        for i in range(0, low.numel(), rows):
            part = self.values[i : i + rows]
            factors.append(self._best_factors(low[i : i + rows], high[i : i + rows], part))
        return self._qparams(low * torch.cat(factors), high * torch.cat(factors))

    def _best_factors(self, low: Tensor, high: Tensor, values: Tensor) -> Tensor:
        """What each channel's range is best multiplied with: (C,), (C,), (C, N) -> (C,)."""
        best = torch.ones_like(low)
        least = self._squared_errors(low, high, values)
        for around in [
            torch.logspace(0, -10, 48, base=2.0),
            torch.linspace(0.85, 1.15, 25),
            torch.linspace(0.9875, 1.0125, 13),
        ]:
            center = best
            for i in range(around.numel()):
                factors = torch.clamp(center * around[i], max=1.05)
                errors = self._squared_errors(low * factors, high * factors, values)
                better = errors < least
                best = torch.where(better, factors, best)
                least = torch.where(better, errors, least)
        return best

    def _squared_errors(self, low: Tensor, high: Tensor, values: Tensor) -> Tensor:
        """Sums over each channel of (quantized - value)^2, in float64, (C,)."""
        scale, zero_point = self._qparams(low, high)
        scale, zero_point = scale.unsqueeze(1), zero_point.unsqueeze(1)
        quantized = (values / scale).round_()
        quantized = quantized.clamp_(self.quant_min - zero_point, self.quant_max - zero_point)
        error = quantized.mul_(scale).sub_(values)
        return error.square_().sum(1, dtype=torch.float64)

    @torch.jit.export
    def reset(self) -> None:
        """Forget everything seen."""
        self._forget_ranges()
        self.values = self.values.new_empty([0, 0])
