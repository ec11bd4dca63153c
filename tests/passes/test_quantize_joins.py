"""quantize_joins: values that join at a branch or go round a loop are quantized before they join."""

from typing import Any

import torch
from torch import Tensor, nn

from jitquant import convert_jit, default_qconfig, prepare_jit
from tests.ir import (
    assert_change,
    assert_same_output,
    assert_unchanged,
    before_and_after,
    sample,
    scripted,
)

X = sample(1, 2, 4, 4)


class Convs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 2, 1)
        self.b = nn.Conv2d(2, 2, 1)


class Branches(Convs):
    """An int8 branch and a float one, read by an int8 op."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) if x.size(0) == 1 else torch.cumprod(x, 1)
        z: Tensor = self.b(y)
        return z


def test_each_branch_quantizes_what_it_returns() -> None:
    model = scripted(Branches())
    change = before_and_after("quantize_joins", model, X)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : int = aten::size(%x, 0)
              %3 : bool = aten::eq(%2, 1)
              %4 : Tensor = prim::If(%3)
                block0():
                  %5 : Tensor = aten::quantize_per_tensor(self.a.weight, 0.03125, 0, 12)
                  %6 : Tensor = aten::dequantize(%5)
                  %7 : Tensor = aten::conv2d(%1, %6, self.a.bias, [1, 1], [0, 0], [1, 1], 1)
                  %8 : Tensor = aten::quantize_per_tensor(%7, 0.0625, 128, 13)
                  %9 : Tensor = aten::dequantize(%8)
                  -> (%9)
                block1():
                  %10 : Tensor = aten::cumprod(%x, 1, None)
                  -> (%10)
              %11 : Tensor = aten::quantize_per_tensor(%4, 0.0625, 128, 13)
              %12 : Tensor = aten::dequantize(%11)
              %13 : Tensor = aten::quantize_per_tensor(self.b.weight, 0.03125, 0, 12)
              %14 : Tensor = aten::dequantize(%13)
              %15 : Tensor = aten::conv2d(%12, %14, self.b.bias, [1, 1], [0, 0], [1, 1], 1)
              %16 : Tensor = aten::quantize_per_tensor(%15, 0.0625, 128, 13)
              %17 : Tensor = aten::dequantize(%16)
              return (%17)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : int = aten::size(%x, 0)
              %3 : bool = aten::eq(%2, 1)
              %4 : Tensor = prim::If(%3)
                block0():
                  %5 : Tensor = aten::quantize_per_tensor(self.a.weight, 0.03125, 0, 12)
                  %6 : Tensor = aten::dequantize(%5)
                  %7 : Tensor = aten::conv2d(%1, %6, self.a.bias, [1, 1], [0, 0], [1, 1], 1)
                  %8 : Tensor = aten::quantize_per_tensor(%7, 0.0625, 128, 13)
                  %9 : Tensor = aten::dequantize(%8)
                  %10 : Tensor = aten::quantize_per_tensor(%9, 0.0625, 128, 13)
                  -> (%10)
                block1():
                  %11 : Tensor = aten::cumprod(%x, 1, None)
                  %12 : Tensor = aten::quantize_per_tensor(%11, 0.0625, 128, 13)
                  -> (%12)
              %13 : Tensor = aten::dequantize(%4)
              %14 : Tensor = aten::quantize_per_tensor(self.b.weight, 0.03125, 0, 12)
              %15 : Tensor = aten::dequantize(%14)
              %16 : Tensor = aten::conv2d(%13, %15, self.b.bias, [1, 1], [0, 0], [1, 1], 1)
              %17 : Tensor = aten::quantize_per_tensor(%16, 0.0625, 128, 13)
              %18 : Tensor = aten::dequantize(%17)
              return (%18)
        """,
    )
    for x in (X, torch.cat([X, X])):
        assert_same_output(change.model, model, x, atol=0.3)


