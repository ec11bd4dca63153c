"""Which rule of a QConfigMapping decides on each op of a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from jitquant import _C, _checks
from jitquant._configure import decide
from jitquant._resolve import Decision
from jitquant._rule import FUSED_FLOAT
from jitquant._table import table
from jitquant.qconfig import QConfig

if TYPE_CHECKING:
    from jitquant.mapping import QConfigMapping

__all__ = ["Explanation", "explain"]

NO_RULE = "no rule matches"


@dataclass(frozen=True)
class Explanation:
    """The decision on each op of a float model, in graph order; prints as a table.

    Attributes:
        decisions: one for each op that computes tensors, before BatchNorm and padding are folded.
        idle: the rules that decide on no op, since stronger ones do wherever they match.
    """

    decisions: tuple[Decision, ...]
    idle: tuple[str, ...] = ()

    @property
    def qconfigs(self) -> tuple[QConfig, ...]:
        """The distinct qconfigs, which the table numbers from 1."""
        given = (decision.qconfig for decision in self.decisions)
        return tuple(dict.fromkeys(qconfig for qconfig in given if qconfig is not None))

    def __str__(self) -> str:
        numbers = {qconfig: f"#{index}" for index, qconfig in enumerate(self.qconfigs, 1)}
        rows = [_row(decision, numbers) for decision in self.decisions]
        headers = ("method", "module", "op", "index", "qconfig", "decided by", "source")
        legend = [
            f"{number}: activation {qconfig.activation!r}, weight {qconfig.weight!r}"
            for qconfig, number in numbers.items()
        ]
        idle = [f"decides on no op: {rule}" for rule in self.idle]
        return "\n".join([table(headers, rows), "", *legend, *idle])


def _row(decision: Decision, numbers: dict[QConfig, str]) -> Sequence[str]:
    op, qconfig = decision.op, decision.qconfig
    name = op.kind if op.written == op.kind else f"{op.written} as {op.kind}"
    left = FUSED_FLOAT if decision.is_fused else "float"
    what = left if qconfig is None else numbers[qconfig]
    return (op.method, op.module, name, str(op.index), what, decision.rule or NO_RULE, op.source)


def explain(mapping: "QConfigMapping", model: torch.jit.ScriptModule) -> Explanation:
    """See `QConfigMapping.explain`."""
    checked = _checks.check_script_module(model, "explain")
    _checks.check_float_model(checked, "explain")
    preparation = _C.Preparation(checked._c, _checks.method_names(checked), None)
    decisions = tuple(decide(checked, mapping, preparation))
    deciding = {decision.rule for decision in decisions}
    idle = tuple(str(rule) for rule in mapping.rules if str(rule) not in deciding)
    return Explanation(decisions, idle)
