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
        graph(self, %x : Float(1, 2, 4, strides=[8, 4, 1], requires_grad=0, device=cpu)):
          %0 : Float(1, 2, 2, strides=[4, 2, 1], requires_grad=0, device=cpu) = aten::_convolution(%x, self.inner.weight, self.inner.bias, [2], [1], [1], False, [0], 1, False, False, True, True)
          return (%0)
    """,
        after="""
        graph(self, %x : Float(1, 2, 4, strides=[8, 4, 1], requires_grad=0, device=cpu)):
          %0 : Float(1, 2, 2, strides=[4, 2, 1], requires_grad=0, device=cpu) = aten::conv1d(%x, self.inner.weight, self.inner.bias, [2], [1], [1], 1)
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
        graph(self, %x : Float(1, 2, 4, 4, strides=[32, 16, 4, 1], requires_grad=0, device=cpu)):
          %0 : Float(1, 2, 6, 2, strides=[24, 12, 2, 1], requires_grad=0, device=cpu) = aten::_convolution(%x, self.inner.weight, self.inner.bias, [1, 2], [2, 2], [1, 2], False, [0, 0], 2, False, False, True, True)
          return (%0)
    """,
        after="""
        graph(self, %x : Float(1, 2, 4, 4, strides=[32, 16, 4, 1], requires_grad=0, device=cpu)):
          %0 : Float(1, 2, 6, 2, strides=[24, 12, 2, 1], requires_grad=0, device=cpu) = aten::conv2d(%x, self.inner.weight, self.inner.bias, [1, 2], [2, 2], [1, 2], 2)
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
        graph(self, %x : Float(1, 2, 3, 3, 3, strides=[54, 27, 9, 3, 1], requires_grad=0, device=cpu)):
          %0 : Float(1, 2, 1, 1, 1, strides=[2, 1, 1, 1, 1], requires_grad=0, device=cpu) = aten::_convolution(%x, self.inner.weight, None, [1, 1, 1], [0, 0, 0], [1, 1, 1], False, [0, 0, 0], 1, False, False, True, True)
          return (%0)
    """,
        after="""
        graph(self, %x : Float(1, 2, 3, 3, 3, strides=[54, 27, 9, 3, 1], requires_grad=0, device=cpu)):
          %0 : Float(1, 2, 1, 1, 1, strides=[2, 1, 1, 1, 1], requires_grad=0, device=cpu) = aten::conv3d(%x, self.inner.weight, None, [1, 1, 1], [0, 0, 0], [1, 1, 1], 1)
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
        graph(self, %x : Float(1, 2, 3, 3, strides=[18, 9, 3, 1], requires_grad=0, device=cpu)):
          %0 : Float(1, 2, 9, 9, strides=[162, 81, 9, 1], requires_grad=0, device=cpu) = aten::_convolution(%x, self.inner.weight, self.inner.bias, [3, 3], [1, 1], [1, 1], True, [2, 2], 1, False, False, True, True)
          return (%0)
    """,
        after="""
        graph(self, %x : Float(1, 2, 3, 3, strides=[18, 9, 3, 1], requires_grad=0, device=cpu)):
          %0 : Float(1, 2, 9, 9, strides=[162, 81, 9, 1], requires_grad=0, device=cpu) = aten::conv_transpose2d(%x, self.inner.weight, self.inner.bias, [3, 3], [1, 1], [2, 2], 1, [1, 1])
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
        graph(self, %x.1 : Tensor):
          %0 : Tensor = aten::conv2d(%x.1, self.inner.weight, self.inner.bias, [1, 1], "same", [2, 1], 1)
          return (%0)
    """,
        after="""
        graph(self, %x.1 : Tensor):
          %0 : Tensor = aten::conv2d(%x.1, self.inner.weight, self.inner.bias, [1, 1], [2, 2], [2, 1], 1)
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
        graph(self, %x.1 : Tensor):
          %0 : Tensor = aten::conv2d(%x.1, self.inner.weight, self.inner.bias, [1, 1], "same", [1, 1], 1)
          return (%0)
    """,
        after="""
        graph(self, %x.1 : Tensor):
          %0 : Tensor = aten::constant_pad_nd(%x.1, [0, 0, 0, 1], 0.0)
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
        graph(self, %x : Float(1, 2, 5, strides=[10, 5, 1], requires_grad=0, device=cpu)):
          %0 : Float(1, 2, 5, strides=[10, 5, 1], requires_grad=1, device=cpu) = aten::_convolution_mode(%x, self.inner.weight, self.inner.bias, [1], "same", [1], 1)
          return (%0)
    """,
        after="""
        graph(self, %x : Float(1, 2, 5, strides=[10, 5, 1], requires_grad=0, device=cpu)):
          %0 : Tensor = aten::constant_pad_nd(%x, [0, 1], 0.0)
          %1 : Float(1, 2, 5, strides=[10, 5, 1], requires_grad=1, device=cpu) = aten::conv1d(%0, self.inner.weight, self.inner.bias, [1], [0], [1], 1)
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
        graph(self, %x.1 : Tensor):
          %0 : Tensor = aten::conv2d(%x.1, self.inner.weight, self.inner.bias, [1, 1], "valid", [1, 1], 1)
          return (%0)
    """,
        after="""
        graph(self, %x.1 : Tensor):
          %0 : Tensor = aten::conv2d(%x.1, self.inner.weight, self.inner.bias, [1, 1], [0, 0], [1, 1], 1)
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
        graph(self, %x.1 : Tensor, %weight.1 : Tensor):
          %0 : Tensor = aten::conv1d(%x.1, %weight.1, None, [1], "same", [1], 1)
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
        graph(self, %x.1 : Tensor, %transposed.1 : bool):
          %0 : Tensor = aten::convolution(%x.1, %x.1, None, [1], [0], [1], %transposed.1, [0], 1)
          return (%0)
    """,
    )


class Dropouts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Dropout(0.5)
        self.b = nn.Dropout2d(0.5)
        self.c = nn.AlphaDropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c(self.b(self.a(x.neg())))
        return y.neg()


def test_dropout_goes() -> None:
    model = scripted(Dropouts())
    change = before_and_after("canonicalize", model)
    assert_change(
        change,
        before="""
        graph(self, %x.1 : Tensor):
          %0 : Tensor = aten::neg(%x.1)
          %1 : Tensor = aten::dropout(%0, 0.5, False)
          %inp_dim.1 : int = aten::dim(%1)
          %2 : bool = aten::__contains__([3, 4], %inp_dim.1)
          %3 : bool = aten::__not__(%2)
           = prim::If(%3)
            block0():
              %warn_msg.1 : str = aten::format("dropout2d: Received a {}-D input to dropout2d, which is deprecated and will result in an error in a future release. To retain the behavior and silence this warning, please use dropout instead. Note that dropout2d exists to provide channel-wise dropout on inputs with 2 spatial dimensions, a channel dimension, and an optional batch dimension (i.e. 3D or 4D inputs).", %inp_dim.1)
               = aten::warn[warn_id=0](%warn_msg.1, 2)
              -> ()
            block1():
              -> ()
          %4 : bool = aten::eq(%inp_dim.1, 3)
           = prim::If(%4)
            block0():
               = aten::warn[warn_id=1]("dropout2d: Received a 3D input to dropout2d and assuming that channel-wise 1D dropout behavior is desired - input is interpreted as shape (N, C, L), where C is the channel dim. This behavior will change in a future release to interpret the input as one without a batch dimension, i.e. shape (C, H, W). To maintain the 1D channel-wise dropout behavior, please switch to using dropout1d instead.", 2)
              -> ()
            block1():
              -> ()
          %5 : Tensor = aten::feature_dropout(%1, 0.5, False)
          %6 : Tensor = aten::alpha_dropout(%5, 0.5, False)
          %7 : Tensor = aten::neg(%6)
          return (%7)
    """,
        after="""
        graph(self, %x.1 : Tensor):
          %0 : Tensor = aten::neg(%x.1)
          %inp_dim.1 : int = aten::dim(%0)
          %1 : bool = aten::__contains__([3, 4], %inp_dim.1)
          %2 : bool = aten::__not__(%1)
           = prim::If(%2)
            block0():
              %warn_msg.1 : str = aten::format("dropout2d: Received a {}-D input to dropout2d, which is deprecated and will result in an error in a future release. To retain the behavior and silence this warning, please use dropout instead. Note that dropout2d exists to provide channel-wise dropout on inputs with 2 spatial dimensions, a channel dimension, and an optional batch dimension (i.e. 3D or 4D inputs).", %inp_dim.1)
               = aten::warn[warn_id=0](%warn_msg.1, 2)
              -> ()
            block1():
              -> ()
          %3 : bool = aten::eq(%inp_dim.1, 3)
           = prim::If(%3)
            block0():
               = aten::warn[warn_id=1]("dropout2d: Received a 3D input to dropout2d and assuming that channel-wise 1D dropout behavior is desired - input is interpreted as shape (N, C, L), where C is the channel dim. This behavior will change in a future release to interpret the input as one without a batch dimension, i.e. shape (C, H, W). To maintain the 1D channel-wise dropout behavior, please switch to using dropout1d instead.", 2)
              -> ()
            block1():
              -> ()
          %4 : Tensor = aten::neg(%0)
          return (%4)
    """,
    )
    assert_same_output(change.model, model, sample(1, 2, 3, 3))


class AlwaysDrops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5, training=True)


class BatchStatistics(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(x, None, None, training=True)


@pytest.mark.parametrize(
    ("module", "op"), [(AlwaysDrops(), "aten::dropout"), (BatchStatistics(), "aten::batch_norm")]
)
def test_training_mode_is_refused(module: nn.Module, op: str) -> None:
    inner = module.eval()
    message = rf"""^{op} in 'inner' \(functional\.py:\d+\) runs in training mode\. Call model\.eval\(\) before torch\.jit\.script or torch\.jit\.trace \(or on the scripted model\), then quantize it\.$"""
    with pytest.raises(JitQuantError, match=re.compile(message)):
        before_and_after("canonicalize", scripted(Wrap(inner)))
