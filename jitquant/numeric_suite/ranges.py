"""What `histograms` gives: values and weights in their ranges."""

import os
from dataclasses import dataclass
from typing import Any

from jitquant import _export
from jitquant._table import table
from jitquant.numeric_suite._sites import Unmatched

__all__ = ["Histogram", "Histograms", "OutlierChannel", "ValueRange", "WeightRange"]


@dataclass(frozen=True)
class Histogram:
    """Counts of the same values in float and quantized.

    Attributes:
        low, high: the lower edge of the first bin and the upper edge of the last, all equally wide.
        float_counts: of the float model; what lies outside is in the first or last bin.
        quantized_counts: of the quantized model.
    """

    low: float
    high: float
    float_counts: tuple[int, ...]
    quantized_counts: tuple[int, ...]


@dataclass(frozen=True)
class OutlierChannel:
    """A channel whose values are far larger than those of the others, which lose bits by it.

    Attributes:
        channel: its index.
        largest: its largest absolute float value.
        ratio: that, over the median of the channels.
    """

    channel: int
    largest: float
    ratio: float


@dataclass(frozen=True)
class ValueRange:
    """A quantized value.

    Attributes:
        module, op, index: see `OpError`.
        scale: real value of one step.
        low, high: what the integers can represent, as real numbers.
        seen_low, seen_high: the float model's lowest and highest value.
        saturated: share of the float values that are clipped: more than half a step outside.
        unused: share of the range, from low to high, in which no float value lies at either end.
        outliers: the channels of which the largest absolute value is more than 8 times the median
            channel's, the largest ratio first.
        histogram: what lies where; the bins span the range.
    """

    module: str
    op: str
    index: int
    scale: float
    low: float
    high: float
    seen_low: float
    seen_high: float
    saturated: float
    unused: float
    outliers: tuple[OutlierChannel, ...]
    histogram: Histogram


@dataclass(frozen=True)
class WeightRange:
    """The weight of a layer.

    Attributes:
        module, op, index: see `OpError`.
        low, high: its lowest and highest value, float or quantized.
        outliers: its output channels, see `ValueRange`.
        histogram: what lies where between low and high.
    """

    module: str
    op: str
    index: int
    low: float
    high: float
    outliers: tuple[OutlierChannel, ...]
    histogram: Histogram


@dataclass(frozen=True)
class Histograms:
    """What `histograms` saw; prints as a table of the values, the most clipped first.

    Attributes:
        values: every value that has qparams, in graph order.
        weights: every layer's weight.
        unmatched: what could not be compared, with reasons.
        batches: how many batches both models ran on.
    """

    values: tuple[ValueRange, ...]
    weights: tuple[WeightRange, ...]
    unmatched: tuple[Unmatched, ...]
    batches: int

    @property
    def ranked(self) -> tuple[ValueRange, ...]:
        """The values: the most clipped first, then those with most of their range unused."""
        return tuple(sorted(self.values, key=lambda each: (-each.saturated, -each.unused)))

    def __str__(self) -> str:
        headers = ("module", "op", "range", "float values", "clipped (%)", "unused (%)", "outliers")
        rows = [
            (
                each.module,
                each.op,
                f"{_export.number(each.low)} to {_export.number(each.high)}",
                f"{_export.number(each.seen_low)} to {_export.number(each.seen_high)}",
                f"{100 * each.saturated:.3f}",
                f"{100 * each.unused:.0f}",
                ", ".join(f"{one.channel} ({one.ratio:.0f}x)" for one in each.outliers[:3]),
            )
            for each in self.ranked
        ]
        return table(headers, rows)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line for each value, the most clipped first, without histograms."""
        _export.write_csv(path, (_flat(each) for each in self.ranked))

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write all of it."""
        _export.write_json(path, self)


def _flat(value: ValueRange) -> dict[str, Any]:
    values: dict[str, Any] = _export.plain(value)
    del values["histogram"]
    values["outliers"] = " ".join(str(each.channel) for each in value.outliers)
    return values
