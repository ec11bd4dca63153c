"""Which ops of a model are int8, which stayed float, and why."""

import os
from collections import Counter
from dataclasses import dataclass

import torch

from jitquant import _C, _checks, _export, _state
from jitquant._table import table
from jitquant.errors import JitQuantValueError

__all__ = ["Coverage", "OpCoverage", "coverage"]


@dataclass(frozen=True)
class OpCoverage:
    """What became of one op of the float model.

    Attributes:
        method: the model's method that runs it, such as "forward".
        op: the float op, such as "aten::conv2d".
        module: path of the module that called it, "" for the top module.
        source: file and line of the user's code, "" if the archive does not say.
        int8: whether it is (or after convert_jit will be) int8.
        reason: how it is int8 ("quantized::conv2d_relu"), or why it stays float.
    """

    method: str
    op: str
    module: str
    source: str
    int8: bool
    reason: str


@dataclass(frozen=True)
class Coverage:
    """All ops of a model in graph order; prints as a table.

    Attributes:
        stage: "prepared" (a plan), "converted", or "debug" (int8 emulated in float).
        ops: one entry for each op that computes tensors.
    """

    stage: str
    ops: tuple[OpCoverage, ...]

    @property
    def int8(self) -> tuple[OpCoverage, ...]:
        """The ops that are int8."""
        return tuple(op for op in self.ops if op.int8)

    @property
    def float(self) -> tuple[OpCoverage, ...]:
        """The ops that stay float."""
        return tuple(op for op in self.ops if not op.int8)

    @property
    def never_ran(self) -> tuple[OpCoverage, ...]:
        """Those of the float ops that stand in branches and loops that calibration never ran."""
        return tuple(op for op in self.float if op.reason.endswith(_C.NEVER_RAN))

    def summary(self) -> str:
        """One line with the counts, and a line for each reason why ops stay float.

        Ops of branches that never ran are counted apart.
        """
        never_ran = self.never_ran
        counted = [op for op in self.float if not op.reason.endswith(_C.NEVER_RAN)]
        lines = [f"{len(self.int8)} of {len(self.ops) - len(never_ran)} ops int8"]
        reasons = Counter(f"{op.op}: {op.reason}" for op in counted)
        lines += [f"  float, {count} x {reason}" for reason, count in reasons.most_common()]
        if never_ran:
            lines.append(
                f"  not counted: {len(never_ran)} of branches or loops that {_C.NEVER_RAN}"
            )
        return "\n".join(lines)

    def __str__(self) -> str:
        rows = [
            (op.method, op.module, op.op, "int8" if op.int8 else "float", op.reason, op.source)
            for op in self.ops
        ]
        headers = ("method", "module", "op", "runs in", "how or why", "source")
        return f"{table(headers, rows)}\n\n{self.summary()}"

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line for each op, in graph order."""
        _export.write_csv(path, map(_export.plain, self.ops))

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write all of it."""
        _export.write_json(path, self)


def coverage(model: torch.jit.ScriptModule) -> Coverage:
    """Return which ops of a prepared or converted model are int8, and why the others are not.

    It works on a loaded file too: the record travels in it.

    Raises:
        JitQuantTypeError: model is not a ScriptModule.
        JitQuantValueError: jitquant did not make the model.
    """
    state = _state.read(_checks.check_script_module(model, "coverage"))
    if state is None:
        raise JitQuantValueError(
            "coverage: the model has no coverage record, so prepare_jit or convert_jit did not "
            "make it."
        )
    ops = tuple(
        OpCoverage(op.method, op.kind, op.path, op.source, op.int8, op.reason) for op in state.ops
    )
    return Coverage(state.stage, ops)
