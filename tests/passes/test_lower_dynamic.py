"""lower_dynamic: a dynamic layer, with its relu, becomes one op that quantizes what it reads."""

import pytest
import torch
from torch import Tensor, nn

from jitquant import QConfig, default_dynamic_qconfig, float16_dynamic_qconfig
from jitquant.observers import PlaceholderObserver
from tests.ir import (
    FIXED,
    Change,
    assert_text,
    assert_unchanged,
    before_and_after,
    reasons,
    sample,
    scripted,
)

INT8 = QConfig(default_dynamic_qconfig.activation, FIXED.weight)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y


class Relu(Layer):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x).relu()
        return y


class ReluOfTwo(Layer):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        z: Tensor = y.relu() + y
        return z


class Relu6(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu6(self.linear(x))


def change(module: nn.Module, qconfig: QConfig = INT8, pass_name: str = "verify_dynamic") -> Change:
    """verify_dynamic takes away the float ops that lower_dynamic leaves."""
    return before_and_after(
        pass_name,
        scripted(module),
        qconfig_dict={"": qconfig},
        function="prepare_dynamic_jit",
    )


PACKED = """
          %0 : Tensor = aten::quantize_per_tensor(self.linear.weight, 0.03125, 0, 12)
          %1 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack(%0, self.linear.bias)"""


@pytest.mark.parametrize(
    ("module", "rest"),
    [
        (
            Layer(),
            """
          %2 : Tensor = quantized::linear_dynamic(%x, %1, False)
          return (%2)""",
        ),
        (
            Relu(),
            """
          %2 : Tensor = quantized::linear_relu_dynamic(%x, %1, False)
          return (%2)""",
        ),
        (
            ReluOfTwo(),
            """
          %2 : Tensor = quantized::linear_dynamic(%x, %1, False)
          %3 : Tensor = aten::relu(%2)
          %4 : Tensor = aten::add(%3, %2, 1)
          return (%4)""",
        ),
        (
            Relu6(),
            """
          %2 : Tensor = quantized::linear_dynamic(%x, %1, False)
          %3 : Tensor = aten::relu6(%2)
          return (%3)""",
        ),
    ],
)
def test_int8(module: nn.Module, rest: str) -> None:
    assert_text(change(module).after, f"\n        graph(self, %x : Tensor):{PACKED}{rest}\n")


def test_float16() -> None:
    assert_text(
        change(Relu(), float16_dynamic_qconfig).after,
        """
            graph(self, %x : Tensor):
              %0 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack_fp16(self.linear.weight, self.linear.bias)
              %1 : Tensor = quantized::linear_relu_dynamic_fp16(%x, %0)
              return (%1)
        """,
    )


def test_reduce_range_reaches_the_op() -> None:
    activation = PlaceholderObserver.with_args(
        dtype=default_dynamic_qconfig.activation().dtype, is_dynamic=True, reduce_range=True
    )
    text = change(Layer(), QConfig(activation, FIXED.weight)).after
    assert "quantized::linear_dynamic(%x, %1, True)" in text


def test_a_relu_that_is_left_float_stays() -> None:
    left = before_and_after(
        "verify_dynamic",
        scripted(Relu()),
        qconfig_dict={"": INT8, "object_type": [("aten::relu", None)]},
        function="prepare_dynamic_jit",
    )
    assert "aten::relu(" in left.after and "linear_relu" not in left.after
    assert reasons(left.model) == [
        ("aten::linear", "quantized::linear_dynamic"),
        ("aten::relu", "its qconfig is None"),
    ]


def test_a_static_layer_behind_reads_the_relu() -> None:
    """The relu is the dynamic layer's: the value behind it is observed and quantized."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = Relu()
            self.second = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.first(x)
            return self.second(y), y

    mixed = before_and_after(
        "verify_dynamic",
        scripted(Two()),
        sample(3, 4),
        qconfig_dict={"": FIXED, "first.linear": INT8},
    )
    assert "%2 : Tensor = quantized::linear_relu_dynamic(%x, %1, False)" in mixed.after
    assert "aten::quantize_per_tensor(%2, 0.0625, 128, 13)" in mixed.after
    # What the caller gets is not rounded.
    assert "prim::TupleConstruct(%7, %2)" in mixed.after


def test_static_layers_are_left() -> None:
    static = before_and_after("lower_dynamic", scripted(Layer()), sample(3, 4))
    assert_unchanged(static, static.before)
    assert "quantized::linear(" in static.before


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(6, 4))
        self.u = nn.Parameter(torch.empty(6, 2))
        self.b = nn.Parameter(torch.empty(6))
        self.d = nn.Parameter(torch.empty(6))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        weights: list[Tensor] = [self.w, self.u, self.b, self.d]
        return torch.gru(x, h, weights, True, 1, 0.0, False, False, False)[0]


class Lstm(Gru):
    """Without biases, of packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(8, 4))
        self.u = nn.Parameter(torch.empty(8, 2))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        sizes = torch.tensor([2, 1])
        weights: list[Tensor] = [self.w, self.u]
        return torch.lstm(x, sizes, [h, h], weights, False, 1, 0.0, False, False)[0]


