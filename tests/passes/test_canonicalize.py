"""canonicalize: one spelling per op."""

import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from jitquant import JitQuantError
from tests.ir import (
    assert_change,
    assert_same_output,
    assert_unchanged,
    before_and_after,
    sample,
    scripted,
    traced,
)


class Wrap(nn.Module):
    """A top module, so that module paths are like those of users' models."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y


def test_traced_conv1d() -> None:
    x = sample(1, 2, 4)
    model = traced(Wrap(nn.Conv1d(2, 2, 3, stride=2, padding=1)), x)
    change = before_and_after("canonicalize", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::_convolution(%x, self.inner.weight, self.inner.bias, [2], [1], [1], False, [0], 1, False, False, True, True)
              return (%0)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv1d(%x, self.inner.weight, self.inner.bias, [2], [1], [1], 1)
              return (%0)
        """,
    )
    assert_same_output(change.model, model, x)


def test_traced_conv2d() -> None:
    x = sample(1, 2, 4, 4)
    model = traced(Wrap(nn.Conv2d(2, 2, 3, stride=(1, 2), dilation=(1, 2), padding=2, groups=2)), x)
    change = before_and_after("canonicalize", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::_convolution(%x, self.inner.weight, self.inner.bias, [1, 2], [2, 2], [1, 2], False, [0, 0], 2, False, False, True, True)
              return (%0)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.inner.weight, self.inner.bias, [1, 2], [2, 2], [1, 2], 2)
              return (%0)
        """,
    )
    assert_same_output(change.model, model, x)


class OneNumberForAll(nn.Module):
    """Stride, padding and dilation as lists of one number, for two dimensions."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 2, 3, 3))
        self.transposed = transposed

    def forward(self, x: Tensor) -> Tensor:
        if self.transposed:
            y = torch.conv_transpose2d(x, self.weight, None, [2], [1], [1])
        else:
            y = torch.conv2d(x, self.weight, None, [2], [2], [2])
        return y


def test_one_number_for_all_dimensions_is_spread() -> None:
    x = sample(1, 2, 4, 4)
    model = scripted(OneNumberForAll(transposed=False))
    change = before_and_after("canonicalize", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.weight, None, [2], [2], [2], 1)
              return (%0)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.weight, None, [2, 2], [2, 2], [2, 2], 1)
              return (%0)
        """,
    )
    assert_same_output(change.model, model, x)


def test_one_number_for_all_dimensions_is_spread_in_traced_models() -> None:
    """The stride's length does not tell the rank."""
    x = sample(1, 2, 4, 4)
    model = traced(OneNumberForAll(transposed=True), x)
    change = before_and_after("canonicalize", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::_convolution(%x, self.weight, None, [2], [1], [1, 1], True, [1], 1, False, False, True, True)
              return (%0)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv_transpose2d(%x, self.weight, None, [2, 2], [1, 1], [1, 1], 1, [1, 1])
              return (%0)
        """,
    )
    assert_same_output(change.model, model, x)


def test_traced_conv3d() -> None:
    x = sample(1, 2, 3, 3, 3)
    model = traced(Wrap(nn.Conv3d(2, 2, 3, bias=False)), x)
    change = before_and_after("canonicalize", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::_convolution(%x, self.inner.weight, None, [1, 1, 1], [0, 0, 0], [1, 1, 1], False, [0, 0, 0], 1, False, False, True, True)
              return (%0)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv3d(%x, self.inner.weight, None, [1, 1, 1], [0, 0, 0], [1, 1, 1], 1)
              return (%0)
        """,
    )
    assert_same_output(change.model, model, x)


def test_traced_transposed_convolution() -> None:
    """Its arguments come in another order."""
    x = sample(1, 2, 3, 3)
    inner = nn.ConvTranspose2d(2, 2, 3, stride=3, padding=1, output_padding=2, dilation=1)
    model = traced(Wrap(inner), x)
    change = before_and_after("canonicalize", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::_convolution(%x, self.inner.weight, self.inner.bias, [3, 3], [1, 1], [1, 1], True, [2, 2], 1, False, False, True, True)
              return (%0)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv_transpose2d(%x, self.inner.weight, self.inner.bias, [3, 3], [1, 1], [2, 2], 1, [1, 1])
              return (%0)
        """,
    )
    assert_same_output(change.model, model, x)


def test_padding_same_of_an_odd_kernel() -> None:
    model = scripted(Wrap(nn.Conv2d(2, 2, (3, 5), padding="same", dilation=(2, 1))))
    change = before_and_after("canonicalize", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.inner.weight, self.inner.bias, [1, 1], "same", [2, 1], 1)
              return (%0)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.inner.weight, self.inner.bias, [1, 1], [2, 2], [2, 1], 1)
              return (%0)
        """,
    )
    assert_same_output(change.model, model, sample(1, 2, 5, 5))


