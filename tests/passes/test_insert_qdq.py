"""insert_qdq: each value of the plan is quantized and dequantized with constant qparams."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from jitquant import JitQuantError, convert_jit, default_qconfig, prepare_jit
from tests.ir import (
    FIXED,
    assert_change,
    assert_same_output,
    assert_text,
    assert_unchanged,
    before_and_after,
    sample,
    scripted,
)


class LinearRelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x).relu()
        return result


def test_no_pair_between_an_op_and_the_activation_it_absorbs() -> None:
    model = scripted(LinearRelu())
    change = before_and_after("insert_qdq", model, sample(1, 2))
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::linear(%x, self.linear.weight, self.linear.bias)
              %1 : Tensor = aten::relu(%0)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : Tensor = aten::quantize_per_tensor(self.linear.weight, 0.03125, 0, 12)
              %3 : Tensor = aten::dequantize(%2)
              %4 : Tensor = aten::linear(%1, %3, self.linear.bias)
              %5 : Tensor = aten::relu(%4)
              %6 : Tensor = aten::quantize_per_tensor(%5, 0.0625, 128, 13)
              %7 : Tensor = aten::dequantize(%6)
              return (%7)
        """,
    )


def test_float_ops_get_no_pair() -> None:
    class Floats(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.neg().exp()

    change = before_and_after("insert_qdq", scripted(Floats()), sample(1, 2))
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::neg(%x)
              %1 : Tensor = aten::exp(%0)
              return (%1)
        """,
    )


class FloatReader(LinearRelu):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y + x.exp()


def test_float_reader_of_a_float_value_reads_it_unrounded() -> None:
    model = scripted(FloatReader())
    change = before_and_after("insert_qdq", model, sample(1, 2), qconfig_dict={"linear": FIXED})
    assert_text(
        change.after,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : Tensor = aten::quantize_per_tensor(self.linear.weight, 0.03125, 0, 12)
              %3 : Tensor = aten::dequantize(%2)
              %4 : Tensor = aten::linear(%1, %3, self.linear.bias)
              %5 : Tensor = aten::quantize_per_tensor(%4, 0.0625, 128, 13)
              %6 : Tensor = aten::dequantize(%5)
              %7 : Tensor = aten::exp(%x)
              %8 : Tensor = aten::add(%6, %7, 1)
              return (%8)
        """,
    )


class Known(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.hardsigmoid(x).mul(-2.0)


def test_op_of_known_range_has_its_own_qparams() -> None:
    """1/256 and 0 for hardsigmoid, mirrored by the negative factor only once it is int8."""
    change = before_and_after("insert_qdq", scripted(Known()), sample(1, 2))
    assert_text(
        change.after,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : Tensor = aten::hardsigmoid(%1)
              %3 : Tensor = aten::quantize_per_tensor(%2, 0.00390625, 0, 13)
              %4 : Tensor = aten::dequantize(%3)
              %5 : Tensor = aten::mul(%4, -2.0)
              return (%5)
        """,
    )


def test_debug_model_emulates_int8() -> None:
    """The debug model is what the graph after insert_qdq computes; weights keep their names."""
    model = scripted(LinearRelu())
    change = before_and_after("insert_qdq", model, sample(1, 2), debug=True)
    x, linear = sample(5, 2), model.linear

    def emulated(x: Tensor) -> Tensor:
        rounded = torch.fake_quantize_per_tensor_affine(x, 1 / 16, 128, 0, 255)
        weight = torch.fake_quantize_per_tensor_affine(linear.weight, 1 / 32, 0, -128, 127)
        y = nn.functional.linear(rounded, weight, linear.bias).relu()
        return torch.fake_quantize_per_tensor_affine(y, 1 / 16, 128, 0, 255)

    assert_same_output(change.model, emulated, x, atol=1e-6)
    assert torch.equal(change.model.linear.weight, linear.weight)


def test_weight_that_is_not_finite_is_refused() -> None:
    model = scripted(LinearRelu())
    prepared = prepare_jit(model, {"": default_qconfig})
    prepared(sample(1, 2))
    prepared.linear.weight.data[0, 0] = float("nan")
    message = (
        r"^the weight of aten::linear in 'linear' \(test_insert_qdq\.py:\d+\) holds NaN or infinite "
        r"values\. Mend the float model, or set the qconfig of that module to None\.$"
    )
    with pytest.raises(JitQuantError, match=message):
        convert_jit(prepared)