class FloatReader(Convs):
    """The joined value is returned too, so that it stays float."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(x) if x.size(0) == 1 else torch.cumprod(x, 1)
        return self.b(y), y


def test_value_with_a_float_reader_joins_as_float() -> None:
    assert_unchanged(
        before_and_after("quantize_joins", scripted(FloatReader()), X),
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : int = aten::size(%x, 0)
              %3 : bool = aten::eq(%2, 1)
              %4 : Tensor = prim::If(%3)
                block0():
                  %5 : Tensor = aten::quantize_per_tensor(self.a.weight, 0.03125, 0, 12)
                  %6 : Tensor = aten::dequantize(%5)
                  %7 : Tensor = aten::conv2d(%1, %6, self.a.bias, [1, 1], [0, 0], [1, 1], 1)
                  %8 : Tensor = aten::quantize_per_tensor(%7, 0.0625, 128, 13)
                  %9 : Tensor = aten::dequantize(%8)
                  -> (%9)
                block1():
                  %10 : Tensor = aten::cumprod(%x, 1, None)
                  -> (%10)
              %11 : Tensor = aten::quantize_per_tensor(%4, 0.0625, 128, 13)
              %12 : Tensor = aten::dequantize(%11)
              %13 : Tensor = aten::quantize_per_tensor(self.b.weight, 0.03125, 0, 12)
              %14 : Tensor = aten::dequantize(%13)
              %15 : Tensor = aten::conv2d(%12, %14, self.b.bias, [1, 1], [0, 0], [1, 1], 1)
              %16 : Tensor = aten::quantize_per_tensor(%15, 0.0625, 128, 13)
              %17 : Tensor = aten::dequantize(%16)
              %18 : (Tensor, Tensor) = prim::TupleConstruct(%17, %4)
              return (%18)
        """,
    )


class NestedBranches(Convs):
    def forward(self, x: Tensor) -> Tensor:
        if x.size(0) == 1:  # noqa: SIM108
            y = self.a(x) if x.size(2) == 4 else self.b(x)
        else:
            y = torch.cumprod(x, 1)
        z: Tensor = self.b(y)
        return z