def test_padding_same_of_an_even_kernel_pads_one_more_on_the_right() -> None:
    model = scripted(Wrap(nn.Conv2d(2, 2, (4, 3), padding="same")))
    change = before_and_after("canonicalize", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.inner.weight, self.inner.bias, [1, 1], "same", [1, 1], 1)
              return (%0)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::constant_pad_nd(%x, [0, 0, 0, 1], 0.0)
              %1 : Tensor = aten::conv2d(%0, self.inner.weight, self.inner.bias, [1, 1], [1, 1], [1, 1], 1)
              return (%1)
        """,
    )
    assert_same_output(change.model, model, sample(1, 2, 5, 5))


def test_padding_same_traced() -> None:
    x = sample(1, 2, 5)
    model = traced(Wrap(nn.Conv1d(2, 2, 2, padding="same")), x)
    change = before_and_after("canonicalize", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::_convolution_mode(%x, self.inner.weight, self.inner.bias, [1], "same", [1], 1)
              return (%0)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::constant_pad_nd(%x, [0, 1], 0.0)
              %1 : Tensor = aten::conv1d(%0, self.inner.weight, self.inner.bias, [1], [0], [1], 1)
              return (%1)
        """,
    )
    assert_same_output(change.model, model, x)


def test_padding_valid() -> None:
    model = scripted(Wrap(nn.Conv2d(2, 2, 3, padding="valid")))
    change = before_and_after("canonicalize", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.inner.weight, self.inner.bias, [1, 1], "valid", [1, 1], 1)
              return (%0)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.inner.weight, self.inner.bias, [1, 1], [0, 0], [1, 1], 1)
              return (%0)
        """,
    )
    assert_same_output(change.model, model, sample(1, 2, 5, 5))


class ComputedWeight(nn.Module):
    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.conv1d(x, weight, padding="same")


def test_padding_same_of_a_computed_weight_stays() -> None:
    """The kernel's size is not known."""
    model = scripted(ComputedWeight())
    change = before_and_after("canonicalize", model)
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor, %weight : Tensor):
              %0 : Tensor = aten::conv1d(%x, %weight, None, [1], "same", [1], 1)
              return (%0)
        """,
    )
    assert_same_output(change.model, model, sample(1, 2, 5), sample(3, 2, 4))


class ComputedTransposed(nn.Module):
    def forward(self, x: Tensor, transposed: bool) -> Tensor:
        return torch.convolution(x, x, None, [1], [0], [1], transposed, [0], 1)


def test_other_spelling_of_convolution_stays() -> None:
    model = scripted(ComputedTransposed())
    assert_unchanged(
        before_and_after("canonicalize", model),
        """
            graph(self, %x : Tensor, %transposed : bool):
              %0 : Tensor = aten::convolution(%x, %x, None, [1], [0], [1], %transposed, [0], 1)
              return (%0)
        """,
    )


class Dropouts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout(x.neg())
        y = torch.feature_dropout(y, 0.5, False)
        y = torch.alpha_dropout(y, 0.5, False)
        y = torch.feature_alpha_dropout(y, 0.5, False)
        y = torch.dropout_(y, 0.5, False)
        return y.exp()


def test_dropout_goes() -> None:
    model = scripted(Dropouts())
    change = before_and_after("canonicalize", model)
    assert_change(
        change,
        before="""
        graph(self, %x : Tensor):
          %0 : Tensor = aten::neg(%x)
          %1 : Tensor = aten::dropout(%0, 0.5, False)
          %2 : Tensor = aten::exp(%1)
          return (%2)
    """,
        after="""
        graph(self, %x : Tensor):
          %0 : Tensor = aten::neg(%x)
          %1 : Tensor = aten::exp(%0)
          return (%1)
    """,
    )
    assert_same_output(change.model, model, sample(1, 2, 3, 3))


class AlwaysDrops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5, training=True)


class BatchStatistics(nn.Module):
    mean: Tensor
    var: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("var", torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(x, self.mean, self.var, training=True)


class UnreadBatchStatistics(BatchStatistics):
    """Nobody reads what batch_norm gives, but its running statistics change."""

    def forward(self, x: Tensor) -> Tensor:
        functional.batch_norm(x, self.mean, self.var, training=True)
        return x


@pytest.mark.parametrize(
    ("module", "op"),
    [
        (AlwaysDrops(), "aten::dropout"),
        (BatchStatistics(), "aten::batch_norm"),
        (UnreadBatchStatistics(), "aten::batch_norm"),
    ],
)
def test_training_mode_is_refused(module: nn.Module, op: str) -> None:
    inner = module.eval()
    message = rf"""^{op} in 'inner' \(test_canonicalize\.py:\d+\) runs in training mode\. Call model\.eval\(\) before torch\.jit\.script or torch\.jit\.trace \(or on the scripted model\), then quantize it\.$"""
    with pytest.raises(JitQuantError, match=re.compile(message)):
        before_and_after("canonicalize", scripted(Wrap(inner)))
