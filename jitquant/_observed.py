"""What hangs on a prepared model, under names that csrc_passes/ir_util.h gives."""

from typing import Any

import torch

from jitquant import _C

__all__ = ["ARGUMENT_RECORDER", "activation_observers", "is_observer_name", "weight_observers"]

ARGUMENT_RECORDER: str = _C.ARGUMENT_RECORDER
"""Keeps what the first call of forward got besides tensors; it has no statistics."""

_PREFIX: str = _C.OBSERVER_PREFIX
_WEIGHT_PREFIX = f"{_PREFIX}weight_"


def is_observer_name(name: str) -> bool:
    """Whether `prepare_jit` gives a submodule this name."""
    return name.startswith(_PREFIX)


def activation_observers(model: torch.jit.ScriptModule) -> list[Any]:
    """The observers of values, in the order of the graph."""
    return [
        module
        for name, module in model.named_children()
        if is_observer_name(name)
        and not name.startswith(_WEIGHT_PREFIX)
        and name != ARGUMENT_RECORDER
    ]


def weight_observers(model: torch.jit.ScriptModule) -> list[Any]:
    """The templates of weight observers, one for each qconfig. They see nothing before convert."""
    return [module for name, module in model.named_children() if name.startswith(_WEIGHT_PREFIX)]
