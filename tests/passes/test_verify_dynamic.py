"""verify_dynamic: dynamic ops that are wrong become float ops again."""

import pytest
import torch
from torch import Tensor, nn

from jitquant import (
    QConfig,
    convert_dynamic_jit,
    default_dynamic_qconfig,
    float16_dynamic_qconfig,
    prepare_dynamic_jit,
)
from tests.ir import assert_same_output, reasons, sample, scripted


class Relu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x).relu()
        return y


VECTOR = sample(4)


@pytest.mark.parametrize("qconfig", [default_dynamic_qconfig, float16_dynamic_qconfig])
def test_vectors_are_float_again(qconfig: QConfig) -> None:
    """Stock kernels refuse them. That there are vectors is known from a run of the model."""
    model = scripted(Relu())
    prepared = prepare_dynamic_jit(model, {"": qconfig})
    prepared(VECTOR)
    converted = convert_dynamic_jit(prepared)
    (linear, how), relu = reasons(converted)
    assert (linear, how.partition(":")[0]) == ("aten::linear", "its dynamic form raises")
    assert relu == ("aten::relu", "the op that would absorb it stays float")
    assert_same_output(converted, model, VECTOR, atol=0)
    assert "quantize" not in str(converted.graph) and "aten::to(" not in str(converted.graph)


def test_vectors_and_matrices() -> None:
    model = scripted(Relu())
    prepared = prepare_dynamic_jit(model, {"": default_dynamic_qconfig})
    prepared(sample(3, 4))
    prepared(VECTOR)
    assert_same_output(convert_dynamic_jit(prepared), model, VECTOR, atol=0)


def test_right_ops_stay() -> None:
    prepared = prepare_dynamic_jit(scripted(Relu()), {"": default_dynamic_qconfig})
    for shape in ((3, 4), (2, 3, 4), (0, 4)):
        prepared(torch.zeros(shape))
    assert reasons(convert_dynamic_jit(prepared)) == [
        ("aten::linear", "quantized::linear_relu_dynamic"),
        ("aten::relu", "absorbed by aten::linear"),
    ]


def test_another_result_is_found() -> None:
    """Of products beyond float32, the float layer makes infinities, of either sign."""
    model = scripted(Relu())
    model.linear.weight.data.copy_(torch.tensor([[3e38, -3e38, 3e38, 3e38]] * 2))
    prepared = prepare_dynamic_jit(model, {"": default_dynamic_qconfig})
    assert reasons(convert_dynamic_jit(prepared))[0][1] == "its dynamic form is wrong"


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.lstm(x)
        return y, h, c


@pytest.mark.parametrize("shape", [None, (0, 2, 4), (3, 0, 4), (100, 2, 4)])
def test_right_lstms_stay(shape: tuple[int, ...] | None) -> None:
    prepared = prepare_dynamic_jit(scripted(Lstm()), {"": default_dynamic_qconfig})
    if shape and 0 not in shape:
        prepared(torch.zeros(shape))
    assert ("aten::lstm", "aten::quantized_lstm") in reasons(convert_dynamic_jit(prepared))


def test_lstms_that_rounding_spoils_are_float_again() -> None:
    """With weights this large, which cancel, a step of the hidden state turns gates over."""
    model = scripted(Lstm())
    signs = torch.tensor([1.0, -1.0]).repeat(3)
    model.lstm.weight_hh_l0.data.copy_(signs * 3000)
    prepared = prepare_dynamic_jit(model, {"": default_dynamic_qconfig})
    converted = convert_dynamic_jit(prepared)
    found = dict(reasons(converted))
    assert found["aten::lstm"] == "its dynamic form is off by more than a tenth"
    assert_same_output(converted, model, sample(3, 2, 4), atol=0)
    assert "quantize" not in str(converted.graph)
