"""Automatic precision: as little time in float ops as an accuracy needs."""

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from jitquant import _batches, _checks
from jitquant._cost import costs
from jitquant._float_rules import FloatRules
from jitquant._one_calibration import OneCalibration
from jitquant._op_times import costs_in_float
from jitquant._table import table
from jitquant.calibration import calibrate
from jitquant.coverage import coverage
from jitquant.errors import (
    DroppedWarning,
    FloatWarning,
    JitQuantError,
    JitQuantTypeError,
    JitQuantValueError,
)
from jitquant.mapping import QConfigMapping, as_mapping
from jitquant.qconfig import get_default_qconfig
from jitquant.quantize import Config, _convert, _prepare, prepare_jit
from jitquant.sensitivity import Metric, OpSensitivity, Trials

__all__ = ["AutoMapping", "Trial", "auto_mapping"]

Evaluate = Callable[[torch.jit.ScriptModule], float]
"""Gives a model's score; higher is better."""

_SECONDS = 0.5


@dataclass(frozen=True)
class Trial:
    """One configuration that was tried.

    Attributes:
        left_float: indices of the ops left float, in `coverage(prepare_jit(model, ...)).ops`.
        score: what evaluate gave.
        passed: whether it is at most max_drop below the float model's.
    """

    left_float: tuple[int, ...]
    score: float
    passed: bool


