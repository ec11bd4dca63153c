"""propagate_dequantize: dequantize moves down past ops that only move values or read shapes."""

from torch import Tensor, nn
from torch.nn import functional

from tests.ir import (
    assert_change,
    assert_same_output,
    assert_text,
    assert_unchanged,
    before_and_after,
    sample,
    scripted,
)

X = sample(1, 2, 4, 4)


class Pools(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.max_pool2d(self.conv(x), 2)
        return y.view(y.size(0), -1)


def test_dequantize_moves_past_pool_view_and_size() -> None:
    model = scripted(Pools())
    change = before_and_after("propagate_dequantize", model, X)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : Tensor = aten::quantize_per_tensor(self.conv.weight, 0.03125, 0, 12)
              %3 : Tensor = aten::dequantize(%2)
              %4 : Tensor = aten::conv2d(%1, %3, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %5 : Tensor = aten::quantize_per_tensor(%4, 0.0625, 128, 13)
              %6 : Tensor = aten::dequantize(%5)
              %7 : Tensor = aten::max_pool2d(%6, [2, 2], annotate(List[int], []), [0, 0], [1, 1], False)
              %8 : int = aten::size(%7, 0)
              %9 : int[] = prim::ListConstruct(%8, -1)
              %10 : Tensor = aten::view(%7, %9)
              return (%10)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : Tensor = aten::quantize_per_tensor(self.conv.weight, 0.03125, 0, 12)
              %3 : Tensor = aten::dequantize(%2)
              %4 : Tensor = aten::conv2d(%1, %3, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %5 : Tensor = aten::quantize_per_tensor(%4, 0.0625, 128, 13)
              %6 : Tensor = aten::dequantize(%5)
              %7 : Tensor = aten::max_pool2d(%5, [2, 2], annotate(List[int], []), [0, 0], [1, 1], False)
              %8 : Tensor = aten::max_pool2d(%6, [2, 2], annotate(List[int], []), [0, 0], [1, 1], False)
              %9 : Tensor = aten::dequantize(%7)
              %10 : int = aten::size(%7, 0)
              %11 : int[] = prim::ListConstruct(%10, -1)
              %12 : Tensor = aten::reshape(%7, %11)
              %13 : Tensor = aten::view(%9, %11)
              %14 : Tensor = aten::dequantize(%12)
              return (%14)
        """,
    )
    assert_same_output(change.model, model, X, atol=0.15)


class Mirrors(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.hardsigmoid(x).mul(-2.0)


def test_constant_factor_moves_into_the_qparams() -> None:
    model = scripted(Mirrors())
    change = before_and_after("propagate_dequantize", model, X)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : Tensor = aten::hardsigmoid(%1)
              %3 : Tensor = aten::quantize_per_tensor(%2, 0.00390625, 0, 13)
              %4 : Tensor = aten::dequantize(%3)
              %5 : Tensor = aten::mul(%4, -2.0)
              return (%5)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : Tensor = aten::hardsigmoid(%1)
              %3 : Tensor = aten::quantize_per_tensor(%2, 0.00390625, 0, 13)
              %4 : Tensor = aten::dequantize(%3)
              %5 : Tensor = quantized::mul_scalar(%3, -2.0)
              %6 : Tensor = aten::mul(%4, -2.0)
              %7 : Tensor = aten::dequantize(%5)
              return (%7)
        """,
    )
    assert_same_output(change.model, model, X, atol=2 * (1 / 256 + 1 / 64))


class FloatOp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y.exp()


def test_dequantize_stays_before_a_float_op() -> None:
    change = before_and_after("propagate_dequantize", scripted(FloatOp()), X)
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : Tensor = aten::quantize_per_tensor(self.conv.weight, 0.03125, 0, 12)
              %3 : Tensor = aten::dequantize(%2)
              %4 : Tensor = aten::conv2d(%1, %3, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %5 : Tensor = aten::quantize_per_tensor(%4, 0.0625, 128, 13)
              %6 : Tensor = aten::dequantize(%5)
              %7 : Tensor = aten::exp(%6)
              return (%7)
        """,
    )


class Halves(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = (x + 0.5).chunk(2, 1)
        return parts[0], parts[1]


def test_dequantize_moves_past_a_list_and_what_reads_it() -> None:
    model = scripted(Halves())
    change = before_and_after("propagate_dequantize", model, X)
    assert_text(
        change.after,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : Tensor = aten::add(%1, 0.5, 1)
              %3 : Tensor = aten::quantize_per_tensor(%2, 0.0625, 128, 13)
              %4 : Tensor = aten::dequantize(%3)
              %5 : Tensor[] = aten::chunk(%3, 2, 1)
              %6 : Tensor[] = aten::chunk(%4, 2, 1)
              %7 : Tensor = aten::__getitem__(%5, 0)
              %8 : Tensor = aten::__getitem__(%6, 0)
              %9 : Tensor = aten::dequantize(%7)
              %10 : Tensor = aten::__getitem__(%5, 1)
              %11 : Tensor = aten::__getitem__(%6, 1)
              %12 : Tensor = aten::dequantize(%10)
              %13 : (Tensor, Tensor) = prim::TupleConstruct(%9, %12)
              return (%13)
        """,
    )
    assert_same_output(change.model, model, X, atol=1 / 16)
