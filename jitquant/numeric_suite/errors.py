"""How far quantized values are from float ones."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from jitquant.errors import JitQuantTypeError, JitQuantValueError

__all__ = ["ChannelError", "ErrorSum", "Errors", "sqnr"]

_CHANNEL_LIMIT = 100.0


def sqnr(expected: Tensor, actual: Tensor) -> float:
    """Signal to quantization noise ratio in dB: 20 log10(||expected|| / ||expected - actual||).

    inf where both are equal, -inf where only expected is zero. The tensors may be quantized.

    Raises:
        JitQuantTypeError: an argument is no tensor.
        JitQuantValueError: their shapes differ.
    """
    if not (isinstance(expected, Tensor) and isinstance(actual, Tensor)):
        raise JitQuantTypeError(
            f"sqnr takes two tensors, got {type(expected).__name__} and {type(actual).__name__}."
        )
    if expected.shape != actual.shape:
        raise JitQuantValueError(
            f"sqnr takes tensors of equal shape, got {tuple(expected.shape)} and "
            f"{tuple(actual.shape)}."
        )
    expected, actual = _float(expected), _float(actual)
    return _decibels(float((expected**2).sum()), float(((expected - actual) ** 2).sum()))


@dataclass(frozen=True)
class ChannelError:
    """One channel of a value.

    Attributes:
        channel: its index.
        sqnr: in dB, see `sqnr`.
        max_abs_error: the largest absolute difference.
        largest: the largest absolute float value.
    """

    channel: int
    sqnr: float
    max_abs_error: float
    largest: float


@dataclass(frozen=True)
class Errors:
    """What all values of one op, or one weight, differ by.

    Attributes:
        count: how many elements were compared; those that are not finite in the float model are
            left out.
        not_finite: how many were left out. If that is all, what follows is NaN.
        sqnr: in dB, see the function `sqnr`.
        channel_sqnr: in dB, the mean over the channels of their SQNR, each within -100 to 100 dB,
            channels of zeros left out. It shows a channel whose large values hide from `sqnr` what
            the other ones lose. Equal to sqnr for values without channels.
        max_abs_error: the largest absolute difference.
        mean_abs_error: the mean absolute difference.
        cosine: cosine of the angle between both, 1 if both are zero.
        channels: of each channel, if asked for.
    """

    count: int
    not_finite: int
    sqnr: float
    channel_sqnr: float
    max_abs_error: float
    mean_abs_error: float
    cosine: float
    channels: tuple[ChannelError, ...] = ()

    @property
    def damage(self) -> float:
        """What tables are sorted by, in dB, largest first: the lower one of both SQNRs, negated."""
        values = (self.sqnr, self.channel_sqnr)
        return math.inf if any(map(math.isnan, values)) else -min(values)


class ErrorSum:
    """Sums over pairs of tensors, from which `errors` makes `Errors`. It keeps no tensor of them.

    Args:
        axis: the channels' dimension, None if there is none. Where the pairs have other numbers of
            channels, or not that dimension, the value counts as one without channels.
    """

    def __init__(self, axis: int | None) -> None:
        self._axis = axis
        self._count = 0
        self._not_finite = 0
        self._sums = torch.zeros(5, 0, dtype=torch.float64)
        self._largest = torch.zeros(2, 0, dtype=torch.float64)

    def add(self, expected: Tensor, actual: Tensor) -> None:
        """Add one pair of equal shapes, floating point or quantized."""
        expected, actual = self._rows(_float(expected)), self._rows(_float(actual))
        finite = torch.isfinite(expected)
        missing = int(expected.numel() - finite.sum())
        if missing:
            expected, actual = expected.where(finite, 0.0), actual.where(finite, 0.0)
        self._not_finite += missing
        self._count += expected.numel() - missing
        if not expected.numel():
            return
        error = expected - actual
        sums = [expected**2, error**2, error.abs(), expected * actual, actual**2]
        self._add(
            torch.stack([each.sum(1) for each in sums]),
            torch.stack([error.abs().amax(1), expected.abs().amax(1)]),
        )

    def errors(self, per_channel: bool = False) -> Errors:
        """All pairs so far; per_channel gives `Errors.channels` too."""
        if self._count == 0:
            nan = math.nan
            return Errors(0, self._not_finite, nan, nan, nan, nan, nan)
        signal, error, absolute, product, other = (float(each) for each in self._sums.sum(1))
        largest = float(self._largest[0].max()) if self._largest.numel() else 0.0
        whole = _decibels(signal, error)
        channels = self._channels()
        known = [
            min(max(each.sqnr, -_CHANNEL_LIMIT), _CHANNEL_LIMIT)
            for each in channels
            if each.largest > 0 or each.max_abs_error > 0
        ]
        return Errors(
            count=self._count,
            not_finite=self._not_finite,
            sqnr=whole,
            channel_sqnr=sum(known) / len(known) if len(channels) > 1 and known else whole,
            max_abs_error=largest,
            mean_abs_error=absolute / self._count,
            cosine=_cosine(product, signal, other),
            channels=tuple(channels) if per_channel and len(channels) > 1 else (),
        )

    def _rows(self, values: Tensor) -> Tensor:
        """(channels, values) of float64."""
        if self._axis is not None and -values.dim() <= self._axis < values.dim():
            moved = values.movedim(self._axis, 0)
            return moved.reshape(moved.size(0), -1) if values.numel() else values.reshape(1, -1)
        return values.reshape(1, -1)

    def _add(self, sums: Tensor, largest: Tensor) -> None:
        if self._sums.size(1) == 0:
            self._sums, self._largest = sums, largest
        elif self._sums.size(1) == sums.size(1):
            self._sums += sums
            self._largest = torch.maximum(self._largest, largest)
        else:
            self._axis = None
            self._sums = (self._sums.sum(1) + sums.sum(1)).unsqueeze(1)
            both = torch.cat([self._largest, largest], 1)
            self._largest = both.amax(1, keepdim=True)

    def _channels(self) -> list[ChannelError]:
        signal, error = self._sums[0].tolist(), self._sums[1].tolist()
        worst, largest = self._largest.tolist()
        return [
            ChannelError(i, _decibels(signal[i], error[i]), worst[i], largest[i])
            for i in range(len(signal))
        ]


def _float(values: Tensor) -> Tensor:
    """float64, in which the squares of float32 are exact and sums lose next to nothing."""
    return (values.dequantize() if values.is_quantized else values.detach()).double()


def _decibels(signal: float, error: float) -> float:
    if math.isnan(error) or math.isnan(signal):
        return math.nan
    if error == 0:
        return math.inf
    return 10 * math.log10(signal / error) if signal > 0 and error < math.inf else -math.inf


def _cosine(product: float, signal: float, other: float) -> float:
    if signal == 0 or other == 0:
        return 1.0 if signal == other else 0.0
    return product / math.sqrt(signal) / math.sqrt(other)
