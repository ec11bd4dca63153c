"""Two observers that saw parts of the data, as one that saw all of it."""

import copy
from typing import Any, TypeVar

import torch

from jitquant.errors import JitQuantTypeError, JitQuantValueError

AnyObserver = TypeVar("AnyObserver", bound=torch.nn.Module)

_ARGUMENTS = (
    *("dtype", "qscheme", "quant_min", "quant_max", "eps", "ch_axis"),
    *("bins", "averaging_constant", "percentile", "scale", "zero_point"),
)


def merge(a: AnyObserver, b: AnyObserver) -> AnyObserver:
    """Return a new observer that saw what `a` saw, and after it what `b` saw.

    Equal, exactly, to one observer that saw all, but for moving averages, which do not know in
    which order the batches came: see there.

    Args:
        a, b: observers of one class with equal arguments; both scripted (or loaded) or neither.

    Raises:
        JitQuantTypeError: not observers, or of different classes.
        JitQuantValueError: different arguments.
    """
    for observer in (a, b):
        if not (hasattr(observer, "state") and hasattr(observer, "merge_state")):
            raise JitQuantTypeError(f"merge takes two observers, got {type(observer).__name__}")
    if _class_name(a) != _class_name(b) or type(a) is not type(b):
        raise JitQuantTypeError(
            f"merge takes two observers of one class, got {_class_name(a)} and {_class_name(b)}"
            + (", of which one is scripted" if _is_scripted(a) != _is_scripted(b) else "")
        )
    for name in _ARGUMENTS:
        of_a, of_b = _plain(getattr(a, name, None)), _plain(getattr(b, name, None))
        if of_a != of_b:
            raise JitQuantValueError(
                f"merge takes observers with equal arguments, but {name} is {of_a} and {of_b}"
            )
    merged: Any = copy.deepcopy(a)
    other: Any = b
    merged.merge_state(other.state())
    result: AnyObserver = merged
    return result


def _is_scripted(observer: torch.nn.Module) -> bool:
    return isinstance(observer, torch.jit.ScriptModule)


def _class_name(observer: torch.nn.Module) -> str:
    return str(getattr(observer, "original_name", type(observer).__name__))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, torch.Tensor) else value
