"""fold_pad: zero padding before a convolution becomes the convolution's own padding."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from jitquant import convert_jit, default_qconfig, prepare_jit
from tests.ir import (
    Change,
    assert_change,
    assert_same_output,
    assert_text,
    assert_unchanged,
    before_and_after,
    reasons,
    sample,
    scripted,
    traced,
)


class Padded(nn.Module):
    """`pad`, then `conv`, then relu6 if `clamps`."""

    def __init__(self, pad: nn.Module, conv: nn.Module, clamps: bool = False) -> None:
        super().__init__()
        self.pad = pad
        self.conv = conv
        self.clamps = clamps

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.pad(x))
        return functional.relu6(y) if self.clamps else y


def assert_folds_exactly(model: torch.jit.ScriptModule, *shapes: tuple[int, ...]) -> None:
    """The prepared model gives the float model's numbers; outputs of different sizes included."""
    change = before_and_after("fold_pad", model)
    assert "pad(" not in change.after
    for shape in shapes:
        assert_same_output(change.model, model, sample(*shape))


SIZES = [(1, 2, height, width) for height, width in itertools.product((6, 7, 8, 9), (6, 7))]


# Equal padding on both sides


class PadsBothSides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(functional.pad(x, [2, 2, 1, 1]))
        return y


@pytest.mark.parametrize("mode", ["scripted", "traced"])
def test_equal_padding_is_added_to_the_convolutions_own(mode: str) -> None:
    x = sample(1, 2, 5, 6)
    model = scripted(PadsBothSides()) if mode == "scripted" else traced(PadsBothSides(), x)
    change = before_and_after("fold_pad", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::pad(%x, [2, 2, 1, 1], "constant", None)
              %1 : Tensor = aten::conv2d(%0, self.conv.weight, self.conv.bias, [1, 1], [1, 1], [1, 1], 1)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight, self.conv.bias, [1, 1], [2, 3], [1, 1], 1)
              return (%0)
        """,
    )
    assert_same_output(change.model, model, x)


@pytest.mark.parametrize("mode", ["scripted", "traced"])
def test_zero_pad_module_of_one_dimension(mode: str) -> None:
    """Only the width is padded; dilation does not matter, since the weight stays."""
    module = Padded(nn.ZeroPad2d((1, 1, 0, 0)), nn.Conv2d(2, 2, 3, dilation=2))
    x = sample(1, 2, 6, 7)
    model = scripted(module) if mode == "scripted" else traced(module, x)
    change = before_and_after("fold_pad", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::pad(%x, [1, 1, 0, 0], "constant", 0.0)
              %1 : Tensor = aten::conv2d(%0, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [2, 2], 1)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight, self.conv.bias, [1, 1], [0, 1], [2, 2], 1)
              return (%0)
        """,
    )
    assert_same_output(change.model, model, x)
    assert not hasattr(change.model.conv, "weight_padded")


# More padding at the end than at the front


@pytest.mark.parametrize("mode", ["scripted", "traced"])
def test_dense_convolution_gets_zeros_at_the_front_of_its_weight(mode: str) -> None:
    """right - left of them: 1 row and 2 columns."""
    module = Padded(nn.ZeroPad2d((0, 2, 1, 2)), nn.Conv2d(2, 3, 3, stride=2))
    model = scripted(module) if mode == "scripted" else traced(module, sample(1, 2, 6, 6))
    change = before_and_after("fold_pad", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::pad(%x, [0, 2, 1, 2], "constant", 0.0)
              %1 : Tensor = aten::conv2d(%0, self.conv.weight, self.conv.bias, [2, 2], [0, 0], [1, 1], 1)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight_padded, self.conv.bias, [2, 2], [2, 2], [1, 1], 1)
              return (%0)
        """,
    )
    extended = change.model.conv.weight_padded
    assert extended.shape == (3, 2, 4, 5)
    assert torch.equal(extended[:, :, 1:, 2:], model.conv.weight)
    assert extended.count_nonzero() == model.conv.weight.count_nonzero()
    for shape in SIZES:
        assert_same_output(change.model, model, sample(*shape))


@pytest.mark.parametrize("stride", [1, 2, 3, (2, 1)])
@pytest.mark.parametrize("pads", [(0, 1, 0, 1), (1, 2, 1, 2), (0, 3, 2, 2), (1, 1, 0, 1)])
@pytest.mark.parametrize("kernel", [1, 2, 3, (2, 5)])
def test_dense_convolutions_are_exact(kernel: Any, pads: Any, stride: Any) -> None:
    conv = nn.Conv2d(2, 3, kernel, stride=stride, padding=1)
    assert_folds_exactly(scripted(Padded(nn.ZeroPad2d(pads), conv)), *SIZES)


def test_depthwise_3x3_becomes_5x5_and_is_cut_after_the_activation() -> None:
    """An odd kernel, since stock int8 kernels are slow for even ones."""
    conv = nn.Conv2d(2, 2, 3, stride=2, groups=2)
    model = scripted(Padded(nn.ZeroPad2d((0, 1, 0, 1)), conv, clamps=True))
    change = before_and_after("fold_pad", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::pad(%x, [0, 1, 0, 1], "constant", 0.0)
              %1 : Tensor = aten::conv2d(%0, self.conv.weight, self.conv.bias, [2, 2], [0, 0], [1, 1], 2)
              %2 : Tensor = aten::relu6(%1)
              return (%2)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight_padded, self.conv.bias, [2, 2], [2, 2], [1, 1], 2)
              %1 : Tensor = aten::relu6(%0)
              %2 : int = aten::size(%x, -2)
              %3 : int = aten::add(%2, -2)
              %4 : int = aten::floordiv(%3, 2)
              %5 : int = aten::add(%4, 1)
              %6 : Tensor = aten::slice(%1, -2, 0, %5, 1)
              %7 : int = aten::size(%x, -1)
              %8 : int = aten::add(%7, -2)
              %9 : int = aten::floordiv(%8, 2)
              %10 : int = aten::add(%9, 1)
              %11 : Tensor = aten::slice(%6, -1, 0, %10, 1)
              return (%11)
        """,
    )
    assert change.model.conv.weight_padded.shape == (2, 1, 5, 5)
    for shape in SIZES:
        assert_same_output(change.model, model, sample(*shape))


