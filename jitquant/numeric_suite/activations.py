"""compare_outputs and compare_ops: the error that adds up, and the error that each op makes."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from jitquant import _batches
from jitquant.numeric_suite._runs import Runs, Value
from jitquant.numeric_suite._sites import Models
from jitquant.numeric_suite.comparison import Comparison, OpError, What
from jitquant.numeric_suite.errors import ErrorSum

__all__ = ["ComparisonSum", "compare_ops", "compare_outputs"]


def compare_outputs(
    float_model: torch.jit.ScriptModule,
    quantized_model: torch.jit.ScriptModule,
    data: Iterable[Any],
    *,
    per_channel: bool = False,
) -> Comparison:
    """Run both models, and compare the value of each op: the error that came up to there.

    Args:
        float_model: scripted, traced or loaded, or what `prepare_jit` returned.
        quantized_model: what `convert_jit` or `convert_dynamic_jit` returned, also from a file and
            with debug; or a prepared and calibrated model, which is converted for this.
        data: batches as for `calibrate`. Memory holds the values of one batch.
        per_channel: give `Errors.channels`. Channels are the last dimension of linear layers, and
            dimension 1 of all else, what forward returns included; a vector has none.

    Returns:
        Among the ops are the rounding of inputs ("quantize input") and of what float ops give to
        int8 ones ("quantize aten::mean"), and what forward returns ("return").

    Raises:
        JitQuantTypeError: either is no ScriptModule; data gives no batches.
        JitQuantValueError: float_model is converted; quantized_model is not quantized; the two have
            no op in common; data is empty; a batch does not fit forward.
        JitQuantError: quantized_model is prepared and not calibrated.
        Exception: what data or a model raised, with a note that says for which batch.
    """
    models = Models(float_model, quantized_model, "compare_outputs")
    return _compare(Runs(models, shadow=False), data, "outputs", per_channel)


def compare_ops(
    float_model: torch.jit.ScriptModule,
    quantized_model: torch.jit.ScriptModule,
    data: Iterable[Any],
    *,
    per_channel: bool = False,
) -> Comparison:
    """Run each op of the quantized model on the float model's values, and compare its value.

    The values are quantized with the qparams that the int8 op's input has, so what is left is the
    error of this one op with its weight, its input's rounding and its output's. Where an op writes
    a value in place, its readers get the quantized model's own.

    Arguments and errors are those of `compare_outputs`.
    """
    models = Models(float_model, quantized_model, "compare_ops")
    return _compare(Runs(models, shadow=True), data, "ops", per_channel)


class ComparisonSum:
    """Sums over the batches of a run, from which `result` makes a `Comparison`."""

    def __init__(self, runs: Runs, what: What) -> None:
        self._runs = runs
        self._what: What = what
        self._sums: dict[Value, ErrorSum] = {}

    def add(self, value: Value, expected: Tensor, actual: Tensor) -> None:
        """Add a value of one batch, as `Runs.run` gives it."""
        self._sums.setdefault(value, ErrorSum(value.axis)).add(expected, actual)

    def result(self, per_channel: bool = False) -> Comparison:
        """All batches so far."""
        failed = self._runs.failed
        ops = tuple(
            OpError.of(value.site, errors.errors(per_channel))
            for value, errors in self._sums.items()
            if value not in failed
        )
        return Comparison(self._what, ops, tuple(self._runs.unmatched), self._runs.batches)


def _compare(runs: Runs, data: Iterable[Any], what: What, per_channel: bool) -> Comparison:
    sums = ComparisonSum(runs, what)
    for batch in _batches.batches_of(data, runs.models.function):
        for each in runs.run(batch):
            sums.add(*each)
    return sums.result(per_channel)
