"""flatten: a fresh module tree with one ClassType per instance, and methods with all calls inlined."""

import dataclasses
import gc
import io
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from jitquant import prepare_jit
from tests.ir import (
    FIXED,
    assert_change,
    assert_same_output,
    assert_text,
    assert_unchanged,
    before_and_after,
    raw_text,
    sample,
    scripted,
    traced,
    unscoped_text,
)
from tests.models import Scaler


class Twins(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x))
        return y


def test_twins_get_types_of_their_own() -> None:
    model = scripted(Twins())
    assert model.a._c._type() == model.b._c._type()
    change = before_and_after("flatten", model, show=unscoped_text)
    # Whether torch mangled the original's name depends on what this process scripted before.
    before = change.before.replace("linear.mangle_0.", "linear.")
    assert_change(
        dataclasses.replace(change, before=before),
        before="""
            graph(%self : __torch__.tests.passes.test_flatten.Twins,
                  %x.1 : Tensor):
              %b : __torch__.torch.nn.modules.linear.Linear = prim::GetAttr[name="b"](%self)
              %a : __torch__.torch.nn.modules.linear.Linear = prim::GetAttr[name="a"](%self)
              %4 : Tensor = prim::CallMethod[name="forward"](%a, %x.1)
              %y.1 : Tensor = prim::CallMethod[name="forward"](%b, %4)
              return (%y.1)
        """,
        after="""
            graph(%self : __torch__.tests.passes.test_flatten.Twins,
                  %x.1 : Tensor):
              %b : __torch__.torch.nn.modules.linear.mangle_0.Linear = prim::GetAttr[name="b"](%self)
              %a : __torch__.torch.nn.modules.linear.Linear = prim::GetAttr[name="a"](%self)
              %weight.1 : Tensor = prim::GetAttr[name="weight"](%a)
              %bias.1 : Tensor = prim::GetAttr[name="bias"](%a)
              %6 : Tensor = aten::linear(%x.1, %weight.1, %bias.1)
              %weight : Tensor = prim::GetAttr[name="weight"](%b)
              %bias : Tensor = prim::GetAttr[name="bias"](%b)
              %9 : Tensor = aten::linear(%6, %weight, %bias)
              return (%9)
        """,
    )
    assert change.model.a._c._type() != change.model.b._c._type()
    assert_same_output(change.model, model, sample(1, 2))


class CallsTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(torch.tanh(self.linear(x)))
        return y


def test_module_called_twice_is_inlined_twice_and_shares_its_weight() -> None:
    model = scripted(CallsTwice())
    change = before_and_after("flatten", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = prim::CallMethod[name="forward"](self.linear, %x)
              %1 : Tensor = aten::tanh(%0)
              %2 : Tensor = prim::CallMethod[name="forward"](self.linear, %1)
              return (%2)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::linear(%x, self.linear.weight, self.linear.bias)
              %1 : Tensor = aten::tanh(%0)
              %2 : Tensor = aten::linear(%1, self.linear.weight, self.linear.bias)
              return (%2)
        """,
    )
    assert list(change.model.linear.state_dict()) == ["weight", "bias"]
    assert change.model.linear.weight.data_ptr() == model.linear.weight.data_ptr()
    assert_same_output(change.model, model, sample(1, 2))


def test_traced_module_called_twice_is_inlined_twice() -> None:
    model = traced(CallsTwice(), sample(1, 2))
    change = before_and_after("flatten", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Float(1, 2, strides=[2, 1], requires_grad=0, device=cpu)):
              %0 : Tensor = prim::CallMethod[name="forward"](self.linear, %x)
              %1 : Float(1, 2, strides=[2, 1], requires_grad=1, device=cpu) = aten::tanh(%0)
              %2 : Tensor = prim::CallMethod[name="forward1"](self.linear, %1)
              return (%2)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::linear(%x, self.linear.weight, self.linear.bias)
              %1 : Tensor = aten::tanh(%0)
              %2 : Tensor = aten::linear(%1, self.linear.weight, self.linear.bias)
              return (%2)
        """,
    )
    assert change.model.linear.weight.data_ptr() == model.linear.weight.data_ptr()
    assert_same_output(change.model, model, sample(1, 2))


def double(x: Tensor) -> Tensor:
    return x + x


class CallsFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return double(double(x))


