"""fold_attributes: attributes that no method sets are read once, plain values become constants."""

import pytest
import torch
from torch import Tensor, nn

from tests.ir import (
    assert_change,
    assert_same_output,
    assert_unchanged,
    before_and_after,
    sample,
    scripted,
    unscoped_text,
)
from tests.models import Scaler


class ReadsTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.factor = 3

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x.neg()
        return x * self.weight + self.weight * self.factor


def test_one_read_per_attribute_and_constants_for_plain_values() -> None:
    model = scripted(ReadsTwice())
    change = before_and_after("fold_attributes", model, show=unscoped_text)
    assert_change(
        change,
        before="""
            graph(%self : __torch__.tests.passes.test_fold_attributes.ReadsTwice,
                  %x.1 : Tensor):
              %2 : int = prim::Constant[value=1]()
              %training : bool = prim::GetAttr[name="training"](%self)
              %x : Tensor = prim::If(%training)
                block0():
                  %x.5 : Tensor = aten::neg(%x.1)
                  -> (%x.5)
                block1():
                  -> (%x.1)
              %weight.1 : Tensor = prim::GetAttr[name="weight"](%self)
              %7 : Tensor = aten::mul(%x, %weight.1)
              %weight : Tensor = prim::GetAttr[name="weight"](%self)
              %factor : int = prim::GetAttr[name="factor"](%self)
              %10 : Tensor = aten::mul(%weight, %factor)
              %11 : Tensor = aten::add(%7, %10, %2)
              return (%11)
        """,
        after="""
            graph(%self : __torch__.tests.passes.test_fold_attributes.ReadsTwice,
                  %x.1 : Tensor):
              %2 : int = prim::Constant[value=1]()
              %3 : int = prim::Constant[value=3]()
              %weight.1 : Tensor = prim::GetAttr[name="weight"](%self)
              %5 : Tensor = aten::mul(%x.1, %weight.1)
              %6 : Tensor = aten::mul(%weight.1, %3)
              %7 : Tensor = aten::add(%5, %6, %2)
              return (%7)
        """,
    )
    assert_same_output(change.model, model, sample(2))


class SetsAttribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        return x * self.count


def test_attribute_that_a_method_sets_is_read_each_time() -> None:
    model = scripted(SetsAttribute())
    change = before_and_after("fold_attributes", model, show=unscoped_text)
    assert_unchanged(
        change,
        """
            graph(%self : __torch__.tests.passes.test_fold_attributes.SetsAttribute,
                  %x.1 : Tensor):
              %2 : int = prim::Constant[value=1]()
              %count.1 : int = prim::GetAttr[name="count"](%self)
              %4 : int = aten::add(%count.1, %2)
               = prim::SetAttr[name="count"](%self, %4)
              %count : int = prim::GetAttr[name="count"](%self)
              %6 : Tensor = aten::mul(%x.1, %count)
              return (%6)
        """,
    )
    assert [change.model(torch.ones(1)).item() for _ in range(3)] == [1, 2, 3]
    assert model.count == 0


