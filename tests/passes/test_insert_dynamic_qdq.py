"""insert_dynamic_qdq: what a dynamic layer does to its values, in float."""

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
