"""verify: runs every int8 op once against its float op, and takes back those that are wrong."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from jitquant import convert_jit, coverage, default_qconfig, prepare_jit
from jitquant._engine import engine_set
from tests.ir import (
    FIXED,
    assert_change,
    assert_same_output,
    assert_text,
    before_and_after,
    reasons,
    sample,
    scripted,
)

WRONG = re.compile(r"^its int8 form is wrong by up to \d+ quantization steps for this shape$")


@pytest.fixture
def qnnpack() -> Iterator[None]:
    with engine_set("qnnpack"):
        yield


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


def test_float_op_goes_where_the_int8_op_is_right() -> None:
    change = before_and_after("verify", scripted(Conv()), sample(1, 2, 3, 3))
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : Tensor = aten::quantize_per_tensor(self.conv.weight, 0.03125, 0, 12)
              %3 : Tensor = aten::dequantize(%2)
              %4 : Tensor = aten::conv2d(%1, %3, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %5 : __torch__.torch.classes.quantized.Conv2dPackedParamsBase = quantized::conv2d_prepack(%2, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %6 : Tensor = quantized::conv2d(%0, %5, 0.0625, 128)
              %7 : Tensor = aten::quantize_per_tensor(%4, 0.0625, 128, 13)
              %8 : Tensor = aten::dequantize(%6)
              return (%8)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::quantize_per_tensor(self.conv.weight, 0.03125, 0, 12)
              %2 : __torch__.torch.classes.quantized.Conv2dPackedParamsBase = quantized::conv2d_prepack(%1, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %3 : Tensor = quantized::conv2d(%0, %2, 0.0625, 128)
              %4 : Tensor = aten::dequantize(%3)
              return (%4)
        """,
    )
    assert reasons(change.model) == [("aten::conv2d", "quantized::conv2d")]