def test_value_joins_through_nested_branches() -> None:
    model = scripted(NestedBranches())
    change = before_and_after("quantize_joins", model, X)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : int = aten::size(%x, 0)
              %3 : bool = aten::eq(%2, 1)
              %4 : Tensor = prim::If(%3)
                block0():
                  %5 : int = aten::size(%x, 2)
                  %6 : bool = aten::eq(%5, 4)
                  %7 : Tensor = prim::If(%6)
                    block0():
                      %8 : Tensor = aten::quantize_per_tensor(self.a.weight, 0.03125, 0, 12)
                      %9 : Tensor = aten::dequantize(%8)
                      %10 : Tensor = aten::conv2d(%1, %9, self.a.bias, [1, 1], [0, 0], [1, 1], 1)
                      %11 : Tensor = aten::quantize_per_tensor(%10, 0.0625, 128, 13)
                      %12 : Tensor = aten::dequantize(%11)
                      -> (%12)
                    block1():
                      %13 : Tensor = aten::conv2d(%x, self.b.weight, self.b.bias, [1, 1], [0, 0], [1, 1], 1)
                      -> (%13)
                  -> (%7)
                block1():
                  %14 : Tensor = aten::cumprod(%x, 1, None)
                  -> (%14)
              %15 : Tensor = aten::quantize_per_tensor(%4, 0.0625, 128, 13)
              %16 : Tensor = aten::dequantize(%15)
              %17 : Tensor = aten::quantize_per_tensor(self.b.weight, 0.03125, 0, 12)
              %18 : Tensor = aten::dequantize(%17)
              %19 : Tensor = aten::conv2d(%16, %18, self.b.bias, [1, 1], [0, 0], [1, 1], 1)
              %20 : Tensor = aten::quantize_per_tensor(%19, 0.0625, 128, 13)
              %21 : Tensor = aten::dequantize(%20)
              return (%21)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : int = aten::size(%x, 0)
              %3 : bool = aten::eq(%2, 1)
              %4 : Tensor = prim::If(%3)
                block0():
                  %5 : int = aten::size(%x, 2)
                  %6 : bool = aten::eq(%5, 4)
                  %7 : Tensor = prim::If(%6)
                    block0():
                      %8 : Tensor = aten::quantize_per_tensor(self.a.weight, 0.03125, 0, 12)
                      %9 : Tensor = aten::dequantize(%8)
                      %10 : Tensor = aten::conv2d(%1, %9, self.a.bias, [1, 1], [0, 0], [1, 1], 1)
                      %11 : Tensor = aten::quantize_per_tensor(%10, 0.0625, 128, 13)
                      %12 : Tensor = aten::dequantize(%11)
                      %13 : Tensor = aten::quantize_per_tensor(%12, 0.0625, 128, 13)
                      -> (%13)
                    block1():
                      %14 : Tensor = aten::conv2d(%x, self.b.weight, self.b.bias, [1, 1], [0, 0], [1, 1], 1)
                      %15 : Tensor = aten::quantize_per_tensor(%14, 0.0625, 128, 13)
                      -> (%15)
                  -> (%7)
                block1():
                  %16 : Tensor = aten::cumprod(%x, 1, None)
                  %17 : Tensor = aten::quantize_per_tensor(%16, 0.0625, 128, 13)
                  -> (%17)
              %18 : Tensor = aten::dequantize(%4)
              %19 : Tensor = aten::quantize_per_tensor(self.b.weight, 0.03125, 0, 12)
              %20 : Tensor = aten::dequantize(%19)
              %21 : Tensor = aten::conv2d(%18, %20, self.b.bias, [1, 1], [0, 0], [1, 1], 1)
              %22 : Tensor = aten::quantize_per_tensor(%21, 0.0625, 128, 13)
              %23 : Tensor = aten::dequantize(%22)
              return (%23)
        """,
    )


class Loop(Convs):
    def forward(self, x: Tensor, count: int) -> Tensor:
        for _ in range(count):
            x = self.a(x)
        z: Tensor = self.b(x)
        return z


def test_value_that_goes_round_a_loop_is_quantized_outside() -> None:
    model = scripted(Loop())
    change = before_and_after("quantize_joins", model, X, 2)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor, %count : int):
              %0 : Tensor = prim::Loop(%count, True, %x)
                block0(%1 : int, %2 : Tensor):
                  %3 : Tensor = aten::quantize_per_tensor(%2, 0.0625, 128, 13)
                  %4 : Tensor = aten::dequantize(%3)
                  %5 : Tensor = aten::quantize_per_tensor(self.a.weight, 0.03125, 0, 12)
                  %6 : Tensor = aten::dequantize(%5)
                  %7 : Tensor = aten::conv2d(%4, %6, self.a.bias, [1, 1], [0, 0], [1, 1], 1)
                  %8 : Tensor = aten::quantize_per_tensor(%7, 0.0625, 128, 13)
                  %9 : Tensor = aten::dequantize(%8)
                  -> (True, %9)
              %10 : Tensor = aten::quantize_per_tensor(%0, 0.0625, 128, 13)
              %11 : Tensor = aten::dequantize(%10)
              %12 : Tensor = aten::quantize_per_tensor(self.b.weight, 0.03125, 0, 12)
              %13 : Tensor = aten::dequantize(%12)
              %14 : Tensor = aten::conv2d(%11, %13, self.b.bias, [1, 1], [0, 0], [1, 1], 1)
              %15 : Tensor = aten::quantize_per_tensor(%14, 0.0625, 128, 13)
              %16 : Tensor = aten::dequantize(%15)
              return (%16)
        """,
        after="""
            graph(self, %x : Tensor, %count : int):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = prim::Loop(%count, True, %0)
                block0(%2 : int, %3 : Tensor):
                  %4 : Tensor = aten::dequantize(%3)
                  %5 : Tensor = aten::quantize_per_tensor(self.a.weight, 0.03125, 0, 12)
                  %6 : Tensor = aten::dequantize(%5)
                  %7 : Tensor = aten::conv2d(%4, %6, self.a.bias, [1, 1], [0, 0], [1, 1], 1)
                  %8 : Tensor = aten::quantize_per_tensor(%7, 0.0625, 128, 13)
                  %9 : Tensor = aten::dequantize(%8)
                  %10 : Tensor = aten::quantize_per_tensor(%9, 0.0625, 128, 13)
                  -> (True, %10)
              %11 : Tensor = aten::dequantize(%1)
              %12 : Tensor = aten::quantize_per_tensor(%11, 0.0625, 128, 13)
              %13 : Tensor = aten::dequantize(%12)
              %14 : Tensor = aten::quantize_per_tensor(self.b.weight, 0.03125, 0, 12)
              %15 : Tensor = aten::dequantize(%14)
              %16 : Tensor = aten::conv2d(%13, %15, self.b.bias, [1, 1], [0, 0], [1, 1], 1)
              %17 : Tensor = aten::quantize_per_tensor(%16, 0.0625, 128, 13)
              %18 : Tensor = aten::dequantize(%17)
              return (%18)
        """,
    )


