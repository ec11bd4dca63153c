"""Bias correction: the bias of a layer takes back what rounding its weight adds on average."""

import copy
import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from jitquant import _C, _batches, _checks, _state
from jitquant.calibration import _check, _length, _run
from jitquant.errors import JitQuantValueError

__all__ = ["correct_bias"]


class _ChannelMeans(nn.Module):
    """Sums up a layer's inputs by channel.

    Attributes:
        total: (channels,) float64, or (0,) before the first batch.
        count: values of one channel that were seen.
        axis: the channel axis, counted from the end; set for each layer.
    """

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(0, dtype=torch.float64))
        self.count = 0
        self.axis = -1

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() > 0:
            channels = x.size(self.axis)
            rows = x.detach().movedim(self.axis, 0).reshape(channels, -1)
            total = rows.sum(1, dtype=torch.float64)
            self.total = total if self.count == 0 else self.total + total
            self.count += rows.size(1)
        return x


def correct_bias(
    prepared: torch.jit.ScriptModule,
    data: Iterable[Any],
    *,
    batches: int | None = None,
    progress: bool = True,
) -> torch.jit.ScriptModule:
    """Return a prepared model whose biases make up for the rounding of its weights.

    A rounded weight moves the mean of each output channel by the rounding error times the mean of
    the inputs. Here the inputs' means are taken from data, and the product from the bias: the
    analytic bias correction of Nagel et al. 2019 (arXiv 1906.04721), section 4.2. Of use mostly
    where rounding is coarse: one scale for a whole weight, or depthwise convolutions.

    Args:
        prepared: what `prepare_jit` returned, calibrated or not. What it saw is kept, and it does
            not change. Convert on the engine that is set now.
        data: batches as `calibrate` takes them, such as the same ones.
        batches, progress: see `calibrate`.

    Returns:
        The prepared model with new biases, for `convert_jit`. Those of layers that stay float, are
        dynamic, ran on no data, or share weights with other ops, are as they were.

    Raises:
        JitQuantTypeError: see `calibrate`.
        JitQuantValueError: prepared was not prepared, or is corrected already; no layer of it
            becomes int8; see `calibrate`.
        JitQuantError: a layer's input has NaN or infinite values.
        KeyboardInterrupt: Ctrl-C; half of the data would give other means.
        Exception: see `calibrate`.
    """
    _check(prepared, data, batches, "correct_bias")
    state = _checks.check_prepared(prepared, "correct_bias")
    if state.bias_corrected:
        raise JitQuantValueError(
            "correct_bias: the biases are corrected already, and a second time would be too much."
        )
    _checks.check_engine()
    methods, records = _checks.method_names(prepared), state.records()
    scripted: Any = torch.jit.script(_ChannelMeans())
    module, names = _C.watch_means(prepared._c, methods, records, scripted._c)
    if not names:
        raise JitQuantValueError(
            "correct_bias: no layer of the model becomes int8 with calibrated activations, so "
            "there is no bias to correct."
        )
    watched = _checks.as_model(module)
    total = _length(data, batches)
    taken = itertools.islice(_batches.batches_of(data, "correct_bias"), batches)
    done = _run(watched, taken, total, progress, itertools.count(), "correct_bias")
    if done.interrupted:
        raise KeyboardInterrupt
    means = [_mean([getattr(watched, name) for name in of_weight]) for of_weight in names]
    corrected = _C.correct_bias(copy.deepcopy(prepared)._c, methods, records, means, None)
    _state.write(corrected, dataclasses.replace(state, bias_corrected=True))
    return _checks.as_model(corrected)


def _mean(recorders: list[Any]) -> Tensor:
    """(channels,) float64 over all that the layers of one weight read; (0,) if none of them ran."""
    seen = [recorder for recorder in recorders if recorder.count > 0]
    if not seen:
        return torch.zeros(0, dtype=torch.float64)
    mean: Tensor = sum(each.total for each in seen) / sum(each.count for each in seen)
    return mean