def test_op_that_raises_is_taken_back() -> None:
    """Convolution without a batch, on x86."""
    model = scripted(Conv())
    x = sample(2, 3, 3)
    change = before_and_after("verify", model, x)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : Tensor = aten::quantize_per_tensor(self.conv.weight, 0.03125, 0, 12)
              %3 : Tensor = aten::dequantize(%2)
              %4 : Tensor = aten::conv2d(%1, %3, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %5 : __torch__.torch.classes.quantized.Conv2dPackedParamsBase = quantized::conv2d_prepack(%2, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %6 : Tensor = quantized::conv2d(%0, %5, 0.0625, 128)
              %7 : Tensor = aten::quantize_per_tensor(%4, 0.0625, 128, 13)
              %8 : Tensor = aten::dequantize(%6)
              return (%8)
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
              return (%6)
        """,
    )
    [(op, reason)] = reasons(change.model)
    assert op == "aten::conv2d"
    assert reason.startswith("its int8 form raises: ")
    assert_same_output(change.model, model, x, atol=0.15)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x).relu()
        return result


def test_linear_of_a_vector_is_taken_back_with_its_activation() -> None:
    model = scripted(Linear())
    change = before_and_after("verify", model, sample(2))
    assert_text(
        change.after,
        """
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
    linear, relu = coverage(change.model).ops
    assert linear.reason.startswith("its int8 form raises: ")
    assert (linear.int8, relu.int8) == (False, False)
    assert_same_output(change.model, model, sample(2), atol=0.15)


class Pool(nn.Module):
    def __init__(self, count_include_pad: bool, divisor: int | None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.pool = nn.AvgPool2d(2, 2, 1, False, count_include_pad, divisor)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pool(self.conv(x))
        return y


@pytest.mark.usefixtures("qnnpack")
def test_pool_that_ignores_its_argument_is_taken_back() -> None:
    """qnnpack does not read count_include_pad."""
    model = scripted(Pool(False, None))
    x = sample(1, 2, 4, 4)
    converted = before_and_after("verify", model, x).model
    (conv, conv_reason), (pool, pool_reason) = reasons(converted)
    assert (conv, conv_reason) == ("aten::conv2d", "quantized::conv2d")
    assert pool == "aten::avg_pool2d"
    assert WRONG.match(pool_reason)
    assert_same_output(converted, model, x, atol=0.2)


@pytest.mark.usefixtures("qnnpack")
def test_taken_back_pool_in_full() -> None:
    change = before_and_after("verify", scripted(Pool(False, None)), sample(1, 2, 4, 4))
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : Tensor = aten::quantize_per_tensor(self.conv.weight, 0.03125, 0, 12)
              %3 : Tensor = aten::dequantize(%2)
              %4 : Tensor = aten::conv2d(%1, %3, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %5 : __torch__.torch.classes.quantized.Conv2dPackedParamsBase = quantized::conv2d_prepack(%2, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %6 : Tensor = quantized::conv2d(%0, %5, 0.0625, 128)
              %7 : Tensor = aten::quantize_per_tensor(%4, 0.0625, 128, 13)
              %8 : Tensor = aten::dequantize(%6)
              %9 : Tensor = aten::avg_pool2d(%8, [2, 2], [2, 2], [1, 1], False, False, None)
              %10 : Tensor = aten::avg_pool2d(%6, [2, 2], [2, 2], [1, 1], False, False, None)
              %11 : Tensor = aten::quantize_per_tensor(%9, 0.0625, 128, 13)
              %12 : Tensor = aten::dequantize(%10)
              return (%12)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = aten::quantize_per_tensor(self.conv.weight, 0.03125, 0, 12)
              %2 : __torch__.torch.classes.quantized.Conv2dPackedParamsBase = quantized::conv2d_prepack(%1, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %3 : Tensor = quantized::conv2d(%0, %2, 0.0625, 128)
              %4 : Tensor = aten::dequantize(%3)
              %5 : Tensor = aten::avg_pool2d(%4, [2, 2], [2, 2], [1, 1], False, False, None)
              %6 : Tensor = aten::quantize_per_tensor(%5, 0.0625, 128, 13)
              %7 : Tensor = aten::dequantize(%6)
              return (%7)
        """,
    )


@pytest.mark.usefixtures("qnnpack")
def test_pool_that_qnnpack_runs_right_stays_int8() -> None:
    model = scripted(Pool(True, None))
    converted = before_and_after("verify", model, sample(1, 2, 4, 4)).model
    assert reasons(converted) == [
        ("aten::conv2d", "quantized::conv2d"),
        ("aten::avg_pool2d", "aten::avg_pool2d"),
    ]


class MaxPool(Conv):
    def forward(self, x: Tensor) -> Tensor:
        y = functional.max_pool2d(self.conv(x), 1)
        return y


@pytest.mark.usefixtures("qnnpack")
def test_op_that_only_moves_values_is_taken_back_too() -> None:
    """qnnpack raises for a pool of one element."""
    model = scripted(MaxPool())
    x = sample(1, 2, 4, 4)
    converted = before_and_after("verify", model, x).model
    op, reason = reasons(converted)[1]
    assert op == "aten::max_pool2d"
    assert reason.startswith("its int8 form raises: ")
    assert_same_output(converted, model, x, atol=0.15)


class MeanOfAPixel(Conv):
    def forward(self, x: Tensor) -> Tensor:
        return torch.mean(self.conv(x), [2, 3])


def test_mean_over_an_image_of_one_pixel_is_taken_back() -> None:
    """The kernel wants to give its result, of two dimensions, its input's channels-last layout."""
    x = sample(1, 2, 1, 1)
    model = scripted(MeanOfAPixel())
    change = before_and_after("verify", model, x)
    raises = "its int8 form raises: required rank 4 tensor to use channels_last format"
    assert reasons(change.model)[1] == ("aten::mean", raises)
    assert_same_output(change.model, model, x, atol=0.15)
    assert coverage(before_and_after("verify", model, sample(1, 2, 3, 3)).model).ops[1].int8


class SeveralRanks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y


def test_every_rank_that_calibration_saw_is_tried() -> None:
    model = scripted(SeveralRanks())
    prepared = before_and_after("plan", model, qconfig_dict={"": FIXED}).model
    prepared(sample(3, 2))
    assert reasons(convert_jit(prepared)) == [("aten::linear", "quantized::linear")]
    prepared(sample(2))
    converted = convert_jit(prepared)
    assert reasons(converted)[0][1].startswith("its int8 form raises: ")
    for x in (sample(3, 2), sample(2)):
        assert_same_output(converted, model, x, atol=0.15)


def test_generator_of_the_user_is_left_alone() -> None:
    model = scripted(Conv())
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    before_and_after("verify", model, sample(1, 2, 3, 3))
    assert torch.equal(torch.rand(1), expected)


class Clamps(Conv):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x).clamp(0.1, 0.3)
        return y


@pytest.mark.usefixtures("qnnpack")
def test_clamp_that_qnnpack_runs_wrong_on_channels_last_is_taken_back() -> None:
    """A lower bound above zero needs a clamp of its own behind the convolution."""
    images = torch.quantize_per_tensor(torch.randn(1, 5, 7, 9), 0.05, 128, torch.quint8)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert not torch.equal(
        images.clamp(0.1, 0.3).dequantize(), channels_last.clamp(0.1, 0.3).dequantize()
    )
    model = scripted(Clamps())
    x = sample(2, 2, 7, 9)
    converted = before_and_after("convert.verify", model, x).model
    (conv, clamp) = reasons(converted)
    assert conv[0] == "aten::conv2d" and WRONG.match(conv[1])
    assert clamp == ("aten::clamp", "the op that would absorb it stays float")
    assert_same_output(converted, model, x, atol=0.1)


class Heads(nn.Module):
    """Each value of the list has channels of its own, and a layer that takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Conv2d(2, 4, 1), nn.Conv2d(6, 4, 1, groups=2)])
        self.last = nn.ModuleList([nn.Linear(3, 4), nn.Linear(5, 4)])

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        results: list[Tensor] = []
        for index, x in enumerate(images):
            y = x
            for i, head in enumerate(self.heads):
                if i == index:
                    y = head(x)
            for i, last in enumerate(self.last):
                if i == index:
                    y = last(y)
            results.append(y)
        return results


def test_a_layer_is_tried_on_the_channels_that_it_takes() -> None:
    model = scripted(Heads())
    images = [sample(1, 2, 3, 3), sample(1, 6, 3, 5)]
    prepared: Any = prepare_jit(model, {"": default_qconfig})
    prepared(images)
    int8: Any = convert_jit(prepared)
    assert [(of.op, of.reason) for of in coverage(int8).float] == []
    for expected, actual in zip(model(images), int8(images), strict=True):
        assert (actual - expected).norm() < 0.03 * expected.norm()
