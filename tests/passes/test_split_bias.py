"""split_bias: a bias that is computed at run time is added behind the layer."""

from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from jitquant import convert_jit, coverage, default_qconfig, prepare_jit
from tests.ir import (
    assert_change,
    assert_same_output,
    assert_unchanged,
    before_and_after,
    sample,
    scripted,
    traced,
)
from tests.test_ops import Mode, sqnr


class Layer(nn.Module):
    """A weight that fits; forward differs by subclass."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(shape))
        self.b = nn.Parameter(torch.zeros(shape[0]))


class Linear(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.w, x.mean(0)[:3])


def test_linear() -> None:
    model = scripted(Linear(3, 4))
    change = before_and_after("split_bias", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::mean(%x, [0], False, None)
              %1 : Tensor = aten::slice(%0, 0, None, 3, 1)
              %2 : Tensor = aten::linear(%x, self.w, %1)
              return (%2)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::mean(%x, [0], False, None)
              %1 : Tensor = aten::slice(%0, 0, None, 3, 1)
              %2 : Tensor = aten::linear(%x, self.w, None)
              %3 : Tensor = aten::add(%2, %1, 1)
              return (%3)
        """,
    )
    assert_same_output(change.model, model, sample(5, 4))


class Conv(Layer):
    def forward(self, x: Tensor, b: Tensor) -> Tensor:
        return torch.relu(functional.conv2d(x, self.w, b))


def test_convolution() -> None:
    model = scripted(Conv(3, 2, 1, 1))
    change = before_and_after("split_bias", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor, %b : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.w, %b, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::relu(%0)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor, %b : Tensor):
              %0 : Tensor = aten::view(%b, [-1, 1, 1])
              %1 : Tensor = aten::conv2d(%x, self.w, None, [1, 1], [0, 0], [1, 1], 1)
              %2 : Tensor = aten::add(%1, %0, 1)
              %3 : Tensor = aten::relu(%2)
              return (%3)
        """,
    )
    for shape in ((2, 2, 4, 4), (2, 4, 4)):  # images in a batch, and one image
        assert_same_output(change.model, model, sample(*shape), sample(3))


class Transposed(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return torch.conv_transpose1d(x, self.w, x.mean((0, 2)), stride=2)


class Changing(Layer):
    """The bias counts the calls."""

    bias: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__(*shape)
        self.register_buffer("bias", torch.zeros(shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        self.bias = self.bias + 1
        return functional.linear(x, self.w, self.bias)


MODELS: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
    "linear": (Linear(3, 4), (sample(5, 4),)),
    "convolution": (Conv(3, 2, 3, 3), (sample(2, 2, 6, 6), sample(3))),
    "transposed": (Transposed(2, 2, 2), (sample(2, 2, 6),)),
    "changing": (Changing(3, 4), (sample(5, 4),)),
}


# A trace keeps the state that it saw.
CASES = [(name, mode) for name in MODELS for mode in get_args(Mode)]
CASES.remove(("changing", "traced"))


@pytest.mark.parametrize(("name", "mode"), CASES)
@pytest.mark.filterwarnings("ignore::jitquant.DroppedWarning")
def test_layer_and_sum_are_int8(name: str, mode: Mode) -> None:
    module, inputs = MODELS[name]
    model = scripted(module) if mode == "scripted" else traced(module, *inputs)
    prepared = prepare_jit(model, {"": default_qconfig})
    prepared(*inputs)
    int8 = convert_jit(prepared)
    layers = [op for op in coverage(int8).ops if "linear" in op.op or "conv" in op.op]
    assert [op.int8 for op in layers] == [True]
    assert "aten::add" in [op.op for op in coverage(int8).int8]
    with torch.no_grad():
        assert sqnr(int8(*inputs), model(*inputs)) >= 25.0


class Constant(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.w, self.b)


class Computed(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.w * x.sum(), x.mean(0)[:3])


def test_constant_bias_stays() -> None:
    assert_unchanged(
        before_and_after("split_bias", scripted(Constant(3, 4))),
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::linear(%x, self.w, self.b)
              return (%0)
        """,
    )


def test_layer_with_a_computed_weight_stays() -> None:
    change = before_and_after("split_bias", scripted(Computed(3, 4)))
    assert "aten::linear(%x, %1, %3)" in change.after
    assert change.after == change.before
