"""Rules that leave single ops of a model float."""

from collections.abc import Sequence
from typing import Any

import torch

from jitquant import _checks
from jitquant._rule import FUSED_FLOAT
from jitquant.mapping import QConfigMapping
from jitquant.op_info import OpInfo

__all__ = ["FloatRules"]


class FloatRules:
    """Mappings that leave further ops float, named by their indices in the prepared model."""

    def __init__(
        self,
        mapping: QConfigMapping,
        model: torch.jit.ScriptModule,
        prepared: torch.jit.ScriptModule,
    ) -> None:
        self._mapping = mapping
        decisions = mapping.explain(model).decisions
        self._infos = [decision.op for decision in decisions]
        self._float = [decision.op for decision in decisions if decision.qconfig is None]
        self._ops = _checks.check_prepared(prepared, "auto_mapping").ops

    def leaving(self, left_float: Sequence[int]) -> QConfigMapping:
        """The given mapping with a rule for each of these ops, and each activation of theirs.

        Behind an op that is float the activation would be an int8 op of its own.
        """
        absorbed = [
            index
            for index, op in enumerate(self._ops)
            if op.reason.startswith("absorbed") and op.part_of in left_float
        ]
        found = [info for index in [*left_float, *absorbed] for info in self._infos_of(index)]
        quantized = [info for info in found if info not in self._float]
        keys = dict.fromkeys((info.module, info.kind, info.index) for info in quantized)
        mapping = self._mapping
        for key in keys:
            mapping = mapping.set_module_name_object_type_order(*key, FUSED_FLOAT)
        given = mapping.predicate
        if given is None or not keys:
            return mapping

        def predicate(op: OpInfo) -> Any:
            """The given one, asked about the ops that no rule of the search leaves float."""
            return NotImplemented if (op.module, op.kind, op.index) in keys else given(op)

        return mapping.set_predicate(predicate, example_inputs=mapping.example_inputs)

    def _infos_of(self, index: int) -> list[OpInfo]:
        """The ops of the float model that became an op of the prepared one.

        Where prepare_jit made other ops of some, they are those of the same line in the same
        module.
        """
        chosen = self._ops[index]
        place = (chosen.method, chosen.path, chosen.kind)
        before = [info for info in self._infos if (info.method, info.module, info.kind) == place]
        after = [i for i, op in enumerate(self._ops) if (op.method, op.path, op.kind) == place]
        if len(before) == len(after):
            return [before[after.index(index)]]
        line = (chosen.method, chosen.path, chosen.source)
        return [info for info in self._infos if (info.method, info.module, info.source) == line]
