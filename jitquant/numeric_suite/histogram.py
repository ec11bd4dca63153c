"""histograms: how values lie in the ranges that calibration chose for them."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from jitquant import _batches
from jitquant.numeric_suite._runs import Runs, Value
from jitquant.numeric_suite._sites import Models, Site
from jitquant.numeric_suite.ranges import (
    Histogram,
    Histograms,
    OutlierChannel,
    ValueRange,
    WeightRange,
)
from jitquant.numeric_suite.weights import weight_pairs

__all__ = ["HistogramSum", "RangeSum", "histograms", "outlier_channels"]

BINS = 128
OUTLIER = 8.0
"""How many times the median channel's largest absolute value makes a channel an outlier."""


def histograms(
    float_model: torch.jit.ScriptModule,
    quantized_model: torch.jit.ScriptModule,
    data: Iterable[Any],
) -> Histograms:
    """Count where the float model's values, and the quantized ones, lie in the quantized range.

    Arguments and errors are those of `compare_outputs`. A model of which all activations have 7
    bits has ranges of 128 steps.
    """
    models = Models(float_model, quantized_model, "histograms")
    runs = Runs(models, shadow=False)
    sums = HistogramSum(runs)
    for batch in _batches.batches_of(data, "histograms"):
        for each in runs.run(batch):
            sums.add(*each)
    return sums.result()


class RangeSum:
    """Sums over the batches of one quantized value. It keeps no tensor of them.

    Args:
        axis: the channels' dimension, None if there is none.
        high: the highest integer that is meant to be used.
    """

    def __init__(self, axis: int | None, high: int) -> None:
        self._axis = axis
        self._high = high
        self._count = 0
        self._clipped = 0
        self._seen = (float("inf"), float("-inf"))
        self._scale, self._zero_point = 0.0, 0
        self._counts = torch.zeros(2, BINS, dtype=torch.int64)
        self._largest: Tensor | None = None

    def add(self, expected: Tensor, actual: Tensor) -> None:
        """Add a pair of equal shapes; actual is quantized, with the same qparams each time."""
        values = expected.dequantize() if expected.is_quantized else expected.detach().float()
        finite = values[torch.isfinite(values)]
        if not finite.numel():
            return
        self._scale, self._zero_point = actual.q_scale(), actual.q_zero_point()
        steps = finite.double() / self._scale + self._zero_point
        self._count += finite.numel()
        self._clipped += int(((steps < -0.5) | (steps > self._high + 0.5)).sum())
        self._seen = (
            min(self._seen[0], float(finite.min())),
            max(self._seen[1], float(finite.max())),
        )
        codes = torch.stack([steps.round(), actual.int_repr()[torch.isfinite(values)].double()])
        width = (self._high + 1) / BINS
        bins = (codes / width).floor().clamp(0, BINS - 1).long()
        self._counts += torch.stack([torch.bincount(each, minlength=BINS) for each in bins])
        self._add_channels(values)

    def result(self, value: Value) -> ValueRange:
        """All batches so far; there was at least one."""
        low = -self._zero_point * self._scale
        high = (self._high - self._zero_point) * self._scale
        half = self._scale / 2
        used = min(self._seen[1], high) - max(self._seen[0], low)
        counts = [tuple(each.tolist()) for each in self._counts]
        largest = self._largest
        return ValueRange(
            module=value.site.module,
            op=value.site.op,
            index=value.site.index,
            scale=self._scale,
            low=low,
            high=high,
            seen_low=self._seen[0],
            seen_high=self._seen[1],
            saturated=self._clipped / self._count,
            unused=max(0.0, 1.0 - max(used, 0.0) / (high - low)),
            outliers=outlier_channels(largest) if largest is not None else (),
            histogram=Histogram(low - half, high + half, counts[0], counts[1]),
        )

    @property
    def is_empty(self) -> bool:
        """Whether no finite value came."""
        return self._count == 0

    def _add_channels(self, values: Tensor) -> None:
        if self._axis is None or not -values.dim() <= self._axis < values.dim():
            return
        rows = values.nan_to_num(0.0, 0.0, 0.0).movedim(self._axis, 0).flatten(1)
        largest = rows.abs().amax(1)
        if self._largest is None:
            self._largest = largest
        elif self._largest.shape == largest.shape:
            self._largest = torch.maximum(self._largest, largest)


def outlier_channels(largest: Tensor) -> tuple[OutlierChannel, ...]:
    """The outliers among channels with these largest absolute values, (channels,) float32."""
    alive = largest[largest > 0]
    if alive.numel() < 3:
        return ()
    median = float(alive.median())
    found = [
        OutlierChannel(index, value, value / median)
        for index, value in enumerate(largest.tolist())
        if value > OUTLIER * median
    ]
    return tuple(sorted(found, key=lambda each: -each.ratio))


class HistogramSum:
    """Sums over the batches of a run, from which `result` makes `Histograms`."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._sums: dict[Value, RangeSum] = {}
        bits = runs.models.state.activation_bits
        self._high = 2 ** bits[0] - 1 if len(bits) == 1 else 255

    def add(self, value: Value, expected: Tensor, actual: Tensor) -> None:
        """Add a value of one batch, as `Runs.run` gives it, if it has qparams."""
        if actual.is_quantized and actual.qscheme() == torch.per_tensor_affine:
            new = RangeSum(value.axis, self._high)
            self._sums.setdefault(value, new).add(expected, actual)

    def result(self) -> Histograms:
        """All batches so far, and the weights."""
        values = tuple(
            each.result(value)
            for value, each in self._sums.items()
            if value not in self._runs.failed and not each.is_empty
        )
        weights, _ = weight_pairs(self._runs.models)
        ranges = tuple(_weight_range(*each) for each in weights)
        return Histograms(values, ranges, tuple(self._runs.unmatched), self._runs.batches)


def _weight_range(site: Site, expected: Tensor, actual: Tensor) -> WeightRange:
    low = float(torch.minimum(expected.min(), actual.min()))
    high = float(torch.maximum(expected.max(), actual.max()))
    high = high if high > low else low + 1.0
    counts = [
        tuple(int(each) for each in torch.histc(values.float(), BINS, low, high).tolist())
        for values in (expected, actual)
    ]
    outliers = outlier_channels(expected.abs().flatten(1).amax(1))
    histogram = Histogram(low, high, counts[0], counts[1])
    return WeightRange(site.module, site.op, site.index, low, high, outliers, histogram)