def test_depthwise_5x5_becomes_7x7_and_is_cut() -> None:
    conv = nn.Conv2d(2, 2, 5, stride=2, groups=2)
    model = scripted(Padded(nn.ZeroPad2d((1, 2, 1, 2)), conv))
    change = before_and_after("fold_pad", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::pad(%x, [1, 2, 1, 2], "constant", 0.0)
              %1 : Tensor = aten::conv2d(%0, self.conv.weight, self.conv.bias, [2, 2], [0, 0], [1, 1], 2)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight_padded, self.conv.bias, [2, 2], [3, 3], [1, 1], 2)
              %1 : int = aten::size(%x, -2)
              %2 : int = aten::add(%1, -2)
              %3 : int = aten::floordiv(%2, 2)
              %4 : int = aten::add(%3, 1)
              %5 : Tensor = aten::slice(%0, -2, 0, %4, 1)
              %6 : int = aten::size(%x, -1)
              %7 : int = aten::add(%6, -2)
              %8 : int = aten::floordiv(%7, 2)
              %9 : int = aten::add(%8, 1)
              %10 : Tensor = aten::slice(%5, -1, 0, %9, 1)
              return (%10)
        """,
    )
    assert change.model.conv.weight_padded.shape == (2, 1, 7, 7)
    for shape in SIZES:
        assert_same_output(change.model, model, sample(*shape))


@pytest.mark.parametrize("stride", [1, 2, 3, (2, 1)])
@pytest.mark.parametrize("pads", [(0, 1, 0, 1), (1, 2, 1, 2), (0, 3, 1, 1), (0, 2, 0, 1)])
@pytest.mark.parametrize("kernel", [2, 3, 5, (3, 5)])
def test_depthwise_convolutions_are_exact(kernel: Any, pads: Any, stride: Any) -> None:
    conv = nn.Conv2d(2, 4, kernel, stride=stride, groups=2)
    model = scripted(Padded(nn.ZeroPad2d(pads), conv, clamps=True))
    assert_folds_exactly(model, *SIZES)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rank", [1, 3])
def test_convolutions_of_one_and_three_dimensions_are_exact(rank: int, groups: int) -> None:
    kinds: dict[int, tuple[Any, Any]] = {
        1: (nn.ConstantPad1d, nn.Conv1d),
        3: (nn.ConstantPad3d, nn.Conv3d),
    }
    pad, conv = kinds[rank]
    for stride, size in itertools.product((1, 2), (5, 6)):
        module = Padded(pad((0, 1) * rank, 0.0), conv(2, 2, 3, stride=stride, groups=groups))
        assert_folds_exactly(scripted(module), (1, 2, *[size] * rank))


def test_conv1d() -> None:
    model = scripted(Padded(nn.ConstantPad1d((0, 2), 0.0), nn.Conv1d(2, 2, 3)))
    change = before_and_after("fold_pad", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::pad(%x, [0, 2], "constant", 0.0)
              %1 : Tensor = aten::conv1d(%0, self.conv.weight, self.conv.bias, [1], [0], [1], 1)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv1d(%x, self.conv.weight_padded, self.conv.bias, [1], [2], [1], 1)
              return (%0)
        """,
    )
    for size in (5, 6):
        assert_same_output(change.model, model, sample(1, 2, size))


def test_depthwise_convolution_of_an_unbatched_image() -> None:
    conv = nn.Conv2d(2, 2, 3, stride=2, groups=2)
    assert_folds_exactly(scripted(Padded(nn.ZeroPad2d((0, 1, 0, 1)), conv)), (2, 6, 7))