class FloatLoop(Convs):
    """What leaves the loop is no int8 op's, and was not seen at the body's input."""

    def forward(self, x: Tensor, count: int) -> Tensor:
        for _ in range(count):
            x = torch.cumprod(self.a(x), 1) * 3
            x = torch.cumprod(x, 1)
        return x


def test_value_whose_last_round_was_not_seen_stays_float() -> None:
    assert_unchanged(
        before_and_after("quantize_joins", scripted(FloatLoop()), X, 2),
        """
            graph(self, %x : Tensor, %count : int):
              %0 : Tensor = prim::Loop(%count, True, %x)
                block0(%1 : int, %2 : Tensor):
                  %3 : Tensor = aten::quantize_per_tensor(%2, 0.0625, 128, 13)
                  %4 : Tensor = aten::dequantize(%3)
                  %5 : Tensor = aten::quantize_per_tensor(self.a.weight, 0.03125, 0, 12)
                  %6 : Tensor = aten::dequantize(%5)
                  %7 : Tensor = aten::conv2d(%4, %6, self.a.bias, [1, 1], [0, 0], [1, 1], 1)
                  %8 : Tensor = aten::quantize_per_tensor(%7, 0.0625, 128, 13)
                  %9 : Tensor = aten::dequantize(%8)
                  %10 : Tensor = aten::cumprod(%9, 1, None)
                  %11 : Tensor = aten::mul(%10, 3)
                  %12 : Tensor = aten::cumprod(%11, 1, None)
                  -> (True, %12)
              return (%0)
        """,
    )


class Growing(Convs):
    """Each round doubles the range, so that the last value is the largest."""

    def forward(self, x: Tensor, count: int) -> Tensor:
        for _ in range(count):
            x = self.a(x)
        return x


def test_loop_has_the_range_of_all_rounds() -> None:
    module = Growing()
    nn.init.constant_(module.a.weight, 1.0)
    assert module.a.bias is not None
    nn.init.zeros_(module.a.bias)
    model: Any = torch.jit.script(module.eval())
    prepared = prepare_jit(model, {"": default_qconfig})
    prepared(X, 4)
    converted = convert_jit(prepared)
    with torch.no_grad():
        expected = model(X, 4)
        noise = (converted(X, 4) - expected).norm()
    # Each round doubles the error of the one before, and the first has half a step of the last range.
    # With the range that the body's input saw, the last round would be clipped to half of it.
    assert noise < expected.norm() / 16
