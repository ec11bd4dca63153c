"""The rules that a QConfigMapping is made of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jitquant.op_info import OpInfo
from jitquant.qconfig import QConfig

__all__ = ["FUSED_FLOAT", "KEY_LENGTH", "KINDS", "Predicate", "Rule"]

Predicate = Callable[[OpInfo], Any]
"""Gives a QConfig, None to leave the op float, or NotImplemented to let the other rules decide."""

KINDS = (
    "",
    "object_type",
    "module_name_regex",
    "module_name",
    "module_name_object_type_order",
)
"""The kinds of rules, weakest first, by their names in the dictionary form; "" is global."""

FUSED_FLOAT = "fused float"
"""Stands for a qconfig: leaves ops float, but folds BatchNorm and padding into them."""

KEY_LENGTH = {"": 0, "module_name_object_type_order": 3}
"""How many parts a rule's key has, where it is not one."""


@dataclass(frozen=True)
class Rule:
    """One rule of a mapping.

    Attributes:
        kind: one of KINDS.
        key: (), (type,), (regex,), (path,), or (path, type, index).
        qconfig: None leaves what the rule matches float.
        required: whether it is an error if it matches nothing.
        is_fused: of what is left float, whether BatchNorm and padding are folded all the same.
    """

    kind: str
    key: tuple[Any, ...]
    qconfig: QConfig | None
    required: bool = True
    is_fused: bool = False

    def __str__(self) -> str:
        if not self.key:
            return "global"
        return f"{self.kind} {', '.join(map(repr, self.key))}"
