"""The engine on which a model is fastest, found by running it on each."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from jitquant import _checks
from jitquant._cost import costs
from jitquant._engine import engine_set
from jitquant._table import table
from jitquant.backend import BACKENDS
from jitquant.errors import JitQuantError, JitQuantTypeError, JitQuantValueError
from jitquant.quantize import _convert

__all__ = ["FastestEngine", "fastest_engine"]


@dataclass(frozen=True)
class FastestEngine:
    """What was measured; prints as a table.

    Attributes:
        engine: the fastest, for `torch.backends.quantized.engine`.
        model: converted for it. It runs while that engine is set.
        latency_ms: median of a run, for each engine that can run the model.
        problems: why the others cannot.
        threads: of torch, while it was measured.
    """

    engine: str
    model: torch.jit.ScriptModule
    latency_ms: dict[str, float]
    problems: dict[str, str]
    threads: int

    def __str__(self) -> str:
        rows = [
            (name, f"{ms:.2f}", "fastest" if name == self.engine else "")
            for name, ms in self.latency_ms.items()
        ]
        rows += [(name, "", problem) for name, problem in self.problems.items()]
        return table(("engine", "latency (ms)", ""), rows)


def fastest_engine(
    prepared: torch.jit.ScriptModule,
    batch: Any,
    *,
    preserved_attrs: Iterable[str] = (),
    seconds: float = 2.0,
) -> FastestEngine:
    """Convert a calibrated model for each engine, and measure which one runs it fastest.

    The models take turns, each loaded and run while its engine is set, with the number of threads
    that torch has now. Layers cannot be on different engines: packed weights are packed again, for
    the engine that is set, when a file is loaded.

    Args:
        prepared: what `prepare_jit` or `prepare_dynamic_jit` returned, calibrated; unchanged.
        batch: what to run on, of the size that counts later; see `calibrate`. Unchanged.
        preserved_attrs: see `convert_jit`.
        seconds: how long to measure, for each engine; above 0. Each runs 5 times at least.

    Returns:
        The engine and the model converted for it. The engine that was set is set again: set the one
        found before the model runs or its file is loaded.

    Raises:
        JitQuantTypeError: prepared is no ScriptModule; seconds is no number; the batch is none.
        JitQuantValueError: seconds is not above 0 and finite; and see `convert_jit`.
        JitQuantError: no engine can run the model; what the first one lacks.
    """
    checked = _checks.check_script_module(prepared, "fastest_engine")
    _checks.check_prepared(checked, "fastest_engine")
    _check_seconds(seconds)
    methods, attributes = _checks.check_preserved_attrs(checked, preserved_attrs)
    models: dict[str, torch.jit.ScriptModule] = {}
    warned: dict[str, list[warnings.WarningMessage]] = {}
    errors: dict[str, JitQuantError] = {}
    for engine in BACKENDS:
        if engine not in torch.backends.quantized.supported_engines:
            continue
        with engine_set(engine), warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            try:
                models[engine] = _convert(checked, False, methods + attributes, None)
            except JitQuantError as error:
                errors[engine] = error
        warned[engine] = seen
    if not models:
        raise next(iter(errors.values()))
    found = costs(list(models.values()), batch, seconds * len(models), list(models))
    latency = {engine: cost.latency for engine, cost in zip(models, found, strict=True)}
    best = min(latency, key=latency.__getitem__)
    for warning in warned[best]:
        warnings.warn(warning.message, stacklevel=2)
    problems = {engine: str(error) for engine, error in errors.items()}
    return FastestEngine(best, models[best], latency, problems, found[0].threads)


def _check_seconds(seconds: object) -> None:
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        raise JitQuantTypeError(f"fastest_engine: seconds must be a number, got {seconds!r}.")
    if not 0 < seconds < math.inf:
        raise JitQuantValueError(
            f"fastest_engine: seconds must be above 0 and finite, got {seconds}."
        )
