"""fuse: a value that is dequantized and quantized again with the same qparams stays as it is."""

import torch
from torch import Tensor, nn

from tests.ir import (
    ACTIVATION_SCALE,
    assert_change,
    assert_same_output,
    assert_unchanged,
    before_and_after,
    sample,
    scripted,
)


class QuantizedInput(nn.Module):
    """The user's own quantize and dequantize in front of a layer."""

    def __init__(self, zero_point: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.scale = ACTIVATION_SCALE
        self.zero_point = zero_point

    def forward(self, x: Tensor) -> Tensor:
        q = torch.quantize_per_tensor(x, self.scale, self.zero_point, torch.quint8)
        y: Tensor = self.linear(q.dequantize())
        return y


def test_same_qparams_stay_int8() -> None:
    model = scripted(QuantizedInput(128))
    change = before_and_after("fuse", model, sample(1, 2))
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : Tensor = aten::quantize_per_tensor(%1, 0.0625, 128, 13)
              %3 : Tensor = aten::quantize_per_tensor(self.linear.weight, 0.03125, 0, 12)
              %4 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack(%3, self.linear.bias)
              %5 : Tensor = quantized::linear(%2, %4, 0.0625, 128)
              %6 : Tensor = aten::dequantize(%5)
              return (%6)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::quantize_per_tensor(self.linear.weight, 0.03125, 0, 12)
              %2 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack(%1, self.linear.bias)
              %3 : Tensor = quantized::linear(%0, %2, 0.0625, 128)
              %4 : Tensor = aten::dequantize(%3)
              return (%4)
        """,
    )
    assert_same_output(change.model, model, sample(1, 2), atol=0.15)


def test_other_qparams_are_quantized_again() -> None:
    model = scripted(QuantizedInput(100))
    change = before_and_after("fuse", model, sample(1, 2))
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 100, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : Tensor = aten::quantize_per_tensor(%1, 0.0625, 128, 13)
              %3 : Tensor = aten::quantize_per_tensor(self.linear.weight, 0.03125, 0, 12)
              %4 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack(%3, self.linear.bias)
              %5 : Tensor = quantized::linear(%2, %4, 0.0625, 128)
              %6 : Tensor = aten::dequantize(%5)
              return (%6)
        """,
    )
    assert_same_output(change.model, model, sample(1, 2), atol=0.15)


class ClampedInput(QuantizedInput):
    """The two bounds look like qparams, and are those of the linear layer's input."""

    def forward(self, x: Tensor) -> Tensor:
        q = torch.quantize_per_tensor(x, self.scale, self.zero_point, torch.quint8)
        y: Tensor = self.linear(torch.ops.quantized.clamp(q, 0.0625, 128).dequantize())
        return y


def test_bounds_of_a_clamp_are_no_qparams() -> None:
    model = scripted(ClampedInput(100))
    change = before_and_after("fuse", model, sample(1, 2))
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 100, 13)
              %1 : Tensor = quantized::clamp(%0, 0.0625, 128)
              %2 : Tensor = aten::dequantize(%1)
              %3 : Tensor = aten::quantize_per_tensor(%2, 0.0625, 128, 13)
              %4 : Tensor = aten::quantize_per_tensor(self.linear.weight, 0.03125, 0, 12)
              %5 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack(%4, self.linear.bias)
              %6 : Tensor = quantized::linear(%3, %5, 0.0625, 128)
              %7 : Tensor = aten::dequantize(%6)
              return (%7)
        """,
    )
    assert_same_output(change.model, model, sample(1, 2), atol=0.15)
