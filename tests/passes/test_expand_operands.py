"""expand_operands: an int8 sum or product gets a broadcast operand in the size of the other one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jitquant import convert_jit, default_qconfig, prepare_jit
from tests.ir import assert_change, before_and_after, sample, scripted
from tests.models import graph_text

X = sample(1, 2, 36, 36)


class Gate(nn.Module):
    """A product with a factor for each channel."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return y * torch.mean(y, [2, 3], keepdim=True)


class Shifted(Gate):
    """A sum with an operand that comes first and is the smaller one."""

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return torch.mean(y, [2, 3], keepdim=True) + y


class OneForAllChannels(Gate):
    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return y * y[:, :1]


class OneForAll(Gate):
    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return y * y[:, :1, :1, :1]


class SameSize(Gate):
    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return y * torch.relu(y)


class LargerTogether(Gate):
    """Neither operand is as large as the result."""

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return y * y[:, :1, :3, :1].transpose(0, 2)  # a factor for each of three images


class WithoutBatch(Gate):
    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return y * torch.mean(y, [2, 3])[0].reshape(-1, 1, 1)


class NoConvolution(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x * torch.mean(x, [2, 3], keepdim=True)


def test_a_factor_for_each_channel_becomes_as_large_as_the_image() -> None:
    change = before_and_after("expand_operands", scripted(Gate()), X)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::quantize_per_tensor(self.conv.weight, 0.03125, 0, 12)
              %2 : __torch__.torch.classes.quantized.Conv2dPackedParamsBase = quantized::conv2d_prepack(%1, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %3 : Tensor = quantized::conv2d(%0, %2, 0.0625, 128)
              %4 : Tensor = aten::mean(%3, [2, 3], True, None)
              %5 : Tensor = quantized::mul(%3, %4, 0.0625, 128)
              %6 : Tensor = aten::dequantize(%5)
              %7 : Tensor = aten::contiguous(%6, 0)
              return (%7)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::quantize_per_tensor(self.conv.weight, 0.03125, 0, 12)
              %2 : __torch__.torch.classes.quantized.Conv2dPackedParamsBase = quantized::conv2d_prepack(%1, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %3 : Tensor = quantized::conv2d(%0, %2, 0.0625, 128)
              %4 : Tensor = aten::mean(%3, [2, 3], True, None)
              %5 : Tensor = aten::expand_as(%4, %3)
              %6 : Tensor = aten::contiguous(%5, 2)
              %7 : Tensor = quantized::mul(%3, %6, 0.0625, 128)
              %8 : Tensor = aten::dequantize(%7)
              %9 : Tensor = aten::contiguous(%8, 0)
              return (%9)
        """,
    )


def expansions(model: nn.Module, x: Tensor) -> int:
    return graph_text(converted(model, x)).count("aten::expand_as(")


def converted(model: nn.Module, x: Tensor, debug: Any = False) -> torch.jit.ScriptModule:
    prepared: Any = prepare_jit(scripted(model), {"": default_qconfig})
    prepared(x)
    return convert_jit(prepared, debug=debug)


@pytest.mark.parametrize("model", [Gate(), Shifted(), OneForAllChannels()])
def test_values_are_those_of_the_kernel_that_broadcasts(model: nn.Module) -> None:
    assert expansions(model, X) == 1
    exact: Any = converted(model, X, "exact")
    for x in (X, sample(3, 2, 36, 36), sample(1, 2, 5, 7)):
        int8: Any = converted(model, X)
        assert torch.equal(int8(x), exact(x))


@pytest.mark.parametrize(
    "model",
    [SameSize(), OneForAll(), LargerTogether(), WithoutBatch(), NoConvolution(), Gate(64)],
    ids=lambda model: type(model).__name__,
)
def test_what_the_kernel_takes_in_whole_vectors_stays(model: nn.Module) -> None:
    assert graph_text(converted(model, X)).count("quantized::mul(") == 1
    assert expansions(model, X) == 0


@pytest.mark.parametrize(("height", "count"), [(34, 0), (35, 1)])
def test_small_images_stay(height: int, count: int) -> None:
    """2,500 values that the kernel takes one by one are the fewest that pay."""
    assert expansions(Gate(), sample(1, 2, height, 36)) == count
