"""One calibration for several models: all those that a mapping and its further float ops give."""

import copy
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

from jitquant import _C
from jitquant._observed import ARGUMENT_RECORDER, is_observer_name, needs_data

__all__ = ["OneCalibration"]

Site = tuple[str, int, int]
"""A value: its method, what gives it (nodes and blocks are counted from 0), and which output."""

_SEEN = ("calls", "shapes", "seen_dtypes")
"""What every observer of values records, recorders of shapes too."""


class OneCalibration:
    """Hands on what a model with spare observers saw to models that compute the same values."""

    def __init__(self, prepared: torch.jit.ScriptModule) -> None:
        """Remember the observers of a model that is not calibrated yet, but will be."""
        self._prepared = prepared
        graphs = _Graphs(prepared)
        self._ops = graphs.ops
        self._names: dict[Site, list[str]] = defaultdict(list)
        for name, site in graphs.observers.items():
            self._names[site].append(name)
        self._new = {name: copy.deepcopy(_child(prepared, name)._c) for name in graphs.observers}

    def give(self, prepared: torch.jit.ScriptModule) -> bool:
        """Let the new observers of a model have seen what those of the same values saw.

        Args:
            prepared: from the same float model, with other ops left float; not calibrated.

        Returns:
            Whether it is calibrated now: not if it computes its values by other ops (a BatchNorm
            that only one of the models folds), or observes one that was not, or in another way.
        """
        graphs = _Graphs(prepared)
        if graphs.ops != self._ops:
            return False
        givers = {name: self._giver(prepared, name, at) for name, at in graphs.observers.items()}
        if None in givers.values():
            return False
        for name, giver in givers.items():
            taker, source = _child(prepared, name), _child(self._prepared, str(giver))
            if needs_data(taker):
                _C.copy_attributes(source._c, taker._c)
                continue
            for attribute in _SEEN:
                setattr(taker, attribute, getattr(source, attribute))
        if hasattr(prepared, ARGUMENT_RECORDER):
            source = _child(self._prepared, ARGUMENT_RECORDER)
            _C.copy_attributes(source._c, _child(prepared, ARGUMENT_RECORDER)._c)
        return True

    def _giver(self, prepared: torch.jit.ScriptModule, name: str, site: Site) -> str | None:
        """The observer of that value which had the same settings; for shapes, any."""
        taker = _child(prepared, name)
        for each in self._names[site]:
            if not needs_data(taker) or _C.same_attributes(self._new[each], taker._c):
                return each
        return None


def _child(model: torch.jit.ScriptModule, name: str) -> Any:
    return getattr(model, name)


class _Graphs:
    """The graphs of a prepared model without its observers.

    Attributes:
        ops: all nodes with the values that they read.
        observers: by their names, the values that they see.
    """

    def __init__(self, model: torch.jit.ScriptModule) -> None:
        self.ops: list[tuple[str, tuple[Site, ...]]] = []
        self.observers: dict[str, Site] = {}
        for method in sorted(model._c._method_names()):
            graph = model._c._get_method(method).graph
            self._sites: dict[str, Site] = {}
            self._method, self._count = method, 0
            self._read(graph)

    def _read(self, block: Any) -> None:
        self._number(block.inputs())
        for node in block.nodes():
            name = _observer_of(node)
            if name is None:
                self.ops.append((_described(node), self._sites_of(node.inputs())))
                self._number(node.outputs())
                for inner in node.blocks():
                    self._read(inner)
            elif node.kind() == "prim::CallMethod" and name != ARGUMENT_RECORDER:
                _, value = node.inputs()
                self.observers[name] = site = self._sites[value.debugName()]
                self._sites[node.output().debugName()] = site
        self.ops.append(("return", self._sites_of(block.outputs())))

    def _number(self, values: Iterator[Any]) -> None:
        for offset, value in enumerate(values):
            self._sites[value.debugName()] = (self._method, self._count, offset)
        self._count += 1

    def _sites_of(self, values: Iterator[Any]) -> tuple[Site, ...]:
        return tuple(self._sites[value.debugName()] for value in values)


def _observer_of(node: Any) -> str | None:
    """Of a node that reads an observer, or calls one."""
    if node.kind() == "prim::CallMethod":
        node = next(node.inputs()).node()
    if node.kind() != "prim::GetAttr" or not is_observer_name(node.s("name")):
        return None
    return str(node.s("name"))


def _described(node: Any) -> str:
    """Its kind, and which constant or attribute it is."""
    if node.kind() == "prim::Constant":
        return f"{node.kind()} {node.output().toIValue()!r}"
    return f"{node.kind()} {node.s('name') if node.hasAttribute('name') else ''}"
