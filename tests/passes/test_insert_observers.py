"""insert_observers: applies the plan; each observed value passes through an observer of its own."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from jitquant import QConfig, default_qconfig, prepare_jit
from tests.ir import (
    FIXED,
    assert_change,
    assert_same_output,
    before_and_after,
    sample,
    scripted,
)


class LinearRelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x).relu()
        return result


def test_observers_stand_around_the_op_and_the_activation_it_absorbs() -> None:
    model = scripted(LinearRelu())
    change = before_and_after("insert_observers", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::linear(%x, self.linear.weight, self.linear.bias)
              %1 : Tensor = aten::relu(%0)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_0, %x)
              %1 : Tensor = aten::linear(%0, self.linear.weight, self.linear.bias)
              %2 : Tensor = aten::relu(%1)
              %3 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_1, %2)
              return (%3)
        """,
    )
    assert_same_output(change.model, model, sample(1, 2), atol=0)


def test_float_ops_get_no_observer_and_inputs_a_recorder_of_shapes() -> None:
    class Floats(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.neg().exp()

    change = before_and_after("insert_observers", scripted(Floats()))
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::neg(%x)
              %1 : Tensor = aten::exp(%0)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_0, %x)
              %1 : Tensor = aten::neg(%0)
              %2 : Tensor = aten::exp(%1)
              return (%2)
        """,
    )
    assert change.model.jitquant_observer_0.original_name == "ShapeRecorder"


def test_averages_are_observed_and_their_inputs_get_a_recorder_of_shapes() -> None:
    """Whether the qparams of an average's input suit it is seen from its own range."""

    class Pools(LinearRelu):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(x)
            return functional.hardsigmoid(y).mean([0])

    change = before_and_after("insert_observers", scripted(Pools()))
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::linear(%x, self.linear.weight, self.linear.bias)
              %1 : Tensor = aten::hardsigmoid(%0)
              %2 : Tensor = aten::mean(%1, [0], False, None)
              return (%2)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_0, %x)
              %1 : Tensor = aten::linear(%0, self.linear.weight, self.linear.bias)
              %2 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_1, %1)
              %3 : Tensor = aten::hardsigmoid(%2)
              %4 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_3, %3)
              %5 : Tensor = aten::mean(%4, [0], False, None)
              %6 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_2, %5)
              return (%6)
        """,
    )
    types = [str(module.original_name) for module in change.model.children()]
    assert types.count("ShapeRecorder") == 1


def test_each_qconfig_brings_its_weight_observer() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2)
            self.b = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.b(self.a(x))
            return y

    other = QConfig(activation=FIXED.activation, weight=default_qconfig.weight)
    prepared = prepare_jit(scripted(Two()), {"a": FIXED, "b": other})
    observers = {
        name: module.original_name
        for name, module in prepared.named_children()
        if name.startswith("jitquant_observer_")
    }
    assert observers == {
        "jitquant_observer_0": "FixedQParamsObserver",
        "jitquant_observer_1": "FixedQParamsObserver",
        "jitquant_observer_2": "FixedQParamsObserver",
        "jitquant_observer_weight_0": "FixedQParamsObserver",
        "jitquant_observer_weight_1": "PerChannelMinMaxObserver",
    }


def test_each_value_has_an_observer_of_its_own() -> None:
    """They start equal; running one does not change its twin."""
    prepared = prepare_jit(scripted(LinearRelu()), {"": default_qconfig})
    prepared(torch.tensor([[-1.0, 3.0]]))
    inputs, outputs = prepared.jitquant_observer_0, prepared.jitquant_observer_1
    assert (inputs.min_val.item(), inputs.max_val.item()) == (-1.0, 3.0)
    assert outputs.min_val.item() >= 0.0
