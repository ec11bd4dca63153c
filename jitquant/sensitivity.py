"""Which op costs how much accuracy: the loss when it alone is int8, and when it alone is float."""

import math
import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from jitquant import _C, _batches, _checks, _export
from jitquant._table import table
from jitquant.errors import JitQuantTypeError, JitQuantValueError

__all__ = ["Metric", "OpSensitivity", "Sensitivity", "noise_to_signal", "sensitivity"]

Metric = Callable[[Any, Any], float]
"""Gives the loss of an output against the float model's, for one batch: 0 where they agree."""


@dataclass(frozen=True)
class OpSensitivity:
    """What one op costs.

    Attributes:
        index: of the op in `coverage(prepared).ops`.
        op: the float op, such as "aten::conv2d"; an activation that it absorbs belongs to it.
        module: path of the module that called it, "" for the top module.
        source: file and line of the user's code, "" if the archive does not say.
        alone_int8: loss of the model in which all other ops that round are float.
        alone_float: loss of the model in which all other ops are int8.
    """

    index: int
    op: str
    module: str
    source: str
    alone_int8: float
    alone_float: float


@dataclass(frozen=True)
class Sensitivity:
    """The ops of forward that int8 rounds, the costliest first; prints as a table.

    Attributes:
        ops: by `alone_int8`, falling.
        all_int8: loss of the model in which all ops are int8.
    """

    ops: tuple[OpSensitivity, ...]
    all_int8: float

    def __str__(self) -> str:
        rows = [
            (op.module, op.op, f"{op.alone_int8:.3g}", f"{op.alone_float:.3g}", op.source)
            for op in self.ops
        ]
        headers = ("module", "op", "loss, alone int8", "loss, alone float", "source")
        return f"{table(headers, rows)}\n\nloss, all int8: {self.all_int8:.3g}"

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line for each op, the costliest first."""
        _export.write_csv(path, map(_export.plain, self.ops))

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write all of it; infinite losses are "inf"."""
        _export.write_json(path, self)


def sensitivity(
    prepared: torch.jit.ScriptModule,
    data: Iterable[Any],
    metric: Metric | None = None,
    *,
    progress: bool = True,
) -> Sensitivity:
    """Measure what each op of `forward` costs in int8, without calibrating again.

    Each op takes two conversions with `debug=True` and two runs through the data. An int8 op that
    reads what a float op gives quantizes it with the qparams that the value has in the int8 model.

    Ops that move values, averages among them, have no entry: they have the qparams of their
    input, and what these cost belongs to the op that gives the input, or reads it first. Random
    ops give the same in all runs.

    Args:
        prepared: what `prepare_jit` returned, calibrated. It does not change.
        data: batches as `calibrate` takes them. They are kept in memory.
        metric: called with the float model's output and another's for each batch; the loss is the
            mean over batches. None is `noise_to_signal`.
        progress: show a bar, if stderr is a terminal.

    Returns:
        Each op's loss, the costliest op first.

    Raises:
        JitQuantTypeError: prepared is not a ScriptModule; data gives no batches; metric cannot be
            called, or gives no number.
        JitQuantValueError: prepared was not prepared, or changed by correct_bias; data is empty; no
            op is int8; a loss is NaN; forward gives no floating-point values, without a metric.
        JitQuantError: see `convert_jit`.
        Exception: what data, the model or metric raised, with a note that says for which batch.
    """
    checked = _checks.check_script_module(prepared, "sensitivity")
    _checks.check_prepared_by(checked, "prepare_jit", "sensitivity")
    trials = Trials(checked, data, metric, "sensitivity")
    return Sensitivity(tuple(trials.ranking(progress)), trials.loss(()))


def noise_to_signal(reference: Any, output: Any) -> float:
    """||output - reference||^2 / ||reference||^2 over all floating-point tensors.

    -10 log10 of it is the SQNR in dB.

    Args:
        reference: a tensor of any shape, or tuples, lists and dicts of tensors.
        output: of the same structure and shapes.

    Raises:
        JitQuantValueError: it is of others.
    """
    pairs = list(zip(_tensors(reference), _tensors(output), strict=False))
    shapes = [[each.shape for each in _tensors(one)] for one in (reference, output)]
    if shapes[0] != shapes[1]:
        raise JitQuantValueError(
            f"noise_to_signal: the reference is {_batches.described(reference)}, and the output "
            f"{_batches.described(output)}. Give a metric for outputs whose shapes depend on "
            "values."
        )
    noise = sum(float((ours.double() - theirs.double()).square().sum()) for theirs, ours in pairs)
    signal = sum(float(theirs.double().square().sum()) for theirs, _ in pairs)
    return noise / signal if signal > 0 else noise