class SharesWeight(nn.Module):
    """One convolution with padding, without, and with the same padding again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        end = self.conv(functional.pad(x, [0, 1, 0, 1]))
        none = self.conv(x)
        again = self.conv(functional.pad(x.neg(), [0, 1, 0, 1]))
        return end, none, again


def test_weight_of_several_convolutions_stays_and_is_extended_once() -> None:
    model = scripted(SharesWeight())
    weight = model.conv.weight.clone()
    change = before_and_after("fold_pad", model)
    assert_text(
        change.after,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight_padded, self.conv.bias, [1, 1], [1, 1], [1, 1], 1)
              %1 : Tensor = aten::conv2d(%x, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %2 : Tensor = aten::neg(%x)
              %3 : Tensor = aten::conv2d(%2, self.conv.weight_padded, self.conv.bias, [1, 1], [1, 1], [1, 1], 1)
              %4 : (Tensor, Tensor, Tensor) = prim::TupleConstruct(%0, %1, %3)
              return (%4)
        """,
    )
    assert torch.equal(model.conv.weight, weight)
    assert torch.equal(change.model.conv.weight, weight)
    assert not hasattr(model.conv, "weight_padded")
    x = sample(1, 2, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(change.model(x), model(x), rtol=0, atol=1e-5)


# What stays


def assert_stays(module: nn.Module, *shape: int) -> Change:
    model = scripted(module)
    change = before_and_after("fold_pad", model)
    assert change.after == change.before
    assert "pad(" in change.after
    assert_same_output(change.model, model, sample(*(shape or (1, 2, 6, 7))))
    return change


def test_padding_of_another_value_stays() -> None:
    change = assert_stays(Padded(nn.ConstantPad2d((1, 1, 1, 1), 0.5), nn.Conv2d(2, 2, 3)))
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::pad(%x, [1, 1, 1, 1], "constant", 0.5)
              %1 : Tensor = aten::conv2d(%0, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              return (%1)
        """,
    )


@pytest.mark.parametrize(
    "pad",
    [
        nn.ReflectionPad2d((0, 1, 0, 1)),
        nn.ReplicationPad2d(1),
        nn.CircularPad2d(1),
        nn.ZeroPad2d((-1, 1, 0, 0)),
        nn.ZeroPad2d(-1),
    ],
    ids=["reflect", "replicate", "circular", "one negative", "all negative"],
)
def test_other_modes_and_negative_padding_stay(pad: nn.Module) -> None:
    model = scripted(Padded(pad, nn.Conv2d(2, 2, 3, padding=1)))
    change = before_and_after("fold_pad", model)
    assert change.after == change.before
    assert "self.conv.weight," in change.after
    assert_same_output(change.model, model, sample(1, 2, 6, 7))


@pytest.mark.parametrize("groups", [1, 2])
def test_more_padding_at_the_end_of_a_dilated_convolution_stays(groups: int) -> None:
    conv = nn.Conv2d(2, 2, 3, dilation=2, groups=groups)
    assert_stays(Padded(nn.ZeroPad2d((0, 1, 0, 1)), conv))


@pytest.mark.parametrize("groups", [1, 2])
def test_more_padding_at_the_front_stays(groups: int) -> None:
    assert_stays(Padded(nn.ZeroPad2d((2, 0, 1, 0)), nn.Conv2d(2, 2, 2, groups=groups)))


def test_padded_channels_stay() -> None:
    assert_stays(Padded(nn.ConstantPad3d((1, 1, 1, 1, 0, 1), 0.0), nn.Conv2d(3, 2, 3)))


class PadReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(x, [1, 1, 1, 1])
        y: Tensor = self.conv(x) + x
        return y


def test_padding_that_two_ops_read_stays() -> None:
    assert_stays(PadReadTwice())


# padding="same", and the whole way


@pytest.mark.parametrize(("kernel", "groups"), [(4, 1), (2, 1), ((2, 3), 1), (4, 16)])
def test_padding_same_of_an_even_kernel_end_to_end(kernel: Any, groups: int) -> None:
    """canonicalize makes it a pad with one more at the end, and the whole is one int8 op."""
    model = scripted(nn.Sequential(nn.Conv2d(16, 16, kernel, padding="same", groups=groups)))
    change = before_and_after("fold_pad", model)
    assert "pad(" not in change.after
    prepared = prepare_jit(model, {"": default_qconfig})
    for size in (8, 9):
        assert_same_output(change.model, model, sample(1, 16, size, size + 1))
        prepared(sample(1, 16, size, size + 1))
    converted = convert_jit(prepared)
    assert reasons(converted) == [("aten::conv2d", "quantized::conv2d")]
    for size in (8, 9):
        x = sample(1, 16, size, size + 1)
        largest = model(x).abs().max().item()
        assert_same_output(converted, model, x, atol=0.03 * largest)
