"""resolve_asserts: where one branch of an If raises, what the other one does always follows."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.ir import (
    assert_change,
    assert_same_output,
    before_and_after,
    reasons,
    sample,
    scripted,
    trace_prepare,
)

X = sample(3, 4)


class Checked(nn.Module):
    """As torch.nn checks the optional biases of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(6, 4))
        self.b = nn.Parameter(torch.zeros(6))
        self.has_bias = True

    def forward(self, x: Tensor) -> Tensor:
        w1, w2 = self.w.chunk(2)
        b1: Tensor | None = None
        b2: Tensor | None = None
        if self.has_bias:
            b1, b2 = self.b.chunk(2)
        return checked(x, w1, b1) + checked(x, w2, b2)


def checked(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    assert b is None or b.shape == (x.size(1) - 1,), f"a bias of {w.size(0)} values"
    return functional.linear(x, w, b)


def test_layers_behind_a_check_of_their_bias_are_int8() -> None:
    model = scripted(Checked())
    change = before_and_after("resolve_asserts", model)
    assert "Tensor?" in change.before and "Tensor?" not in change.after
    assert_same_output(change.model, model, X)
    assert reasons(change.model) == [("aten::linear", "int8")] * 2 + [("aten::add", "int8")]
    with pytest.raises(torch.jit.Error, match="a bias of 3 values"):
        change.model(sample(3, 5))


class Optional(nn.Module):
    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        if y is None:
            raise ValueError("y is missing")
        return x + y


def test_value_that_is_not_missing_behind_a_check() -> None:
    model = scripted(Optional())
    change = before_and_after("resolve_asserts", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor, %y : Tensor?):
              %0 : Tensor = prim::Uninitialized()
              %1 : bool = aten::__is__(%y, None)
              %2 : Tensor = prim::If(%1)
                block0():
                   = prim::RaiseException("y is missing", "builtins.ValueError")
                  -> (%0)
                block1():
                  %3 : Tensor = prim::unchecked_cast(%y)
                  -> (%3)
              %4 : Tensor = aten::add(%x, %2, 1)
              return (%4)
        """,
        after="""
            graph(self, %x : Tensor, %y : Tensor?):
              %0 : bool = aten::__is__(%y, None)
               = prim::If(%0)
                block0():
                   = prim::RaiseException("y is missing", "builtins.ValueError")
                  -> ()
                block1():
                  -> ()
              %1 : Tensor = prim::unchecked_cast(%y)
              %2 : Tensor = aten::add(%x, %1, 1)
              return (%2)
        """,
    )
    assert_same_output(change.model, model, X, X)
    with pytest.raises(torch.jit.Error, match="y is missing"):
        change.model(X, None)


class Either(nn.Module):
    """The branch that does not raise has a branch of its own."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        if bool(x.sum() > 100):
            z, u = y, y
            raise ValueError("too much")
        else:
            z, u = y, x + 1
            if bool(x.sum() > 0):
                u = u * 3
        return z + u


def test_nested_branches_move_too() -> None:
    model = scripted(Either())
    change = before_and_after("resolve_asserts", model)
    assert_change(
        change,
        before=change.before,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::mul(%x, 2)
              %1 : Tensor = aten::sum(%x, None)
              %2 : Tensor = aten::gt(%1, 100)
              %3 : bool = aten::Bool(%2)
               = prim::If(%3)
                block0():
                   = prim::RaiseException("too much", "builtins.ValueError")
                  -> ()
                block1():
                  -> ()
              %4 : Tensor = aten::add(%x, 1, 1)
              %5 : Tensor = aten::sum(%x, None)
              %6 : Tensor = aten::gt(%5, 0)
              %7 : bool = aten::Bool(%6)
              %8 : Tensor = prim::If(%7)
                block0():
                  %9 : Tensor = aten::mul(%4, 3)
                  -> (%9)
                block1():
                  -> (%4)
              %10 : Tensor = aten::add(%0, %8, 1)
              return (%10)
        """,
    )
    for x in (X, X + 1, X - 1):
        assert_same_output(change.model, model, x)
    with pytest.raises(torch.jit.Error, match="too much"):
        change.model(X + 100)


class BothReturn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        return y if bool(x.sum() > 100) else x


def test_branches_that_return_stay() -> None:
    model = scripted(BothReturn())
    change = before_and_after("resolve_asserts", model)
    assert change.after == change.before
    for x in (X, X + 100):
        assert_same_output(trace_prepare(model).model, model, x)
