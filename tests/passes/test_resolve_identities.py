"""resolve_identities: whether a tensor is itself is known beforehand."""

import torch
from torch import Tensor, nn

from tests.ir import assert_change, assert_same_output, assert_unchanged, before_and_after, sample
from tests.ir import scripted as script

X = sample(2, 3)


class Same(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        q = x
        y = x * 3
        if q is x:
            y = y + 1
        if q is not x:
            y = y * 2
        return y


def test_a_tensor_is_itself() -> None:
    model = script(Same())
    change = before_and_after("resolve_identities", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::mul(%x, 3)
              %1 : bool = aten::__is__(%x, %x)
              %2 : Tensor = prim::If(%1)
                block0():
                  %3 : Tensor = aten::add(%0, 1, 1)
                  -> (%3)
                block1():
                  -> (%0)
              %4 : bool = aten::__isnot__(%x, %x)
              %5 : Tensor = prim::If(%4)
                block0():
                  %6 : Tensor = aten::mul(%2, 2)
                  -> (%6)
                block1():
                  -> (%2)
              return (%5)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::mul(%x, 3)
              %1 : Tensor = aten::add(%0, 1, 1)
              return (%1)
        """,
    )
    assert_same_output(change.model, model, X, atol=0)


class SameOfBranches(nn.Module):
    """As nn.MultiheadAttention transposes its arguments."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            q = k = x.t()
        else:
            q = k = x.neg()
        if q is k:
            return q * 2
        return q + k * 3


def test_values_that_are_one_in_both_branches() -> None:
    model = script(SameOfBranches())
    change = before_and_after("resolve_identities", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : int = aten::dim(%x)
              %1 : bool = aten::eq(%0, 2)
              %2 : Tensor, %3 : Tensor = prim::If(%1)
                block0():
                  %4 : Tensor = aten::t(%x)
                  -> (%4, %4)
                block1():
                  %5 : Tensor = aten::neg(%x)
                  -> (%5, %5)
              %6 : bool = aten::__is__(%2, %3)
              %7 : Tensor = prim::If(%6)
                block0():
                  %8 : Tensor = aten::mul(%2, 2)
                  -> (%8)
                block1():
                  %9 : Tensor = aten::mul(%3, 3)
                  %10 : Tensor = aten::add(%2, %9, 1)
                  -> (%10)
              return (%7)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : int = aten::dim(%x)
              %1 : bool = aten::eq(%0, 2)
              %2 : Tensor = prim::If(%1)
                block0():
                  %3 : Tensor = aten::t(%x)
                  -> (%3)
                block1():
                  %4 : Tensor = aten::neg(%x)
                  -> (%4)
              %5 : Tensor = aten::mul(%2, 2)
              return (%5)
        """,
    )
    for x in (X, X[0]):
        assert_same_output(change.model, model, x, atol=0)


class Others(nn.Module):
    """`a` may be `b`; q and k are one value in one branch only."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if a.dim() == 2:
            q, k = a, a
        else:
            q, k = a, b
        if a is b:
            q = q + 1
        if q is k:
            q = q + 2
        return q + k


def test_other_values_stay() -> None:
    model = script(Others())
    change = before_and_after("resolve_identities", model)
    assert_unchanged(
        change,
        """
            graph(self, %a : Tensor, %b : Tensor):
              %0 : int = aten::dim(%a)
              %1 : bool = aten::eq(%0, 2)
              %2 : Tensor = prim::If(%1)
                block0():
                  -> (%a)
                block1():
                  -> (%b)
              %3 : bool = aten::__is__(%a, %b)
              %4 : Tensor = prim::If(%3)
                block0():
                  %5 : Tensor = aten::add(%a, 1, 1)
                  -> (%5)
                block1():
                  -> (%a)
              %6 : bool = aten::__is__(%4, %2)
              %7 : Tensor = prim::If(%6)
                block0():
                  %8 : Tensor = aten::add(%4, 2, 1)
                  -> (%8)
                block1():
                  -> (%4)
              %9 : Tensor = aten::add(%7, %2, 1)
              return (%9)
        """,
    )
    for inputs in ((X, X), (X, X.clone()), (X[0], X[0]), (X[0], X[1])):
        with torch.no_grad():
            assert torch.equal(change.model(*inputs), model(*inputs))


class Views(nn.Module):
    """Two are the same view, another one is of another dimension."""

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = x.unsqueeze(1), x.unsqueeze(1), x.unsqueeze(0)
        return (a + b).sum() + c


def test_equal_views_are_one() -> None:
    model = script(Views())
    change = before_and_after("resolve_identities", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::unsqueeze(%x, 1)
              %1 : Tensor = aten::unsqueeze(%x, 1)
              %2 : Tensor = aten::unsqueeze(%x, 0)
              %3 : Tensor = aten::add(%0, %1, 1)
              %4 : Tensor = aten::sum(%3, None)
              %5 : Tensor = aten::add(%4, %2, 1)
              return (%5)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::unsqueeze(%x, 1)
              %1 : Tensor = aten::unsqueeze(%x, 0)
              %2 : Tensor = aten::add(%0, %0, 1)
              %3 : Tensor = aten::sum(%2, None)
              %4 : Tensor = aten::add(%3, %1, 1)
              return (%4)
        """,
    )
    assert_same_output(change.model, model, X, atol=0)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x, x, x)[0]
        return y


def test_self_attention_has_one_way() -> None:
    """One linear layer for query, key and value, and one behind them."""
    change = before_and_after("simplify", script(Attention()))
    assert change.after.count("aten::linear(") == 2
    assert "aten::chunk(" not in change.after and "aten::split_with_sizes(" not in change.after
