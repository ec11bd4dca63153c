"""lower: a float op between dequantize and quantize becomes the target's int8 op, by table."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.ir import (
    FIXED,
    assert_change,
    assert_same_output,
    assert_text,
    assert_unchanged,
    before_and_after,
    reasons,
    sample,
    scripted,
)

X = sample(1, 2, 3, 3)


class ConvRelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x).relu()
        return result


def test_conv_and_relu_become_one_op_beside_the_float_ops() -> None:
    """verify compares them, and removes one of the two."""
    model = scripted(ConvRelu())
    change = before_and_after("lower", model, X)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : Tensor = aten::quantize_per_tensor(self.conv.weight, 0.03125, 0, 12)
              %3 : Tensor = aten::dequantize(%2)
              %4 : Tensor = aten::conv2d(%1, %3, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %5 : Tensor = aten::relu(%4)
              %6 : Tensor = aten::quantize_per_tensor(%5, 0.0625, 128, 13)
              %7 : Tensor = aten::dequantize(%6)
              return (%7)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : Tensor = aten::quantize_per_tensor(self.conv.weight, 0.03125, 0, 12)
              %3 : Tensor = aten::dequantize(%2)
              %4 : Tensor = aten::conv2d(%1, %3, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %5 : Tensor = aten::relu(%4)
              %6 : __torch__.torch.classes.quantized.Conv2dPackedParamsBase = quantized::conv2d_prepack(%2, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %7 : Tensor = quantized::conv2d_relu(%0, %6, 0.0625, 128)
              %8 : Tensor = aten::quantize_per_tensor(%5, 0.0625, 128, 13)
              %9 : Tensor = aten::dequantize(%7)
              return (%9)
        """,
    )
    assert reasons(change.model) == [
        ("aten::conv2d", "quantized::conv2d_relu"),
        ("aten::relu", "absorbed by aten::conv2d"),
    ]
    assert_same_output(change.model, model, X, atol=0.15)


class ConvClamp(ConvRelu):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x).clamp(-0.5, 0.5)
        return result