def test_functions_are_inlined() -> None:
    change = before_and_after("flatten", scripted(CallsFunction()))
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Function = prim::Constant[name="double"]()
              %1 : Tensor = prim::CallFunction(%0, %x)
              %2 : Tensor = prim::CallFunction(%0, %1)
              return (%2)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::add(%x, %x, 1)
              %1 : Tensor = aten::add(%0, %0, 1)
              return (%1)
        """,
    )


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Sequential(nn.ReLU(), nn.Sigmoid()), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y.neg()


def test_scripted_nodes_know_their_module_path() -> None:
    model = scripted(Nested())
    assert_text(
        before_and_after("fold_attributes", model, show=raw_text).after,
        """
            graph(%self : __torch__.tests.passes.test_flatten.Nested,
                  %x.1 : Tensor):
              %result.3 : Tensor = aten::relu(%x.1), scope: body.0.0
              %3 : Tensor = aten::sigmoid(%result.3), scope: body.0.1
              %4 : Tensor = aten::tanh(%3), scope: body.1
              %5 : Tensor = aten::neg(%4)
              return (%5)
        """,
    )


def test_traced_nodes_know_their_module_path() -> None:
    model = traced(Nested(), sample(2))
    assert_text(
        before_and_after("flatten", model, show=raw_text).after,
        """
            graph(%self.1 : __torch__.tests.passes.test_flatten.Nested,
                  %x : Tensor):
              %input.1 : Tensor = aten::relu(%x), scope: body.0.0
              %input : Tensor = aten::sigmoid(%input.1), scope: body.0.1
              %y : Tensor = aten::tanh(%input), scope: body.1
              %5 : Tensor = aten::neg(%y)
              return (%5)
        """,
    )


class Exports(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y

    @torch.jit.export
    def halve(self, x: Tensor) -> Tensor:
        return self.forward(x) * 0.5


def test_exported_method_is_kept() -> None:
    model = scripted(Exports())
    change = before_and_after("flatten", model, method="halve")
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = prim::CallMethod[name="forward"](self, %x)
              %1 : Tensor = aten::mul(%0, 0.5)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::linear(%x, self.linear.weight, self.linear.bias)
              %1 : Tensor = aten::mul(%0, 0.5)
              return (%1)
        """,
    )
    assert_same_output(change.model.halve, model.halve, sample(1, 2))
    assert_same_output(change.model, model, sample(1, 2))


def test_flat_graph_stays() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu().neg()

    model = scripted(Flat())
    assert_unchanged(
        before_and_after("flatten", model, show=raw_text),
        """
            graph(%self : __torch__.tests.passes.test_flatten.Flat,
                  %x.1 : Tensor):
              %2 : Tensor = aten::relu(%x.1)
              %3 : Tensor = aten::neg(%2)
              return (%3)
        """,
    )


class Dotted(nn.Module):
    """Names with dots, as torch.ao's converted models have, and what they must not turn into."""

    def __init__(self) -> None:
        super().__init__()
        setattr(self, "a.b", 2.0)
        self.a_b = 3.0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x * getattr(self, "a.b") + self.a_b
        return y


def test_names_with_dots_are_replaced() -> None:
    model = scripted(Dotted())
    change = before_and_after("flatten", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : float = prim::GetAttr[name="a.b"](self)
              %1 : Tensor = aten::mul(%x, %0)
              %2 : Tensor = aten::add(%1, self.a_b, 1)
              return (%2)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::mul(%x, self.a_b_)
              %1 : Tensor = aten::add(%0, self.a_b, 1)
              return (%1)
        """,
    )
    assert_same_output(change.model, model, sample(1, 2))


class Pair(NamedTuple):
    low: Tensor
    high: Tensor


class ReturnsPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Pair:
        y = self.linear(x)
        return Pair(y - 1, y + 1)


class HoldsObject(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.scaler = Scaler(2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.scaler.apply(self.linear(x))


@pytest.mark.parametrize("module_class", [ReturnsPair, HoldsObject])
def test_classes_that_are_no_modules_outlive_the_original(module_class: type[nn.Module]) -> None:
    """Their types move into the new unit: otherwise saving reads freed memory."""
    model = scripted(module_class())
    expected = model(sample(1, 2))
    prepared = prepare_jit(model, {"": FIXED})
    del model
    gc.collect()
    assert_same_output(prepared, lambda _: expected, sample(1, 2))
    buffer = io.BytesIO()
    torch.jit.save(prepared, buffer)
    buffer.seek(0)
    assert_same_output(torch.jit.load(buffer), lambda _: expected, sample(1, 2))


class Counts(nn.Module):
    total: Tensor
    view: Tensor
    seen: list[int]

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("total", torch.zeros(2))
        self.register_buffer("view", self.total[:1])
        self.seen = []

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(1)
        self.seen.append(1)
        y: Tensor = self.linear(x)
        return y + self.total + self.view + len(self.seen)


def test_original_is_untouched_by_prepare_and_by_running_the_copy() -> None:
    module = Counts()
    model = scripted(module)
    model.total.zero_()
    graph, code = str(model.graph), model.code
    state = {name: value.clone() for name, value in model.state_dict().items()}

    prepared = prepare_jit(model, {"": FIXED})
    for run in range(1, 3):
        result = prepared(torch.zeros(1, 2))
        expected = torch.full((1, 2), 3.0 * run) + model.linear.bias  # total, view and seen
        torch.testing.assert_close(result, expected)

    assert (str(model.graph), model.code) == (graph, code)
    assert {name: value.tolist() for name, value in model.state_dict().items()} == {
        name: value.tolist() for name, value in state.items()
    }
    assert model.seen == []
    assert prepared.total.tolist() == [2.0, 2.0]
