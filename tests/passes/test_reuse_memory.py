"""reuse_memory: a float op that alone reads what was dequantized for it writes its result there."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from jitquant import convert_jit, prepare_jit
from tests.ir import FIXED, assert_change, before_and_after, sample, scripted

X = sample(2, 2)


class Silu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Any:
        return self.b(functional.silu(self.a(x)))


def test_silu_between_two_int8_ops_writes_what_was_dequantized() -> None:
    change = before_and_after("reuse_memory", scripted(Silu()), X)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::quantize_per_tensor(self.a.weight, 0.03125, 0, 12)
              %2 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack(%1, self.a.bias)
              %3 : Tensor = quantized::linear(%0, %2, 0.0625, 128)
              %4 : Tensor = aten::dequantize(%3)
              %5 : Tensor = aten::silu(%4)
              %6 : Tensor = aten::quantize_per_tensor(%5, 0.0625, 128, 13)
              %7 : Tensor = aten::quantize_per_tensor(self.b.weight, 0.03125, 0, 12)
              %8 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack(%7, self.b.bias)
              %9 : Tensor = quantized::linear(%6, %8, 0.0625, 128)
              %10 : Tensor = aten::dequantize(%9)
              return (%10)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::quantize_per_tensor(self.a.weight, 0.03125, 0, 12)
              %2 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack(%1, self.a.bias)
              %3 : Tensor = quantized::linear(%0, %2, 0.0625, 128)
              %4 : Tensor = aten::dequantize(%3)
              %5 : Tensor = aten::silu_(%4)
              %6 : Tensor = aten::quantize_per_tensor(%5, 0.0625, 128, 13)
              %7 : Tensor = aten::quantize_per_tensor(self.b.weight, 0.03125, 0, 12)
              %8 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack(%7, self.b.bias)
              %9 : Tensor = quantized::linear(%6, %8, 0.0625, 128)
              %10 : Tensor = aten::dequantize(%9)
              return (%10)
        """,
    )


class OtherReader(Silu):
    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        return functional.silu(y), torch.exp(y)


class InLoop(Silu):
    """The op runs three times on what was dequantized once."""

    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        total = torch.zeros_like(x)
        for _ in range(x.size(0)):
            total = total + functional.silu(y).exp()
        return total


class OfTheUser(nn.Module):
    """The dequantize of a float tensor is that tensor."""

    def forward(self, x: Tensor) -> Any:
        return functional.silu(x.dequantize())


@pytest.mark.parametrize("net", [OtherReader, InLoop, OfTheUser])
def test_what_others_may_read_is_not_written(net: type[nn.Module]) -> None:
    change = before_and_after("reuse_memory", scripted(net()), X)
    assert change.after == change.before
    assert "aten::silu(" in change.after


FUNCTIONS: dict[str, Any] = {
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
    "gelu": functional.gelu,
    "mish": functional.mish,
    "elu": functional.elu,
}


class Applied(Silu):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        return self.b(FUNCTIONS[self.name](y))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bits_are_the_same_on_every_call(name: str) -> None:
    """As those of the debug model of the same arithmetic, which writes nothing in place."""
    model: Any = torch.jit.trace(Applied(name).eval(), X)
    prepared = prepare_jit(model, {"": FIXED})
    prepared(X)
    int8, exact = convert_jit(prepared), convert_jit(prepared, debug="exact")
    expected = exact(X)
    for _ in range(3):
        assert torch.equal(int8(X), expected)
