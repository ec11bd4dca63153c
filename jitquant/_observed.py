"""What hangs on a prepared model, under names that csrc_passes/ir_util.h gives."""

import re
from typing import Any

import torch

from jitquant import _C

__all__ = [
    "ARGUMENT_RECORDER",
    "activation_observers",
    "dynamic_templates",
    "is_observer_name",
    "needs_data",
    "observed_value",
    "weight_observers",
]

ARGUMENT_RECORDER: str = _C.ARGUMENT_RECORDER
"""Keeps what the first call of forward got besides tensors; it has no statistics."""

_PREFIX: str = _C.OBSERVER_PREFIX
_WEIGHT_PREFIX = f"{_PREFIX}weight_"
_DYNAMIC_PREFIX = f"{_PREFIX}dynamic_"
_SUFFIX = re.compile(r"\.\d+$")
"""What torch appends to names that a graph has more than once: "input.1"."""
_FLOAT32 = 6
"""The code of the dtype that a scripted recorder of shapes has."""


def is_observer_name(name: str) -> bool:
    """Whether `prepare_jit` gives a submodule this name."""
    return name.startswith(_PREFIX)


def activation_observers(model: torch.jit.ScriptModule) -> list[Any]:
    """The observers of values, in the order of the graph."""
    return [
        module
        for name, module in model.named_children()
        if is_observer_name(name)
        and not name.startswith((_WEIGHT_PREFIX, _DYNAMIC_PREFIX))
        and name != ARGUMENT_RECORDER
    ]


def observed_value(model: torch.jit.ScriptModule, name: str) -> str:
    """Such as "the output of aten::conv2d (resnet.py:92)", for the observer of this name."""
    for method in model._c._method_names():
        graph = model._c._get_method(method).graph
        for call in graph.findAllNodes("prim::CallMethod", recurse=True):
            observer, value = list(call.inputs())[:2]
            if observer.node().kind() != "prim::GetAttr" or observer.node().s("name") != name:
                continue
            producer = value.node()
            if producer.kind() == "prim::Param":
                return f"the input {_SUFFIX.sub('', value.debugName())!r}"
            line = re.search(r'File "(?:.*/)?([^"]+)", line (\d+)', producer.sourceRange())
            return f"the output of {producer.kind()}" + (f" ({line[1]}:{line[2]})" if line else "")
    raise AssertionError(f"nothing calls {name}")


def weight_observers(model: torch.jit.ScriptModule) -> list[Any]:
    """The templates of weight observers, one for each qconfig. They see nothing before convert."""
    return [module for name, module in model.named_children() if name.startswith(_WEIGHT_PREFIX)]


def dynamic_templates(model: torch.jit.ScriptModule) -> list[Any]:
    """The activation observers of the dynamic qconfigs, which see nothing."""
    return [module for name, module in model.named_children() if name.startswith(_DYNAMIC_PREFIX)]


def needs_data(observer: Any) -> bool:
    """Whether an observer chooses qparams by what it sees; recorders of shapes do not."""
    return bool(observer.dtype != _FLOAT32)
