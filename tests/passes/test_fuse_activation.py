"""fuse_activation: a layer takes along the activation behind it, without rounding in between."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from jitquant._engine import engine_set
from tests.ir import (
    ACTIVATION_SCALE,
    assert_change,
    assert_same_output,
    before_and_after,
    sample,
    scripted,
)


@pytest.fixture(autouse=True)
def onednn() -> Iterator[None]:
    """The only engine with such layers."""
    with engine_set("onednn"):
        yield


class Leaky(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 4)
        self.activation = nn.LeakyReLU(0.25)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.linear(x))
        return y


class Tanh(Leaky):
    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.Tanh()  # type: ignore[assignment]


def test_leaky_relu() -> None:
    model = scripted(Leaky())
    change = before_and_after("fuse_activation", model, sample(3, 2))
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::quantize_per_tensor(self.linear.weight, 0.03125, 0, 12)
              %2 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack(%1, self.linear.bias)
              %3 : Tensor = quantized::linear(%0, %2, 0.0625, 128)
              %4 : Tensor = quantized::leaky_relu(%3, 0.25, False, 0.0625, 128)
              %5 : Tensor = aten::dequantize(%4)
              return (%5)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::quantize_per_tensor(self.linear.weight, 0.03125, 0, 12)
              %2 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack(%1, self.linear.bias)
              %3 : Tensor = quantized::linear_leaky_relu(%0, %2, 0.0625, 128, 0.25)
              %4 : Tensor = aten::dequantize(%3)
              return (%4)
        """,
    )
    assert_same_output(change.model, model, sample(3, 2), atol=0.15)


def test_tanh_with_its_own_qparams() -> None:
    model = scripted(Tanh())
    change = before_and_after("fuse_activation", model, sample(3, 2))
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::quantize_per_tensor(self.linear.weight, 0.03125, 0, 12)
              %2 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack(%1, self.linear.bias)
              %3 : Tensor = quantized::linear(%0, %2, 0.0625, 128)
              %4 : Tensor = aten::tanh(%3)
              %5 : Tensor = aten::dequantize(%4)
              return (%5)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::quantize_per_tensor(self.linear.weight, 0.03125, 0, 12)
              %2 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack(%1, self.linear.bias)
              %3 : Tensor = quantized::linear_tanh(%0, %2, 0.0078125, 128)
              %4 : Tensor = aten::dequantize(%3)
              return (%4)
        """,
    )
    assert_same_output(change.model, model, sample(3, 2), atol=0.15)


@pytest.mark.parametrize("module", [Leaky, Tanh])
def test_unfused_without_the_engine(module: type[nn.Module]) -> None:
    model = scripted(module())
    fused = before_and_after("fuse_activation", model, sample(3, 2))
    torch.backends.quantized.engine = "x86"
    change = before_and_after("fuse_activation", model, sample(3, 2))
    assert change.after == change.before == fused.before


class ReadTwice(Leaky):
    """The result of the layer is needed itself."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return torch.cat([self.activation(y), y], 1)


class Between(Leaky):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.linear(x).t())
        return y


@pytest.mark.parametrize("module", [ReadTwice, Between])
def test_layers_that_stay(module: type[nn.Module]) -> None:
    model = scripted(module())
    change = before_and_after("fuse_activation", model, sample(3, 2))
    assert "quantized::leaky_relu" in change.before
    assert change.after == change.before
    assert_same_output(change.model, model, sample(3, 2), atol=3 * ACTIVATION_SCALE)
