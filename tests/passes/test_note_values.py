"""note_values: the node that computes each listed op's value is marked."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jitquant import _state
from jitquant.quantize import Debug
from tests.ir import raw_text, sample, scripted, trace_convert, trace_prepare


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.last = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(self.last(torch.relu(self.conv(x))))


def _marks(text: str) -> list[tuple[str, str]]:
    """(kind, index) of each marked node."""
    lines = [line for line in raw_text(text).splitlines() if "jitquant_value=" in line]
    return [
        (line.split(" = ")[1].split("[")[0], line.split("jitquant_value=")[1].split("]")[0])
        for line in lines
    ]


def _listed(model: torch.jit.ScriptModule) -> list[tuple[str, int, str, tuple[int, ...]]]:
    state = _state.read(model)
    assert state is not None
    return [(op.kind, op.part_of, op.value_kind, op.value_nodes) for op in state.ops]


def _convert(module: nn.Module, x: Tensor, debug: Debug = False) -> torch.jit.ScriptModule:
    prepared = trace_prepare(scripted(module)).model
    prepared(x)
    return trace_convert(prepared, debug).model


def test_the_last_node_of_an_op_is_marked_and_an_absorbed_op_has_none() -> None:
    prepared = trace_prepare(scripted(Layers())).model
    prepared(sample(1, 2, 3, 3))
    traced = trace_convert(prepared)
    expected = [("quantized::conv2d_relu", "0"), ("quantized::conv2d", "2"), ("aten::exp", "3")]
    assert _marks(traced.text("restore_layout")) == []
    assert _marks(traced.text("note_values")) == expected
    assert _marks(traced.text("freeze")) == expected
    assert _marks(traced.text("fold_prepack")) == expected
    assert _listed(traced.model) == [
        ("aten::conv2d", -1, "quantized::conv2d_relu", (0,)),
        ("aten::relu", 0, "", ()),
        ("aten::conv2d", -1, "quantized::conv2d", (0,)),
        ("aten::exp", -1, "aten::exp", (0,)),
    ]


def test_a_debug_model_has_the_value_where_it_is_rounded() -> None:
    """The others are the input's and the weights'."""
    assert _listed(_convert(Layers(), sample(1, 2, 3, 3), debug=True)) == [
        ("aten::conv2d", -1, "aten::quantize_per_tensor", (2,)),
        ("aten::relu", 0, "", ()),
        ("aten::conv2d", -1, "aten::quantize_per_tensor", (4,)),
        ("aten::exp", -1, "aten::exp", (0,)),
    ]


class Clamped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(self.conv(x), -0.5, 0.5)


def test_an_absorbed_op_that_stays_a_node_has_the_value_of_both() -> None:
    """-8 to 7.94 saturates nothing, so that the clamp is an int8 op of its own."""
    assert _listed(_convert(Clamped(), sample(1, 2, 3, 3))) == [
        ("aten::conv2d", -1, "aten::clamp", (0,)),
        ("aten::clamp", 0, "", ()),
    ]


class Alpha(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.add(x, y, alpha=2).exp()


def test_of_two_int8_nodes_of_one_op_the_last_is_marked() -> None:
    """y * 2, and the sum."""
    prepared = trace_prepare(scripted(Alpha())).model
    prepared(sample(2), sample(2))
    model = trace_convert(prepared).model
    assert "quantized::mul_scalar" in str(model.graph)
    assert _listed(model)[0] == ("aten::add", -1, "quantized::add", (0,))


class Rounds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.linear(x)
        return x


def test_a_loop_that_freezing_unrolls_has_a_node_for_each_round() -> None:
    assert _listed(_convert(Rounds(), sample(2, 2))) == [
        ("aten::linear", -1, "quantized::linear", (0, 1, 2))
    ]


@pytest.mark.parametrize("debug", [False, True, "exact"])
def test_saving_keeps_the_nodes_in_their_places(debug: Debug) -> None:
    model = _convert(Layers(), sample(1, 2, 3, 3), debug)
    buffer = io.BytesIO()
    torch.jit.save(model, buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    for _, _, kind, places in _listed(loaded):
        graphs: list[Any] = [model.graph, loaded.graph]
        nodes = [graph.findAllNodes(kind, True) for graph in graphs if kind]
        for place in places:
            assert nodes[0][place].schema() == nodes[1][place].schema()
        assert not nodes or len(nodes[0]) == len(nodes[1])
