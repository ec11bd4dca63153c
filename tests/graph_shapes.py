"""What every model must give after quantization, whatever its graph looks like."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import jitquant
from tests.models import reloaded, sqnr

STEPS = 4
"""Most steps between int8 and debug: one for rounding, and what later layers make of it."""


def leaves(value: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in leaves(value[key])]
    if isinstance(value, (list, tuple)):
        return [leaf for element in value for leaf in leaves(element)]
    return []


def shape_of(value: Any) -> Any:
    """Nested types and everything that is no tensor, for comparison."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, dict):
        return {key: shape_of(element) for key, element in value.items()}
    if isinstance(value, tuple):
        return tuple(shape_of(element) for element in value)
    if isinstance(value, list):
        return [shape_of(element) for element in value]
    return value


def script(model: nn.Module) -> torch.jit.ScriptModule:
    """`model`, in eval mode, scripted."""
    scripted: torch.jit.ScriptModule = torch.jit.script(model.eval())
    return scripted


def check(
    model: torch.jit.ScriptModule,
    samples: Sequence[tuple[Any, ...]],
    others: Sequence[tuple[Any, ...]] = (),
    int8: Sequence[str] = (),
    float_reasons: Sequence[tuple[str, str]] | None = (),
    methods: Sequence[str] = ("forward",),
    least: float = 25.0,
) -> torch.jit.ScriptModule:
    """Quantize `model`, compare with float, with debug and with its own file.

    Args:
        model: float model whose methods may be called in any order.
        samples: argument lists to calibrate with and to compare on.
        others: further argument lists, whose values calibration does not see: the int8 model is
            compared with debug only, since their ranges are clipped.
        int8: the kinds of the ops that must be int8, in graph order.
        float_reasons: (kind, reason) of the ops that stay float, in graph order; None: any.
        methods: the methods to keep, run and compare.
        least: SQNR in dB of each output tensor.

    Returns:
        The converted model.
    """
    prepared = jitquant.prepare_jit(model, {"": jitquant.default_qconfig})
    preserved = [name for name in methods if name != "forward"]
    with torch.no_grad():
        for method in methods:
            for sample in samples:
                getattr(prepared, method)(*sample)
        converted = jitquant.convert_jit(prepared, preserved_attrs=preserved)
        debug = jitquant.convert_jit(prepared, debug=True, preserved_attrs=preserved)
        loaded = reloaded(converted)
        for method in methods:
            for index, sample in enumerate([*samples, *others]):
                expected = getattr(model, method)(*sample)
                actual = getattr(converted, method)(*sample)
                assert shape_of(actual) == shape_of(expected)
                emulated = leaves(getattr(debug, method)(*sample))
                for want, got, near in zip(leaves(expected), leaves(actual), emulated, strict=True):
                    assert index >= len(samples) or sqnr(want, got) >= least
                    step = float(want.max().clamp(min=0) - want.min().clamp(max=0)) / 255
                    assert float((got - near).abs().max()) <= STEPS * step + 1e-6
                again = getattr(loaded, method)(*sample)
                assert all(map(torch.equal, leaves(actual), leaves(again)))
    assert_covered(prepared, converted, methods)
    ops = jitquant.coverage(converted)
    if int8:
        assert [op.op for op in ops.int8] == list(int8)
    if float_reasons is not None:
        assert [(op.op, op.reason) for op in ops.float] == list(float_reasons)
    for method in methods:
        assert_packed_once(converted._c._get_method(method).graph)
    return converted


def assert_covered(
    prepared: torch.jit.ScriptModule, converted: torch.jit.ScriptModule, methods: Sequence[str]
) -> None:
    """Every op of the kept methods is listed once, and has a reason."""
    planned = [op for op in jitquant.coverage(prepared).ops if op.method in methods]
    done = jitquant.coverage(converted).ops
    assert [(op.method, op.op, op.module) for op in done] == [
        (op.method, op.op, op.module) for op in planned
    ]
    assert all(op.reason for op in done)


def assert_packed_once(graph: Any) -> None:
    """Nothing in the graph, branches and loops included, packs or quantizes a weight."""
    for node in (node for kind in _kinds(graph) for node in graph.findAllNodes(kind)):
        assert "prepack" not in node.kind()
        if node.kind().startswith("aten::quantize_per_"):
            assert node.inputsAt(0).node().kind() not in ("prim::Constant", "prim::GetAttr")


def _kinds(graph: Any) -> set[str]:
    def walk(block: Any) -> set[str]:
        kinds = set()
        for node in block.nodes():
            kinds.add(node.kind())
            for inner in node.blocks():
                kinds |= walk(inner)
        return kinds

    return walk(graph)
