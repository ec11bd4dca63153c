"""One name for each type of op or module that a configuration can speak of.

Ops are "aten::linear", module classes "torch.nn.modules.linear.Linear", as an archive spells them.
"""

import operator
from typing import Any

import torch
from torch._jit_internal import _qualified_name
from torch.jit._builtins import _find_builtin

from jitquant.errors import JitQuantTypeError, JitQuantValueError

__all__ = ["INTERPOLATE", "module_types", "op_names", "type_name"]

INTERPOLATE = "torch.nn.functional.interpolate"
"""The one function of torch.nn.functional whose ops have other names than itself."""

_OPERATORS: dict[object, str] = {
    operator.truediv: "aten::div",
    operator.floordiv: "aten::floor_divide",
}


def type_name(given: object, where: str) -> str:
    """The name of an op or of a module class.

    Args:
        given: a class of modules, a function of torch or torch.nn.functional, an operator, a method
            of Tensor, an op of torch.ops, or a string: "aten::linear", "torch.nn.Linear",
            "torch.nn.functional.linear", the qualified name of a class, or the name of a method
            of Tensor such as "add".
        where: what the errors call it.

    Raises:
        JitQuantTypeError: anything else.
        JitQuantValueError: a function that runs no single op.
    """
    if isinstance(given, str):
        return _of_string(given, where)
    if isinstance(given, type):
        if issubclass(given, torch.nn.Module):
            return _qualified_name(given).removeprefix("__torch__.")
        raise JitQuantTypeError(
            f"{where}: the class {given.__name__} is no torch.nn.Module, so no op has it as its "
            "type. Give a class of modules, a function of torch, or an op such as 'aten::add'."
        )
    if isinstance(given, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return str(given).replace(".", "::", 1).partition(".")[0]
    if callable(given):
        return _of_function(given, where)
    raise JitQuantTypeError(
        f"{where}: a type is a class of modules, a function of torch, or an op such as "
        f"'aten::add', got {given!r} of type {type(given).__name__}."
    )


def _of_string(name: str, where: str) -> str:
    if "::" in name:
        return name
    if "." not in name:
        return f"aten::{name}" if _is_op(f"aten::{name}") else name
    first, *rest = name.split(".")
    found: Any = torch if first == "torch" else None
    for part in rest:
        found = getattr(found, part, None)
    is_class = isinstance(found, type) and issubclass(found, torch.nn.Module)
    if is_class or (callable(found) and not isinstance(found, type)):
        return type_name(found, where)
    return name


def _of_function(function: Any, where: str) -> str:
    if function in _OPERATORS:
        return _OPERATORS[function]
    builtin = _find_builtin(function)
    if builtin is not None:
        return str(builtin)
    name = getattr(function, "__name__", repr(function))
    if function is torch.nn.functional.interpolate:
        return INTERPOLATE
    if _is_op(f"aten::{name}"):
        return f"aten::{name}"
    raise JitQuantValueError(
        f"{where}: {name} is not one op of torch, and an archive does not say which function an op "
        "was part of. Give the ops that it runs, such as 'aten::add', or the module that calls it."
    )


def _is_op(name: str) -> bool:
    return bool(torch._C._jit_get_schemas_for_operator(name))


def op_names(written: str, kind: str) -> tuple[str, ...]:
    """The names of an op: as the user wrote it, and as the passes call it."""
    names = [written, kind, *(name[:-1] for name in (written, kind) if name.endswith("_"))]
    if "upsample_" in kind:
        names.append(INTERPOLATE)
    return tuple(dict.fromkeys(names))


def module_types(model: torch.jit.ScriptModule) -> dict[str, str]:
    """The class of each submodule, by its path; "" is the whole model."""
    types = {}
    for path, module in model.named_modules():
        atoms = str(module._c._type().qualified_name()).split(".")
        clean = [atom for atom in atoms if not atom.startswith("___torch_mangle_")]
        types[path] = ".".join(clean).removeprefix("__torch__.")
    return types