@dataclass(frozen=True)
class AutoMapping:
    """What the search found; prints as tables.

    Attributes:
        mapping: the given one, and a rule for each op that is left float.
        model: the int8 model: what `convert_jit` gives after `prepare_jit` with `mapping`, and
            calibration on the data.
        left_float: the ops that are float in it, those first that lose most accuracy for the time
            that being float costs.
        costs_ms: what being float costs each of these, estimated; negative if int8 is slower.
        float_score: what evaluate gave for the float model.
        score: what it gave for `model`.
        trials: everything that was tried, in order.
        latency_ms: median of a run on the first batch, for "float", "all int8" and "chosen".
    """

    mapping: QConfigMapping
    model: torch.jit.ScriptModule
    left_float: tuple[OpSensitivity, ...]
    costs_ms: tuple[float, ...]
    float_score: float
    score: float
    trials: tuple[Trial, ...]
    latency_ms: dict[str, float]

    @property
    def estimated_ms(self) -> float:
        """Of `model`: the latency of "all int8", and what is float costs besides."""
        return self.latency_ms["all int8"] + sum(self.costs_ms)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the latencies say against int8."""
        slow = self.latency_ms["all int8"]
        return tuple(
            f"all int8 is slower than {name}: {slow:.2f} against {ms:.2f} ms"
            for name, ms in self.latency_ms.items()
            if ms < slow
        )

    def __str__(self) -> str:
        tried = [
            (number, len(trial.left_float), f"{trial.score:.6g}", "yes" if trial.passed else "no")
            for number, trial in enumerate(self.trials, 1)
        ]
        left = [
            (op.module, op.op, f"{op.alone_int8:.3g}", f"{cost:.3f}", op.source)
            for op, cost in zip(self.left_float, self.costs_ms, strict=True)
        ]
        times = [(name, f"{ms:.2f}") for name, ms in self.latency_ms.items()]
        times.append(("chosen, estimated", f"{self.estimated_ms:.2f}"))
        return "\n\n".join(
            [
                table(("trial", "ops left float", "score", "passed"), tried),
                table(
                    ("left float: module", "op", "loss, alone int8", "cost (ms)", "source"), left
                ),
                table(("model", "latency (ms)"), times),
                f"score: float {self.float_score:.6g}, chosen {self.score:.6g}",
                *self.notes,
            ]
        )


def auto_mapping(
    model: torch.jit.ScriptModule,
    data: Iterable[Any],
    evaluate: Evaluate,
    *,
    max_drop: float,
    qconfig_dict: Config | None = None,
    metric: Metric | None = None,
    preserved_attrs: Iterable[str] | None = None,
    progress: bool = True,
) -> AutoMapping:
    """Find a fast configuration whose score drops at most `max_drop`.

    If the model is not good enough in int8, its ops are ranked: by the loss
    that each causes alone (see `sensitivity`) for each ms that it takes longer in float, estimated
    from a profile of the int8 model and of one with all of them float. Those that are faster in
    float come first. Bisection finds how many of the ranking have to be float; then each of these
    that int8 makes faster, the one that saves most first, is tried in int8 again. Each trial
    prepares and converts the model by the mapping that it tries; one calibration serves all.

    Args:
        model: a scripted, traced or loaded float32 model in eval mode, on the CPU.
        data: batches to calibrate on and to rank by; see `calibrate`. Kept in memory.
        evaluate: called with copies of the float model and of int8 models, which it may change;
            gives a number, such as the accuracy on other data. Higher is better.
        max_drop: in units of the score, 0 or more.
        qconfig_dict: what `prepare_jit` takes; ops that it leaves float stay float. None is the
            default qconfig for all ops.
        metric: see `sensitivity`; what ops are ranked by.
        preserved_attrs: see `convert_jit`. Not methods with int8 ops: only forward is calibrated.
        progress: show bars, if stderr is a terminal.

    Returns:
        The mapping, the converted model, and what was tried. If only the float model is good
        enough, all ops that round are left float.

    Raises:
        JitQuantTypeError: evaluate cannot be called or gives no number; max_drop is no number.
        JitQuantValueError: max_drop is negative; evaluate gave NaN; preserved_attrs names a method
            with int8 ops; and see `prepare_jit`,
            `calibrate`, `sensitivity`.
        JitQuantError: the score is too low even with all ops float; and see `prepare_jit`,
            `calibrate` and `convert_jit`.
    """
    checked = _checks.check_script_module(model, "auto_mapping")
    _check_arguments(evaluate, max_drop, data)
    mapping = as_mapping({"": get_default_qconfig()} if qconfig_dict is None else qconfig_dict)
    batches = list(data)
    observed = _prepare(checked, mapping, None, spares=True)
    kept = _kept(observed, preserved_attrs)
    calibrated = _Calibrated(checked, observed, batches, progress)
    prepared = calibrated.by(mapping)
    rules = FloatRules(mapping, checked, prepared)
    float_score = _score(evaluate, checked, "float model")
    trials: list[Trial] = []
    cost: dict[int, float] = {}  # in ms, of the ops that are ranked
    models = {"float": checked}  # and "all int8", the first that is tried, and the last that passed

    def try_in_int8(left_float: Sequence[OpSensitivity]) -> bool:
        indices = sorted(op.index for op in left_float)
        by_mapping = calibrated.by(rules.leaving(indices)) if indices else prepared
        converted = _converted(by_mapping, kept, is_first=not trials)
        score = _score(evaluate, converted, f"model of trial {len(trials) + 1}")
        trials.append(Trial(tuple(indices), score, score >= float_score - max_drop))
        models.setdefault("all int8", converted)
        if trials[-1].passed:
            models["chosen"] = converted
        return trials[-1].passed

    chosen: list[OpSensitivity] = []
    if not try_in_int8(chosen):
        ranking = Trials(prepared, batches, metric, "auto_mapping").ranking(progress)
        if not try_in_int8(ranking):
            raise JitQuantError(
                f"auto_mapping: the score is {trials[-1].score:.6g} even with all ops float, where "
                f"the float model has {float_score:.6g}. Is evaluate the same function of a model "
                "each time? BatchNorm is folded, so that the last bits of the outputs differ."
            )
        cost = _costs(prepared, ranking, batches[0])
        ranking.sort(key=lambda op: _urgency(op, cost[op.index]), reverse=True)
        chosen = _give_back(_bisect(ranking, try_in_int8), cost, try_in_int8)
    # What is chosen is what passed last.
    trial = next(trial for trial in reversed(trials) if trial.passed)
    latencies = [cost.latency for cost in costs(list(models.values()), batches[0], _SECONDS)]
    return AutoMapping(
        mapping=rules.leaving(trial.left_float),
        model=models["chosen"],
        left_float=tuple(chosen),
        costs_ms=tuple(cost[op.index] for op in chosen),
        float_score=float_score,
        score=trial.score,
        trials=tuple(trials),
        latency_ms=dict(zip(models, latencies, strict=True)),
    )


class _Calibrated:
    """Prepared models of one search, which one calibration serves.

    Only where it cannot (see `OneCalibration.give`) a model is calibrated on its own.
    """

    def __init__(
        self,
        model: torch.jit.ScriptModule,
        observed: torch.jit.ScriptModule,
        batches: list[Any],
        progress: bool,
    ) -> None:
        self._model, self._batches = model, batches
        self._calibration = OneCalibration(observed)
        calibrate(observed, batches, progress=progress)

    def by(self, mapping: QConfigMapping) -> torch.jit.ScriptModule:
        """What prepare_jit makes of the float model by a mapping of the search, calibrated."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FloatWarning)  # that ops are float is what is tried
            prepared = prepare_jit(self._model, mapping)
        if not self._calibration.give(prepared):
            calibrate(prepared, self._batches, progress=False)
        return prepared


