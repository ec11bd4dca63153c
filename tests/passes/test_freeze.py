"""freeze: weights become constants, and attributes that nothing reads go."""

import torch
from torch import Tensor, nn

from tests.ir import (
    assert_change,
    assert_same_output,
    assert_text,
    assert_unchanged,
    before_and_after,
    readable,
    sample,
    scripted,
    trace_convert,
    trace_prepare,
)
from tests.models import Scaler


class Scales(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(1))
        self.unused = nn.Parameter(torch.zeros(3))
        self.note = 7

    def forward(self, x: Tensor) -> Tensor:
        return x.exp() * self.factor


def test_parameters_become_constants() -> None:
    model = scripted(Scales())
    model.factor.data.fill_(0.5)
    change = before_and_after("freeze", model, sample(2))
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(self.factor, 0.0625, 128, 13)
              %1 : Tensor = aten::exp(%x)
              %2 : Tensor = aten::quantize_per_tensor(%1, 0.0625, 128, 13)
              %3 : Tensor = quantized::mul(%2, %0, 0.0625, 128)
              %4 : Tensor = aten::dequantize(%3)
              return (%4)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::exp(%x)
              %1 : Tensor = aten::quantize_per_tensor(%0, 0.0625, 128, 13)
              %2 : Tensor = quantized::mul(%1, tensor({0.5}), 0.0625, 128)
              %3 : Tensor = aten::dequantize(%2)
              return (%3)
        """,
    )
    assert list(change.model.state_dict()) == []
    assert not hasattr(change.model, "note")


def test_preserved_attributes_stay() -> None:
    change = before_and_after("freeze", scripted(Scales()), sample(2), preserved=["note", "unused"])
    assert change.model.note == 7
    assert change.model.unused.shape == (3,)
    assert not hasattr(change.model, "factor")


def test_what_is_quantized_of_a_preserved_attribute_is_an_attribute() -> None:
    model = scripted(Scales())
    model.factor.data.fill_(0.5)
    change = before_and_after("freeze", model, sample(2), preserved=["factor"])
    assert_text(
        change.after,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::exp(%x)
              %1 : Tensor = aten::quantize_per_tensor(%0, 0.0625, 128, 13)
              %2 : Tensor = quantized::mul(%1, self.quantized, 0.0625, 128)
              %3 : Tensor = aten::dequantize(%2)
              return (%3)
        """,
    )
    assert change.model.factor.item() == 0.5


def test_the_result_shares_no_weights_with_the_original() -> None:
    class Layers(Scales):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(x) + torch.cumsum(self.unused, 0).sum()
            return y

    model = scripted(Layers())
    converted = before_and_after("freeze", model, sample(1, 2)).model
    expected = converted(sample(1, 2))
    for parameter in model.parameters():
        parameter.data.add_(1)
    assert torch.equal(converted(sample(1, 2)), expected)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        return x.exp() * self.count


def test_attribute_that_a_method_sets_stays() -> None:
    model = scripted(Counts())
    change = before_and_after("freeze", model, torch.zeros(1))
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor):
              %0 : int = prim::GetAttr[name="count"](self)
              %1 : int = aten::add(%0, 1)
               = prim::SetAttr[name="count"](self, %1)
              %2 : Tensor = aten::exp(%x)
              %3 : int = prim::GetAttr[name="count"](self)
              %4 : Tensor = aten::mul(%2, %3)
              return (%4)
        """,
    )
    assert [change.model(torch.zeros(1)).item() for _ in range(2)] == [1.0, 2.0]


class TwoMethods(Scales):
    @torch.jit.export
    def halve(self, x: Tensor) -> Tensor:
        return self.forward(x) * 0.5


def test_preserved_method_is_frozen_as_well() -> None:
    model = scripted(TwoMethods())
    model.factor.data.fill_(0.5)
    prepared = trace_prepare(model).model
    for method in (prepared, prepared.halve):
        method(sample(2))
    assert not hasattr(trace_convert(prepared).model, "halve")
    convert = trace_convert(prepared, preserved=["halve"])
    assert_text(
        readable(convert.text("freeze", "halve")),
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::exp(%x)
              %1 : Tensor = aten::quantize_per_tensor(%0, 0.0625, 128, 13)
              %2 : Tensor = quantized::mul(%1, tensor({0.5}), 0.0625, 128)
              %3 : Tensor = quantized::mul_scalar(%2, 0.5)
              %4 : Tensor = aten::dequantize(%3)
              %5 : Tensor = aten::contiguous(%4, 0)
              return (%5)
        """,
    )
    assert_same_output(convert.model.halve, model.halve, sample(2), atol=0.15)


def test_graph_without_attributes_stays() -> None:
    class Floats(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.exp().neg()

    change = before_and_after("freeze", scripted(Floats()), sample(2))
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::exp(%x)
              %1 : Tensor = aten::neg(%0)
              return (%1)
        """,
    )
    assert_same_output(change.model, scripted(Floats()), sample(2))


class SetsObject(nn.Module):
    """Each read of the object gives another one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.scaler = Scaler(2.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.scaler.apply(self.linear(x))
        self.scaler = Scaler(0.5 * self.scaler.factor)
        return self.scaler.apply(y)


def test_an_object_that_a_method_sets_is_read_each_time() -> None:
    model = scripted(SetsObject())
    prepared = trace_prepare(model).model
    prepared(sample(3, 2))
    converted = trace_convert(prepared).model
    expected = scripted(SetsObject())
    expected.load_state_dict(model.state_dict())
    for factor in (2.0, 0.5, 0.125):
        linear = converted(sample(3, 2)) / factor
        assert_same_output(lambda _, y=linear: y, expected.linear, sample(3, 2), atol=0.1)