def test_gru() -> None:
    assert_text(
        change(Gru()).after,
        """
            graph(self, %x : Tensor, %h : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(self.w, 0.03125, 0, 12)
              %1 : Tensor = aten::quantize_per_tensor(self.u, 0.03125, 0, 12)
              %2 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack(%0, self.b)
              %3 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack(%1, self.d)
              %4 : __torch__.torch.classes.rnn.CellParamsBase = quantized::make_quantized_cell_params_dynamic(%2, %3, self.b, self.d, False)
              %5 : __torch__.torch.classes.rnn.CellParamsBase[] = prim::ListConstruct(%4)
              %6 : Tensor, %7 : Tensor = aten::quantized_gru(%x, %h, %5, True, 1, 0.0, False, False, False)
              return (%6)
        """,
    )


def test_lstm() -> None:
    assert_text(
        change(Lstm()).after,
        """
            graph(self, %x : Tensor, %h : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(self.w, 0.03125, 0, 12)
              %1 : Tensor = aten::quantize_per_tensor(self.u, 0.03125, 0, 12)
              %2 : Tensor[] = prim::ListConstruct(%h, %h)
              %3 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack(%0, tensor(0 0 0 0 0 0 0 0 [ CPUFloatType{8} ]))
              %4 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack(%1, tensor(0 0 0 0 0 0 0 0 [ CPUFloatType{8} ]))
              %5 : __torch__.torch.classes.rnn.CellParamsBase = quantized::make_quantized_cell_params_dynamic(%3, %4, tensor(0 0 0 0 0 0 0 0 [ CPUFloatType{8} ]), tensor(0 0 0 0 0 0 0 0 [ CPUFloatType{8} ]), False)
              %6 : __torch__.torch.classes.rnn.CellParamsBase[] = prim::ListConstruct(%5)
              %7 : Tensor, %8 : Tensor, %9 : Tensor = aten::quantized_lstm(%x, tensor(2 1 [ CPULongType{2} ]), %2, %6, True, 1, 0.0, False, False, 12, True)
              return (%7)
        """,
    )


def test_gru_of_float16() -> None:
    assert_text(
        change(Gru(), float16_dynamic_qconfig).after,
        """
            graph(self, %x : Tensor, %h : Tensor):
              %0 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack_fp16(self.w, self.b)
              %1 : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack_fp16(self.u, self.d)
              %2 : __torch__.torch.classes.rnn.CellParamsBase = quantized::make_quantized_cell_params_fp16(%0, %1)
              %3 : __torch__.torch.classes.rnn.CellParamsBase[] = prim::ListConstruct(%2)
              %4 : Tensor, %5 : Tensor = aten::quantized_gru(%x, %h, %3, True, 1, 0.0, False, False, False)
              return (%4)
        """,
    )
