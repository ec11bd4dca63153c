"""Inspection: which taps stand where in the float, the prepared and the int8 graph."""

from typing import Any

import torch
from torch import Tensor, nn

import jitquant
from jitquant import _C, _state
from jitquant._checks import as_model
from jitquant.numeric_suite import compare_ops
from jitquant.numeric_suite._taps import Tap, scripted_tap
from jitquant.qconfig import script_qconfig
from tests.ir import FIXED, assert_text, readable, sample, scripted


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(torch.relu(self.linear(x))) * x


def _prepared() -> torch.jit.ScriptModule:
    prepared = jitquant.prepare_jit(scripted(Layer()), {"": FIXED})
    prepared(sample(1, 2))
    return prepared


def _records(model: torch.jit.ScriptModule) -> list[_C.OpRecord]:
    state = _state.read(model)
    assert state is not None
    return state.records()


def _watched(inspection: _C.Inspection) -> tuple[str, list[tuple[int, int, bool]]]:
    watched = inspection.watch(scripted_tap())
    prefix = _C.OBSERVER_PREFIX
    assert [each.tap for each in watched.values] == [
        f"{prefix}{number}" for number in range(len(watched.values))
    ]
    graph: Any = as_model(watched.module).graph
    text = readable(torch._C._jit_pass_canonicalize(graph).str(False))
    return text, [(each.record, each.input, each.rounds) for each in watched.values]


FLOAT = """
    graph(self, %x : Tensor):
      %0 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_0, %x)
      %1 : Tensor = aten::linear(%0, self.linear.weight, self.linear.bias)
      %2 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_1, %1)
      %3 : Tensor = aten::relu(%2)
      %4 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_2, %3)
      %5 : Tensor = aten::exp(%4)
      %6 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_3, %5)
      %7 : Tensor = aten::mul(%6, %0)
      %8 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_4, %7)
      return (%8)
"""
FLOAT_VALUES = [(-1, 0, False), *((index, -1, False) for index in range(4))]


def test_int8_graph() -> None:
    int8 = jitquant.convert_jit(_prepared())
    text, values = _watched(_C.inspect_converted(int8._c, ["forward"], _records(int8)))
    assert_text(
        text,
        """
        graph(self, %x : Tensor):
          %0 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_0, %x)
          %1 : Tensor = aten::quantize_per_tensor(%0, 0.0625, 128, 13)
          %2 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_1, %1)
          %3 : Tensor = quantized::linear_relu(%2, self.linear_packed_params, 0.0625, 128)
          %4 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_2, %3)
          %5 : Tensor = aten::dequantize(%4)
          %6 : Tensor = aten::exp(%5)
          %7 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_3, %6)
          %8 : Tensor = aten::quantize_per_tensor(%7, 0.0625, 128, 13)
          %9 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_4, %8)
          %10 : Tensor = quantized::mul(%9, %2, 0.0625, 128)
          %11 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_5, %10)
          %12 : Tensor = aten::dequantize(%11)
          return (%12)
        """,
    )
    assert values == [
        (-1, 0, False),
        (-1, 0, True),
        (0, -1, False),
        (2, -1, False),
        (2, -1, True),
        (3, -1, False),
    ]


def test_float_and_prepared_graph() -> None:
    preparation = _C.Preparation(scripted(Layer())._c, ["forward"], None)
    observers: Any = script_qconfig(FIXED)
    pair = (observers.activation._c, observers.weight._c)
    inspection = preparation.inspect([0] * len(preparation.ops), [pair])
    assert [record.kind for record in inspection.records] == [
        "aten::linear",
        "aten::relu",
        "aten::exp",
        "aten::mul",
    ]
    text, values = _watched(inspection)
    assert_text(text, FLOAT)
    assert values == FLOAT_VALUES
    prepared = _prepared()
    text, values = _watched(_C.inspect_prepared(prepared._c, ["forward"], _records(prepared)))
    assert_text(text, FLOAT)
    assert values == FLOAT_VALUES


class Equal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x).sum() + torch.exp(x).sum()


def test_ops_that_freezing_makes_one_have_one_node() -> None:
    script = scripted(Equal())
    prepared = jitquant.prepare_jit(script, {"": FIXED})
    prepared(sample(2))
    int8 = jitquant.convert_jit(prepared)
    assert str(int8.graph).count("aten::exp") == 1
    result = compare_ops(script, int8, [sample(2)])
    assert [each.op for each in result.ops].count("aten::exp") == 1
    assert [(each.op, each.reason) for each in result.unmatched if each.op == "aten::exp"] == [
        ("aten::exp", "no node of the quantized model computes its value alone")
    ]


# --- taps ---


def test_a_tap_passes_on_what_it_is_given_quantized_alike() -> None:
    tap: Any = torch.jit.script(Tap())
    x = torch.quantize_per_tensor(torch.zeros(1, 2), 0.5, 10, torch.quint8)
    assert tap(x) is not None and tap.values[0].equal(x)
    tap.instead = [torch.tensor([[0.6, -100.0]])]
    result = tap(x)
    assert result.int_repr().tolist() == [[11, 0]]
    assert (result.q_scale(), result.q_zero_point()) == (0.5, 10)
    assert tap(x).equal(x), "it has nothing left to pass on"
    assert len(tap.values) == 3


def test_a_tap_keeps_the_memory_format_and_channels_that_are_too_many() -> None:
    tap: Any = torch.jit.script(Tap())
    x = torch.ones(1, 3, 2, 2).to(memory_format=torch.channels_last)
    tap.instead = [torch.full((1, 2, 2, 2), 5.0)]
    result = tap(x)
    assert result.stride() == x.stride()
    assert result[0, :, 0, 0].tolist() == [5.0, 5.0, 1.0]


def test_a_tap_leaves_values_of_another_shape_and_does_nothing_when_off() -> None:
    tap: Any = torch.jit.script(Tap())
    x = torch.ones(2, 3)
    tap.instead = [torch.zeros(3, 3)]
    assert tap(x).equal(x)
    tap.on = False
    tap.instead = [torch.zeros(2, 3)]
    assert tap(x).equal(x)
    assert len(tap.values) == 1 and len(tap.instead) == 1