class Trials:
    """One calibrated model, emulated in float again and again, with other ops left float.

    Attributes:
        ops: of the prepared model.
        units: indices of the ops of forward that int8 rounds, in graph order.
    """

    def __init__(
        self,
        prepared: torch.jit.ScriptModule,
        data: Iterable[Any],
        metric: Metric | None,
        function: str,
    ) -> None:
        if metric is not None and not callable(metric):
            raise JitQuantTypeError(
                f"{function}: metric must be a function of the float model's output and another's, "
                f"got {type(metric).__name__}."
            )
        self._state = _checks.check_prepared(prepared, function)
        _checks.check_own_biases(self._state, function)
        self._prepared = prepared
        self._metric = metric or noise_to_signal
        self._batches = list(_batches.batches_of(data, function))
        self._function = function
        self._random_state = torch.get_rng_state()
        self.ops = self._state.ops
        self._forward = [i for i, op in enumerate(self.ops) if op.method == "forward"]
        self.units = self._find_units()
        self._references = self._outputs(self._emulate(self.units).module)
        for number, reference in enumerate(self._references if metric is None else ()):
            if not any(each.numel() for each in _tensors(reference)):
                raise JitQuantValueError(
                    f"{function}: for batch {number} forward gives no floating-point values, but "
                    f"{_batches.described(reference)}. Give a metric for such outputs."
                )

    def loss(self, left_float: Collection[int]) -> float:
        """Of int8 with these ops left float."""
        return self._loss_of(self._emulate(left_float).module)

    def ranking(self, progress: bool) -> list[OpSensitivity]:
        """All units, the costliest first."""
        bar = tqdm(self.units, desc="sensitivity", disable=None if progress else True)
        measured = []
        for unit in bar:
            op = self.ops[unit]
            losses = (self.loss(set(self.units) - {unit}), self.loss({unit}))
            measured.append(OpSensitivity(unit, op.kind, op.path, op.source, *losses))
        return sorted(measured, key=lambda op: -op.alone_int8)

    def _emulate(self, left_float: Collection[int]) -> _C.Result:
        records = self._state.records(left_float)
        of_forward = [records[index] for index in self._forward]
        return _C.convert(self._prepared._c, ["forward"], of_forward, _C.Form.FLOAT, [], None)

    def _find_units(self) -> list[int]:
        planned = self._emulate(())
        units = [
            index
            for index, op, rounds in zip(
                self._forward, planned.records, planned.rounds, strict=True
            )
            if op.int8 and rounds
        ]
        if not units:
            raise JitQuantValueError(
                f"{self._function}: no op of forward is int8, so there is nothing to rank. "
                "coverage(prepared) says why."
            )
        return units

    def _outputs(self, module: torch._C.ScriptModule) -> list[Any]:
        model = _checks.as_model(module)
        with _batches.briefly(), torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random_state)
            return [
                _batches.run(model, _batches.copied(batch), f"{self._function}: batch {number}")
                for number, batch in enumerate(self._batches)
            ]

    def _loss_of(self, module: torch._C.ScriptModule) -> float:
        losses: list[float] = []
        for reference, output in zip(self._references, self._outputs(module), strict=True):
            try:
                loss = self._metric(reference, output)
            except Exception as error:
                error.add_note(f"{self._function}: the metric raised this for batch {len(losses)}.")
                raise
            if isinstance(loss, str):
                raise JitQuantTypeError(
                    f"{self._function}: metric must return a number, got the string {loss!r}."
                )
            try:
                losses.append(float(loss))
            except (TypeError, ValueError, RuntimeError) as error:
                raise JitQuantTypeError(
                    f"{self._function}: metric must return a number, got "
                    f"{_batches.described(loss)}."
                ) from error
            if math.isnan(losses[-1]):
                raise JitQuantValueError(
                    f"{self._function}: the loss of batch {len(losses) - 1} is nan. Look at the "
                    "batch, at what the float model gives for it, and at your metric if you gave "
                    "one."
                )
        return sum(losses) / len(losses)


def _tensors(output: Any) -> list[Tensor]:
    return [each.detach() for _, each in _batches.leaves(output) if each.is_floating_point()]
