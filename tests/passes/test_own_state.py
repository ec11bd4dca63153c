"""own_state: what a method changes is no constant, and is not shared with the original model."""

import pytest
import torch
from torch import Tensor, nn

from jitquant import convert_jit, fuse_conv_bn_jit, prepare_jit
from tests.ir import (
    FIXED,
    assert_change,
    assert_same_output,
    assert_unchanged,
    before_and_after,
    raw_text,
    readable,
    reasons,
    sample,
    scripted,
)


class WritesView(nn.Module):
    whole: Tensor
    part: Tensor
    other: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("whole", torch.zeros(4))
        self.register_buffer("part", self.whole[1:3])
        self.register_buffer("other", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.part.add_(x)
        return self.whole * 1 + self.other


def writes_view() -> torch.jit.ScriptModule:
    model = scripted(WritesView())
    for name in ("whole", "other"):
        getattr(model, name).zero_()
    return model


def test_reads_of_one_written_storage_are_marked() -> None:
    """%whole is only read, and is the same memory."""
    change = before_and_after("own_state", writes_view(), show=raw_text)
    assert_change(
        change,
        before="""
            graph(%self : __torch__.tests.passes.test_own_state.WritesView,
                  %x.1 : Tensor):
              %2 : int = prim::Constant[value=1]()
              %other : Tensor = prim::GetAttr[name="other"](%self)
              %whole : Tensor = prim::GetAttr[name="whole"](%self)
              %part : Tensor = prim::GetAttr[name="part"](%self)
              %6 : Tensor = aten::add_(%part, %x.1, %2)
              %7 : Tensor = aten::mul(%whole, %2)
              %8 : Tensor = aten::add(%7, %other, %2)
              return (%8)
        """,
        after="""
            graph(%self : __torch__.tests.passes.test_own_state.WritesView,
                  %x.1 : Tensor):
              %2 : int = prim::Constant[value=1]()
              %other : Tensor = prim::GetAttr[name="other"](%self)
              %whole : Tensor = prim::GetAttr[name="whole", jitquant_mutable=1](%self)
              %part : Tensor = prim::GetAttr[name="part", jitquant_mutable=1](%self)
              %6 : Tensor = aten::add_(%part, %x.1, %2)
              %7 : Tensor = aten::mul(%whole, %2)
              %8 : Tensor = aten::add(%7, %other, %2)
              return (%8)
        """,
    )


def test_written_storage_is_cloned_once_and_what_is_read_is_shared() -> None:
    model = writes_view()
    prepared = before_and_after("own_state", model).model
    assert prepared.whole.data_ptr() != model.whole.data_ptr()
    assert prepared.part.data_ptr() == prepared.whole[1:].data_ptr()
    assert prepared.other.data_ptr() == model.other.data_ptr()
    assert prepared(torch.ones(2)).tolist() == [0, 1, 1, 0]
    assert model.whole.tolist() == [0, 0, 0, 0]


class Counts(nn.Module):
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(x)
        return self.count * 1


def test_convert_starts_from_the_state_of_the_original_and_owns_it() -> None:
    model = scripted(Counts())
    model.count.zero_()
    prepared = prepare_jit(model, {"": FIXED})
    prepared(torch.ones(2))
    for debug in (True, False):
        converted = convert_jit(prepared, debug=debug)
        assert [converted(torch.ones(2)).tolist() for _ in range(2)] == [[1, 1], [2, 2]]
        assert prepared.count.tolist() == [1, 1]
    assert model.count.tolist() == [0, 0]


@pytest.mark.parametrize("debug", [True, False])
def test_attribute_that_another_attribute_writes_is_read_after_the_write(debug: bool) -> None:
    prepared = prepare_jit(writes_view(), {"": FIXED})
    prepared(torch.ones(2))
    converted = convert_jit(prepared, debug=debug)
    assert [converted(torch.ones(2)).tolist() for _ in range(2)] == [[0, 1, 1, 0], [0, 2, 2, 0]]


class WritesElements(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.states = [torch.zeros(2)]
        self.named = {"a": torch.zeros(2)}

    def forward(self, x: Tensor) -> Tensor:
        self.states[0].add_(x)
        self.named["a"].add_(x)
        return self.states[0] + self.named["a"]


def test_written_elements_of_lists_and_dicts_are_cloned() -> None:
    model = scripted(WritesElements())
    prepared = prepare_jit(model, {"": FIXED})
    assert prepared(torch.ones(2)).tolist() == [2, 2]
    assert [model.states[0].tolist(), model.named["a"].tolist()] == [[0, 0], [0, 0]]
    converted = convert_jit(prepared)
    assert converted(torch.ones(2)).tolist() == [2, 2]
    assert prepared.states[0].tolist() == [1, 1]


def test_fuse_conv_bn_owns_its_state() -> None:
    model = writes_view()
    fused = fuse_conv_bn_jit(model)
    assert [fused(torch.ones(2)).tolist() for _ in range(2)] == [[0, 1, 1, 0], [0, 2, 2, 0]]
    assert model.whole.tolist() == [0, 0, 0, 0]


class OneTensorTwice(nn.Module):
    first: Tensor
    second: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("first", torch.zeros(2))
        self.register_buffer("second", self.first)

    def forward(self, x: Tensor) -> Tensor:
        self.first.add_(x)
        return self.second * 1


def test_one_tensor_under_two_names_stays_one() -> None:
    model = scripted(OneTensorTwice())
    model.first.zero_()
    prepared = before_and_after("own_state", model).model
    assert prepared(torch.ones(2)).tolist() == [1, 1]
    assert prepared.first.data_ptr() == prepared.second.data_ptr()
    assert model.first.tolist() == [0, 0]


class SetsAttribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        return x * self.count


def test_reads_of_an_attribute_that_the_method_sets_are_marked() -> None:
    model = scripted(SetsAttribute())
    change = before_and_after("own_state", model, show=raw_text)
    assert_change(
        change,
        before="""
            graph(%self : __torch__.tests.passes.test_own_state.SetsAttribute,
                  %x.1 : Tensor):
              %2 : int = prim::Constant[value=1]()
              %count.1 : int = prim::GetAttr[name="count"](%self)
              %4 : int = aten::add(%count.1, %2)
               = prim::SetAttr[name="count"](%self, %4)
              %count : int = prim::GetAttr[name="count"](%self)
              %6 : Tensor = aten::mul(%x.1, %count)
              return (%6)
        """,
        after="""
            graph(%self : __torch__.tests.passes.test_own_state.SetsAttribute,
                  %x.1 : Tensor):
              %2 : int = prim::Constant[value=1]()
              %count.1 : int = prim::GetAttr[name="count", jitquant_mutable=1](%self)
              %4 : int = aten::add(%count.1, %2)
               = prim::SetAttr[name="count"](%self, %4)
              %count : int = prim::GetAttr[name="count", jitquant_mutable=1](%self)
              %6 : Tensor = aten::mul(%x.1, %count)
              return (%6)
        """,
    )
    assert [change.model(torch.ones(1)).item() for _ in range(3)] == [1, 2, 3]
    assert model.count == 0


class SetInOtherMethod(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y

    @torch.jit.export
    def set_weight(self, weight: Tensor) -> None:
        self.linear.weight = weight


def test_attribute_that_another_method_sets_is_no_constant() -> None:
    model = scripted(SetInOtherMethod())
    change = before_and_after("own_state", model, show=raw_text)
    assert_change(
        change,
        before="""
            graph(%self : __torch__.tests.passes.test_own_state.SetInOtherMethod,
                  %x.1 : Tensor):
              %linear : __torch__.torch.nn.modules.linear.Linear = prim::GetAttr[name="linear"](%self)
              %bias : Tensor = prim::GetAttr[name="bias"](%linear), scope: linear
              %weight : Tensor = prim::GetAttr[name="weight"](%linear), scope: linear
              %5 : Tensor = aten::linear(%x.1, %weight, %bias), scope: linear
              return (%5)
        """,
        after="""
            graph(%self : __torch__.tests.passes.test_own_state.SetInOtherMethod,
                  %x.1 : Tensor):
              %linear : __torch__.torch.nn.modules.linear.Linear = prim::GetAttr[name="linear"](%self)
              %bias : Tensor = prim::GetAttr[name="bias"](%linear), scope: linear
              %weight : Tensor = prim::GetAttr[name="weight", jitquant_mutable=1](%linear), scope: linear
              %5 : Tensor = aten::linear(%x.1, %weight, %bias), scope: linear
              return (%5)
        """,
    )
    prepared = change.model
    prepared(sample(1, 2))
    prepared.set_weight(torch.eye(2))
    converted = convert_jit(prepared, preserved_attrs=["set_weight"])
    assert reasons(converted)[0][1] != "quantized::linear"
    for weight in (torch.eye(2), torch.tensor([[0.0, 2.0], [1.0, 0.0]])):
        for each in (model, prepared, converted):
            each.set_weight(weight)
        assert_same_output(prepared, model, sample(1, 2))
        assert_same_output(converted, model, sample(1, 2))


class WrittenByOtherMethod(nn.Module):
    factor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    @torch.jit.export
    def fill(self, value: float) -> None:
        self.factor.fill_(value)


def test_buffer_that_another_method_writes_is_marked_and_cloned() -> None:
    model = scripted(WrittenByOtherMethod())
    model.factor.zero_()
    change = before_and_after("own_state", model, show=raw_text)
    assert_change(
        change,
        before="""
            graph(%self : __torch__.tests.passes.test_own_state.WrittenByOtherMethod,
                  %x.1 : Tensor):
              %factor : Tensor = prim::GetAttr[name="factor"](%self)
              %3 : Tensor = aten::mul(%x.1, %factor)
              return (%3)
        """,
        after="""
            graph(%self : __torch__.tests.passes.test_own_state.WrittenByOtherMethod,
                  %x.1 : Tensor):
              %factor : Tensor = prim::GetAttr[name="factor", jitquant_mutable=1](%self)
              %3 : Tensor = aten::mul(%x.1, %factor)
              return (%3)
        """,
    )
    change.model.fill(3.0)
    assert change.model(torch.ones(2)).tolist() == [3, 3]
    assert model.factor.tolist() == [0, 0]


def test_state_that_no_method_changes_is_left_alone() -> None:
    model = scripted(nn.Sequential(nn.Linear(2, 2)))
    change = before_and_after("own_state", model, show=lambda text: raw_text(text) + readable(text))
    assert change.after == change.before
    assert "jitquant_mutable" not in change.after
    assert_unchanged(
        before_and_after("own_state", model),
        """
            graph(self, %input : Tensor):
              %0 : Tensor = aten::linear(%input, self.0.weight, self.0.bias)
              return (%0)
        """,
    )
    for original, copy in zip(model.parameters(), change.model.parameters(), strict=True):
        assert copy is not original and copy.data_ptr() == original.data_ptr()
