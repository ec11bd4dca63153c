"""What is left in the graph of an int8 classification model: int8 ops, and nothing that costs time."""

from typing import Any

import pytest
import torch

import jitquant

pytest.importorskip("torchvision")

from benchmarks.subjects import make_subject
from tutorials.measure import run_all

FLOAT_OPS: dict[str, set[str]] = {
    "resnet18": set(),
    "mobilenet_v2": set(),
    "mobilenet_v3_large": set(),
    "googlenet": set(),
    "inception_v3": {"aten::avg_pool2d"},  # two whose values are far smaller than what they average
    "shufflenet_v2_x1_0": {"aten::conv2d"},  # one that is depthwise, and that nothing can pad
    "densenet121": set(),
    "squeezenet1_1": set(),
    "mnasnet0_5": set(),
    "regnet_y_400mf": {"aten::sigmoid_"},
    "efficientnet_b0": {"aten::sigmoid_", "aten::silu_", "aten::adaptive_avg_pool2d"},
}
"""Kinds of which each model keeps some in float. Coverage says why."""

PIXELS = {"inception_v3": 96}


WEIGHTS = ("prim::GetAttr", "prim::Constant")


def problems(graph: Any, float_ops: set[str]) -> list[str]:
    """What costs time in the graph of an int8 model.

    Args:
        graph: with tensors in and out, and without branches.
        float_ops: kinds of ops that may read dequantized values.
    """
    found: list[str] = []
    int8: set[str] = set()
    for node in graph.nodes():
        kind = node.kind()
        readers = [use.user.kind() for value in node.outputs() for use in value.uses()]
        if not readers:
            found.append(f"{kind} is not used")
        if kind == "aten::quantize_per_tensor":
            source = node.inputsAt(0).node().kind()
            if source not in ("prim::Param", *float_ops):
                found.append(f"what {source} gives is quantized")
        elif kind == "aten::dequantize":
            found += [
                f"{reader} reads what was dequantized"
                for reader in readers
                if reader not in ("prim::Return", "aten::contiguous", *float_ops)
            ]
            continue
        elif not tensors(node.inputs()):
            continue
        elif not int8.issuperset(tensors(node.inputs())):
            if kind not in ("aten::contiguous", *float_ops):
                found.append(f"{kind} is float")
            continue
        int8.update(tensors(node.outputs()))
    for value in graph.outputs():
        node = value.node()
        if node.kind() == "aten::contiguous":  # free where nothing has to be moved
            node = node.inputsAt(0).node()
        if node.kind() != "aten::dequantize":
            found.append(f"a result comes from {node.kind()}")
    inputs = list(graph.inputs())[1:]
    found += [f"{len(value.uses())} ops read an input" for value in inputs if len(value.uses()) > 1]
    return found


def tensors(values: Any) -> set[str]:
    """Names of those that are tensors or lists of tensors, but for weights."""
    return {
        value.debugName()
        for value in values
        if "Tensor" in str(value.type()) and value.node().kind() not in WEIGHTS
    }


@pytest.mark.parametrize("name", FLOAT_OPS)
def test_graph_of_a_classification_model(name: str) -> None:
    """One quantize for the input, int8 ops, and one dequantize for the result."""
    subject = make_subject(name, pixels=PIXELS.get(name, 64))
    prepared = jitquant.prepare_jit(subject.traced, {"": jitquant.default_qconfig})
    run_all(prepared, subject.calibration[:1])
    model = jitquant.convert_jit(prepared)
    graph = model.graph
    assert problems(graph, FLOAT_OPS[name]) == []
    assert not [node for node in graph.nodes() if "dropout" in node.kind()]
    float_ops = [op for op in jitquant.coverage(model).ops if not op.int8]
    assert {op.op for op in float_ops} == {kind.removesuffix("_") for kind in FLOAT_OPS[name]}
    assert all(op.reason for op in float_ops)


GRAPH = """
graph(%self, %x : Tensor):
  %s : float = prim::Constant[value=0.5]()
  %z : int = prim::Constant[value=1]()
  %t : int = prim::Constant[value=13]()
  %q : Tensor = aten::quantize_per_tensor(%x, %s, %z, %t)
  %r : Tensor = aten::relu(%q)
  %d : Tensor = aten::dequantize(%r)
  return (%d)
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("return (%d)", "return (%d, %r)", "a result comes from aten::relu"),
        ("%d : Tensor", "%u : Tensor = aten::relu(%r)\n  %d : Tensor", "aten::relu is not used"),
        ("%r : Tensor", "%u : Tensor = aten::relu(%x)\n  %r : Tensor", "aten::relu is float"),
        (
            "%r : Tensor",
            "%u : Tensor = aten::quantize_per_tensor(%x, %s, %z, %t)\n  %r : Tensor",
            "2 ops read an input",
        ),
        (
            "return (%d)",
            "%e : Tensor = aten::relu(%d)\n  return (%e)",
            "aten::relu reads what was dequantized",
        ),
        (
            "%d : Tensor = aten::dequantize(%r)",
            "%e : Tensor = aten::dequantize(%r)\n"
            "  %f : Tensor = aten::quantize_per_tensor(%e, %s, %z, %t)\n"
            "  %d : Tensor = aten::dequantize(%f)",
            "what aten::dequantize gives is quantized",
        ),
    ],
)
def test_problems_are_found(old: str, new: str, message: str) -> None:
    assert problems(torch._C.parse_ir(GRAPH), set()) == []
    found = problems(torch._C.parse_ir(GRAPH.replace(old, new)), set())
    assert [problem for problem in found if problem.startswith(message)]