def _converted(
    prepared: torch.jit.ScriptModule,
    preserved_attrs: Iterable[str] | None,
    is_first: bool,
    left_float: Sequence[int] = (),
) -> torch.jit.ScriptModule:
    """What convert_jit makes of it; only the first model of a search warns."""
    with warnings.catch_warnings():
        if not is_first:
            warnings.simplefilter("ignore", DroppedWarning)
            warnings.simplefilter("ignore", FloatWarning)
        return _convert(prepared, False, preserved_attrs, None, left_float)


def _check_arguments(evaluate: object, max_drop: object, data: object) -> None:
    if not callable(evaluate):
        raise JitQuantTypeError(
            "auto_mapping: evaluate must be a function that gives a model's score, got "
            f"{type(evaluate).__name__}."
        )
    if not isinstance(max_drop, int | float) or isinstance(max_drop, bool):
        raise JitQuantTypeError(f"auto_mapping: max_drop must be a number, got {max_drop!r}.")
    if not max_drop >= 0:
        raise JitQuantValueError(f"auto_mapping: max_drop must be 0 or more, got {max_drop}.")
    _batches.check_iterable(data, "auto_mapping")


def _kept(prepared: torch.jit.ScriptModule, preserved_attrs: Iterable[str] | None) -> list[str]:
    """The names in preserved_attrs; raises for a method with int8 ops, which nothing calibrates."""
    methods, attributes = _checks.check_preserved_attrs(prepared, preserved_attrs)
    ops = coverage(prepared).int8
    for method in methods[1:]:
        if any(op.method == method for op in ops):
            raise JitQuantValueError(
                f"auto_mapping: the method {method!r} has ops that will be int8, and data "
                "calibrate forward only. Search without it; then prepare_jit(model, "
                f"found.mapping), run forward and {method} on samples, and "
                f"convert_jit(prepared, preserved_attrs=[{method!r}])."
            )
    return methods[1:] + attributes


def _score(evaluate: Evaluate, model: torch.jit.ScriptModule, what: str) -> float:
    with torch.no_grad():
        score = evaluate(copy.deepcopy(model))
    try:
        number = float(score)
    except (TypeError, ValueError, RuntimeError) as error:
        raise JitQuantTypeError(
            f"auto_mapping: evaluate must return a number, got {_batches.described(score)}."
        ) from error
    if math.isnan(number):
        raise JitQuantValueError(
            f"auto_mapping: evaluate gave nan for the {what}, which compares with no other score. "
            "Look at its data, and at what that model gives."
        )
    return number


def _costs(
    prepared: torch.jit.ScriptModule, ranking: Sequence[OpSensitivity], batch: Any
) -> dict[int, float]:
    """ms that each op takes longer in float, by its index."""
    int8, in_float = (
        _converted(prepared, None, is_first=False, left_float=left_float)
        for left_float in ((), [op.index for op in ranking])
    )
    forward = [i for i, op in enumerate(coverage(prepared).ops) if op.method == "forward"]
    units = [forward.index(op.index) for op in ranking]
    costs_ms = costs_in_float(int8, in_float, units, batch, _SECONDS)
    return {op.index: ms for op, ms in zip(ranking, costs_ms, strict=True)}


def _urgency(op: OpSensitivity, cost: float) -> tuple[bool, float]:
    """Ops that are no slower in float come first, others by the loss that a ms takes away."""
    return (True, op.alone_int8) if cost <= 0 else (False, op.alone_int8 / cost)


def _bisect(
    ranking: list[OpSensitivity], passes: Callable[[Sequence[OpSensitivity]], bool]
) -> list[OpSensitivity]:
    """The fewest of the first ops with which it passes, as if more float ops never did harm.

    It passes with all, and not with none.
    """
    failing, passing = 0, len(ranking)
    while passing - failing > 1:
        middle = (failing + passing) // 2
        if passes(ranking[:middle]):
            passing = middle
        else:
            failing = middle
    return ranking[:passing]


def _give_back(
    chosen: list[OpSensitivity],
    cost: dict[int, float],
    passes: Callable[[Sequence[OpSensitivity]], bool],
) -> list[OpSensitivity]:
    """Without those that int8 makes faster and that can be int8 again, the costliest first.

    Bisection has shown that the last one cannot.
    """
    slower = [op for op in chosen[:-1] if cost[op.index] > 0]
    for op in sorted(slower, key=lambda op: cost[op.index], reverse=True):
        fewer = [other for other in chosen if other is not op]
        if passes(fewer):
            chosen = fewer
    return chosen
