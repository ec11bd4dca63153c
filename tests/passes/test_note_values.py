"""note_values: the node that computes each listed op's value is marked."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jitquant
from jitquant import _state
from jitquant.quantize import Debug
from tests.ir import raw_text, sample, scripted, trace_convert, trace_prepare
from tests.samples import SAMPLES
from tests.samples.base import OpSample


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


def _assert_nodes_stay(model: torch.jit.ScriptModule) -> int:
    """After saving and loading there are as many nodes of each kind; returns how many have values.

    Only of the kinds that values are counted in: loading drops branches that cannot run. It may
    choose another overload.
    """
    buffer = io.BytesIO()
    torch.jit.save(model, buffer)
    buffer.seek(0)
    graphs: list[Any] = [model.graph, torch.jit.load(buffer).graph]
    kinds = [kind for _, _, kind, _ in _listed(model) if kind]
    for kind in kinds:
        before, after = (len(graph.findAllNodes(kind, True)) for graph in graphs)
        assert before == after, kind
    return len(kinds)


@pytest.mark.parametrize("debug", [False, True, "exact"])
def test_saving_keeps_the_nodes_in_their_places(debug: Debug) -> None:
    assert _assert_nodes_stay(_convert(Layers(), sample(1, 2, 3, 3), debug)) == 3


@pytest.mark.sweep
@pytest.mark.parametrize("debug", [False, True, "exact"])
@pytest.mark.parametrize("op", SAMPLES, ids=lambda op: op.name)
def test_saving_keeps_the_nodes_of_all_samples(op: OpSample, debug: Debug) -> None:
    torch.manual_seed(0)
    model, inputs = op.module_factory().eval(), op.inputs_factory()
    float_model: Any = torch.jit.script(model) if op.scriptable else torch.jit.trace(model, inputs)
    prepared = jitquant.prepare_jit(float_model, {"": jitquant.get_default_qconfig()})
    prepared(*inputs)
    _assert_nodes_stay(jitquant.convert_jit(prepared, debug=debug))
