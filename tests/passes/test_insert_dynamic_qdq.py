"""insert_dynamic_qdq: what a dynamic layer does to its values, in float."""

import pytest
import torch
from torch import Tensor, nn

from jitquant import (
    QConfig,
    default_dynamic_qconfig,
    float16_dynamic_qconfig,
    per_channel_dynamic_qconfig,
)
from tests.ir import (
    FIXED,
    Change,
    assert_change,
    assert_text,
    assert_unchanged,
    before_and_after,
    sample,
    scripted,
)

X = sample(3, 4)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y


BEFORE = """
    graph(self, %x : Tensor):
      %0 : Tensor = aten::linear(%x, self.linear.weight, self.linear.bias)
      return (%0)
"""


def change(qconfig: QConfig) -> Change:
    return before_and_after(
        "insert_dynamic_qdq",
        scripted(Layer()),
        qconfig_dict={"": qconfig},
        function="prepare_dynamic_jit",
    )


INT8 = QConfig(default_dynamic_qconfig.activation, FIXED.weight)


def test_int8() -> None:
    """Nothing was calibrated: the activation's scale is computed when it runs."""
    assert_change(
        change(INT8),
        BEFORE,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor_dynamic(%x, 13, False)
              %1 : Tensor = aten::dequantize(%0)
              %2 : Tensor = aten::quantize_per_tensor(self.linear.weight, 0.03125, 0, 12)
              %3 : Tensor = aten::dequantize(%2)
              %4 : Tensor = aten::linear(%1, %3, self.linear.bias)
              return (%4)
        """,
    )


def test_per_channel_weights() -> None:
    text = change(per_channel_dynamic_qconfig).after
    assert "aten::quantize_per_channel(self.linear.weight, tensor(" in text


def test_float16() -> None:
    assert_change(
        change(float16_dynamic_qconfig),
        BEFORE,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::to(self.linear.weight, 5, False, False, None)
              %1 : Tensor = aten::to(%0, 6, False, False, None)
              %2 : Tensor = aten::linear(%x, %1, self.linear.bias)
              return (%2)
        """,
    )


def test_static_layers_are_left() -> None:
    static = before_and_after("insert_dynamic_qdq", scripted(Layer()), X)
    assert_unchanged(static, static.before)
    assert "quantize_per_tensor(%x" in static.before


def test_recorders_of_shapes_alone_are_inserted() -> None:
    prepared = before_and_after(
        "insert_observers",
        scripted(Layer()),
        qconfig_dict={"": INT8},
        function="prepare_dynamic_jit",
    )
    assert_text(
        prepared.after,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_0, %x)
              %1 : Tensor = aten::linear(%0, self.linear.weight, self.linear.bias)
              return (%1)
        """,
    )
    assert prepared.model.jitquant_observer_0.dtype == 6
    assert prepared.model.jitquant_observer_dynamic_0.is_dynamic


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(6, 4))
        self.u = nn.Parameter(torch.empty(6, 2))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        weights: list[Tensor] = [self.w, self.u]
        return torch.gru(x, h, weights, False, 1, 0.0, False, False, False)[0]


GRU = """
    graph(self, %x : Tensor, %h : Tensor):
      %0 : Tensor[] = prim::ListConstruct(self.w, self.u)
      %1 : Tensor, %2 : Tensor = aten::gru(%x, %h, %0, False, 1, 0.0, False, False, False)
      return (%1)
"""


@pytest.mark.parametrize(
    ("qconfig", "after"),
    [
        pytest.param(
            INT8,
            """
                graph(self, %x : Tensor, %h : Tensor):
                  %0 : Tensor = aten::quantize_per_tensor(self.w, 0.03125, 0, 12)
                  %1 : Tensor = aten::dequantize(%0)
                  %2 : Tensor = aten::quantize_per_tensor(self.u, 0.03125, 0, 12)
                  %3 : Tensor = aten::dequantize(%2)
                  %4 : Tensor[] = prim::ListConstruct(%1, %3)
                  %5 : Tensor = aten::quantize_per_tensor_dynamic(%x, 13, False)
                  %6 : Tensor = aten::dequantize(%5)
                  %7 : Tensor, %8 : Tensor = aten::gru(%6, %h, %4, False, 1, 0.0, False, False, False)
                  return (%7)
            """,
            id="int8",
        ),
        pytest.param(
            float16_dynamic_qconfig,
            """
                graph(self, %x : Tensor, %h : Tensor):
                  %0 : Tensor = aten::to(self.w, 5, False, False, None)
                  %1 : Tensor = aten::to(%0, 6, False, False, None)
                  %2 : Tensor = aten::to(self.u, 5, False, False, None)
                  %3 : Tensor = aten::to(%2, 6, False, False, None)
                  %4 : Tensor[] = prim::ListConstruct(%1, %3)
                  %5 : Tensor, %6 : Tensor = aten::gru(%x, %h, %4, False, 1, 0.0, False, False, False)
                  return (%5)
            """,
            id="float16",
        ),
    ],
)
def test_weights_in_a_list(qconfig: QConfig, after: str) -> None:
    """The op reads hidden states as they are: it rounds them itself."""
    result = before_and_after(
        "insert_dynamic_qdq",
        scripted(Gru()),
        qconfig_dict={"": qconfig},
        function="prepare_dynamic_jit",
    )
    assert_change(result, GRU, after)