def test_bounds_inside_the_range_follow_as_an_int8_op() -> None:
    model = scripted(ConvClamp())
    change = before_and_after("lower", model, X)
    assert_text(
        change.after,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : Tensor = aten::quantize_per_tensor(self.conv.weight, 0.03125, 0, 12)
              %3 : Tensor = aten::dequantize(%2)
              %4 : Tensor = aten::conv2d(%1, %3, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %5 : Tensor = aten::clamp(%4, -0.5, 0.5)
              %6 : __torch__.torch.classes.quantized.Conv2dPackedParamsBase = quantized::conv2d_prepack(%2, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %7 : Tensor = quantized::conv2d(%0, %6, 0.003921568859368563, 128)
              %8 : Tensor = aten::clamp(%7, -0.5, 0.5)
              %9 : Tensor = aten::quantize_per_tensor(%5, 0.003921568859368563, 128, 13)
              %10 : Tensor = aten::dequantize(%8)
              return (%10)
        """,
    )
    assert_same_output(change.model, model, X, atol=0.15)


class ConvWideClamp(ConvRelu):
    def forward(self, x: Tensor) -> Tensor:
        return functional.hardtanh(self.conv(x), -9.0, 9.0)


def test_bounds_outside_the_range_are_left_to_saturation() -> None:
    """The qparams of FIXED span -8 to 7.94."""
    model = scripted(ConvWideClamp())
    change = before_and_after("lower", model, X)
    assert_text(
        change.after,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : Tensor = aten::quantize_per_tensor(self.conv.weight, 0.03125, 0, 12)
              %3 : Tensor = aten::dequantize(%2)
              %4 : Tensor = aten::conv2d(%1, %3, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %5 : Tensor = aten::hardtanh(%4, -9.0, 9.0)
              %6 : __torch__.torch.classes.quantized.Conv2dPackedParamsBase = quantized::conv2d_prepack(%2, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %7 : Tensor = quantized::conv2d(%0, %6, 0.0625, 128)
              %8 : Tensor = aten::quantize_per_tensor(%5, 0.0625, 128, 13)
              %9 : Tensor = aten::dequantize(%7)
              return (%9)
        """,
    )
    assert_same_output(change.model, model, X, atol=0.15)


class AddsNumber(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.hardsigmoid(x) + -0.75


def test_number_becomes_a_quantized_tensor_without_rounding_error() -> None:
    """Scale 0.75, zero point 1, and so the integer 0."""
    model = scripted(AddsNumber())
    change = before_and_after("lower", model, X)
    assert_text(
        change.after,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : Tensor = aten::hardsigmoid(%1)
              %3 : Tensor = aten::hardsigmoid(%0)
              %4 : Tensor = aten::quantize_per_tensor(%2, 0.00390625, 0, 13)
              %5 : Tensor = aten::dequantize(%3)
              %6 : Tensor = aten::add(%5, -0.75, 1)
              %7 : Tensor = aten::quantize_per_tensor(tensor({-0.75}), 0.75, 1, 13)
              %8 : Tensor = quantized::add(%3, %7, 0.0625, 128)
              %9 : Tensor = aten::quantize_per_tensor(%6, 0.0625, 128, 13)
              %10 : Tensor = aten::dequantize(%8)
              return (%10)
        """,
    )
    assert_same_output(change.model, model, X, atol=1 / 16)


class Cats(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([functional.hardsigmoid(x), x.tanh()], 1)


def test_list_operand_becomes_a_list_of_int8_values() -> None:
    model = scripted(Cats())
    change = before_and_after("lower", model, X)
    assert_text(
        change.after,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : Tensor = aten::hardsigmoid(%1)
              %3 : Tensor = aten::hardsigmoid(%0)
              %4 : Tensor = aten::quantize_per_tensor(%2, 0.00390625, 0, 13)
              %5 : Tensor = aten::dequantize(%3)
              %6 : Tensor = aten::tanh(%1)
              %7 : Tensor = aten::tanh(%0)
              %8 : Tensor = aten::quantize_per_tensor(%6, 0.0078125, 128, 13)
              %9 : Tensor = aten::dequantize(%7)
              %10 : Tensor[] = prim::ListConstruct(%5, %9)
              %11 : Tensor = aten::cat(%10, 1)
              %12 : Tensor[] = prim::ListConstruct(%3, %7)
              %13 : Tensor = quantized::cat(%12, 1, 0.0625, 128)
              %14 : Tensor = aten::quantize_per_tensor(%11, 0.0625, 128, 13)
              %15 : Tensor = aten::dequantize(%13)
              return (%15)
        """,
    )
    assert_same_output(change.model, model, X, atol=1 / 16)


class Floats(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp().relu()


def test_float_ops_stay() -> None:
    assert_unchanged(
        before_and_after("lower", scripted(Floats()), X),
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::exp(%x)
              %1 : Tensor = aten::relu(%0)
              return (%1)
        """,
    )


@pytest.mark.parametrize("skipped", ["", "conv"])
def test_qconfig_none_is_not_lowered(skipped: str) -> None:
    model = scripted(nn.Sequential(ConvRelu(), ConvRelu()))
    path = f"0.{skipped}".rstrip(".")
    converted = before_and_after("lower", model, X, qconfig_dict={"": FIXED, path: None}).model
    assert reasons(converted)[0] == ("aten::conv2d", "its qconfig is None")
    assert reasons(converted)[2] == ("aten::conv2d", "quantized::conv2d_relu")


class AddsToTheSmaller(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(2, 2)
        self.all = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.one(x[:1]) + self.all(x)
        return y


def test_the_larger_operand_comes_first() -> None:
    model = scripted(AddsToTheSmaller())
    change = before_and_after("lower", model, sample(3, 2))
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : Tensor = aten::slice(%0, 0, None, 1, 1)
              %3 : Tensor = aten::slice(%1, 0, None, 1, 1)
              %4 : Tensor = aten::dequantize(%2)
              %5 : Tensor = aten::quantize_per_tensor(self.one.weight, 0.03125, 0, 12)
              %6 : Tensor = aten::dequantize(%5)
              %7 : Tensor = aten::linear(%4, %6, self.one.bias)
              %8 : Tensor = aten::quantize_per_tensor(%7, 0.0625, 128, 13)
              %9 : Tensor = aten::dequantize(%8)
              %10 : Tensor = aten::quantize_per_tensor(self.all.weight, 0.03125, 0, 12)
              %11 : Tensor = aten::dequantize(%10)
              %12 : Tensor = aten::linear(%1, %11, self.all.bias)
              %13 : Tensor = aten::quantize_per_tensor(%12, 0.0625, 128, 13)
              %14 : Tensor = aten::dequantize(%13)
              %15 : Tensor = aten::add(%9, %14, 1)
              %16 : Tensor = aten::quantize_per_tensor(%15, 0.0625, 128, 13)
              %17 : Tensor = aten::dequantize(%16)
              return (%17)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : Tensor = aten::slice(%0, 0, None, 1, 1)
              %3 : Tensor = aten::slice(%1, 0, None, 1, 1)
              %4 : Tensor = aten::dequantize(%2)
              %5 : Tensor = aten::quantize_per_tensor(self.one.weight, 0.03125, 0, 12)
              %6 : Tensor = aten::dequantize(%5)
              %7 : Tensor = aten::linear(%4, %6, self.one.bias)
              %8 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack(%5, self.one.bias)
              %9 : Tensor = quantized::linear(%2, %8, 0.0625, 128)
              %10 : Tensor = aten::quantize_per_tensor(%7, 0.0625, 128, 13)
              %11 : Tensor = aten::dequantize(%9)
              %12 : Tensor = aten::quantize_per_tensor(self.all.weight, 0.03125, 0, 12)
              %13 : Tensor = aten::dequantize(%12)
              %14 : Tensor = aten::linear(%1, %13, self.all.bias)
              %15 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack(%12, self.all.bias)
              %16 : Tensor = quantized::linear(%0, %15, 0.0625, 128)
              %17 : Tensor = aten::quantize_per_tensor(%14, 0.0625, 128, 13)
              %18 : Tensor = aten::dequantize(%16)
              %19 : Tensor = aten::add(%11, %18, 1)
              %20 : Tensor = quantized::add(%16, %9, 0.0625, 128)
              %21 : Tensor = aten::quantize_per_tensor(%19, 0.0625, 128, 13)
              %22 : Tensor = aten::dequantize(%20)
              return (%22)
        """,
    )
    assert_same_output(change.model, model, sample(3, 2), atol=0.15)