class SetInOtherMethod(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale

    @torch.jit.export
    def set_scale(self, scale: float) -> None:
        self.scale = scale


def test_attribute_that_another_method_sets_is_no_constant() -> None:
    model = scripted(SetInOtherMethod())
    change = before_and_after("fold_attributes", model, show=unscoped_text)
    assert_unchanged(
        change,
        """
            graph(%self : __torch__.tests.passes.test_fold_attributes.SetInOtherMethod,
                  %x.1 : Tensor):
              %scale : float = prim::GetAttr[name="scale"](%self)
              %3 : Tensor = aten::mul(%x.1, %scale)
              return (%3)
        """,
    )
    change.model.set_scale(5.0)
    assert change.model(torch.ones(1)).item() == 5.0


class KeepsLists(nn.Module):
    seen: list[Tensor]
    sizes: list[int]
    nested: list[list[int]]

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.sizes, self.nested = [], [], [[0]]

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        self.sizes.append(len(x))
        return torch.cat(self.seen).flip([0, 1])

    @torch.jit.export
    def reset(self) -> None:
        self.seen = []
        self.sizes = [1, 2]
        self.nested = [[3], [4]]


def test_a_list_that_is_kept_is_made_anew() -> None:
    """As a constant it would be the same list after each reset, with what was appended."""
    change = before_and_after("fold_attributes", scripted(KeepsLists()), method="reset")
    assert_unchanged(
        change,
        """
            graph(self):
              %0 : Tensor[] = prim::ListConstruct()
               = prim::SetAttr[name="seen"](self, %0)
              %1 : int[] = prim::ListConstruct(1, 2)
               = prim::SetAttr[name="sizes"](self, %1)
              %2 : int[] = prim::ListConstruct(3)
              %3 : int[] = prim::ListConstruct(4)
              %4 : int[][] = prim::ListConstruct(%2, %3)
               = prim::SetAttr[name="nested"](self, %4)
              return (None)
        """,
    )


def test_a_list_that_is_only_read_becomes_a_constant() -> None:
    change = before_and_after("fold_attributes", scripted(KeepsLists()))
    assert "aten::flip(%3, [0, 1])" in change.after


@torch.jit.script
class Holder:
    def __init__(self, factor: float) -> None:
        self.scaler = Scaler(factor)


class SetsItsObject(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = Scaler(2.0)
        self.b = Scaler(3.0)
        self.holder = Holder(5.0)
        self.fixed = 7.0

    def forward(self, x: Tensor) -> Tensor:
        self.a = Scaler(0.5 * self.a.factor)
        return x * self.a.factor * self.fixed


class ChangesItsObject(SetsItsObject):
    def forward(self, x: Tensor) -> Tensor:
        self.a.halve()
        return x * self.a.factor * self.fixed


class ChangesByAnotherName(SetsItsObject):
    def forward(self, x: Tensor) -> Tensor:
        one = self.a if x.size(0) > 1 else self.b
        one.halve()
        return x * self.a.factor * self.fixed


class SetsWhatHoldsAnother(SetsItsObject):
    def forward(self, x: Tensor) -> Tensor:
        self.holder = Holder(0.5 * self.holder.scaler.factor)
        return x * self.holder.scaler.factor * self.fixed


class ReadsOnly(SetsItsObject):
    """An object that it makes is none of those that it reads."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.a.factor * Scaler(self.fixed).factor


OBJECTS = [
    SetsItsObject(),
    ChangesItsObject(),
    ChangesByAnotherName(),
    SetsWhatHoldsAnother(),
    ReadsOnly(),
]


@pytest.mark.parametrize("model", OBJECTS, ids=lambda model: type(model).__name__)
def test_attributes_of_objects_that_change_are_read_each_time(model: nn.Module) -> None:
    x = sample(2, 2)
    expected = scripted(model)
    change = before_and_after("fold_attributes", scripted(model))
    for _ in range(3):
        assert_same_output(change.model, expected, x, atol=0)
    assert ("aten::mul(%x, 2.0)" in change.after) == isinstance(model, ReadsOnly)
    assert 'prim::GetAttr[name="fixed"]' not in change.after


class Lists(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, list[int]]:
        y = nn.functional.avg_pool2d(x, [2, 2], [1, 1])
        z = nn.functional.avg_pool2d(y, [2, 2], [1, 1])
        dims = [2]
        dims.append(3)
        return z.sum(dims), [2, 2]


def test_lists_become_one_constant_unless_one_is_written_or_returned() -> None:
    change = before_and_after("fold_attributes", scripted(Lists()), show=unscoped_text)
    assert_change(
        change,
        before="""
            graph(%self : __torch__.tests.passes.test_fold_attributes.Lists,
                  %x.1 : Tensor):
              %2 : NoneType = prim::Constant()
              %3 : bool = prim::Constant[value=1]()
              %4 : bool = prim::Constant[value=0]()
              %5 : int[] = prim::Constant[value=[0, 0]]()
              %6 : int = prim::Constant[value=2]()
              %7 : int = prim::Constant[value=1]()
              %8 : int = prim::Constant[value=3]()
              %9 : int[] = prim::ListConstruct(%6, %6)
              %10 : int[] = prim::ListConstruct(%7, %7)
              %y.1 : Tensor = aten::avg_pool2d(%x.1, %9, %10, %5, %4, %3, %2)
              %12 : int[] = prim::ListConstruct(%6, %6)
              %13 : int[] = prim::ListConstruct(%7, %7)
              %z.1 : Tensor = aten::avg_pool2d(%y.1, %12, %13, %5, %4, %3, %2)
              %dims.1 : int[] = prim::ListConstruct(%6)
              %16 : int[] = aten::append(%dims.1, %8)
              %17 : Tensor = aten::sum(%z.1, %dims.1, %4, %2)
              %18 : int[] = prim::ListConstruct(%6, %6)
              %19 : (Tensor, int[]) = prim::TupleConstruct(%17, %18)
              return (%19)
        """,
        after="""
            graph(%self : __torch__.tests.passes.test_fold_attributes.Lists,
                  %x.1 : Tensor):
              %2 : int[] = prim::Constant[value=[1, 1]]()
              %3 : int[] = prim::Constant[value=[2, 2]]()
              %4 : int = prim::Constant[value=3]()
              %5 : int = prim::Constant[value=2]()
              %6 : int[] = prim::Constant[value=[0, 0]]()
              %7 : bool = prim::Constant[value=0]()
              %8 : bool = prim::Constant[value=1]()
              %9 : NoneType = prim::Constant()
              %y.1 : Tensor = aten::avg_pool2d(%x.1, %3, %2, %6, %7, %8, %9)
              %z.1 : Tensor = aten::avg_pool2d(%y.1, %3, %2, %6, %7, %8, %9)
              %dims.1 : int[] = prim::ListConstruct(%5)
              %13 : int[] = aten::append(%dims.1, %4)
              %14 : Tensor = aten::sum(%z.1, %dims.1, %7, %9)
              %15 : int[] = prim::ListConstruct(%5, %5)
              %16 : (Tensor, int[]) = prim::TupleConstruct(%14, %15)
              return (%16)
        """,
    )
