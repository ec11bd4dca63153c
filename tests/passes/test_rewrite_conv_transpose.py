"""rewrite_conv_transpose: a transposed convolution becomes a convolution and a rearrangement."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.ir import (
    FIXED,
    assert_change,
    assert_same_output,
    assert_unchanged,
    before_and_after,
    reasons,
    sample,
    scripted,
    trace_prepare,
    traced,
)

PASS = "rewrite_conv_transpose"
CLASSES: dict[int, Any] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}


class Up(nn.Module):
    def __init__(self, conv: nn.Module, relu: bool = False) -> None:
        super().__init__()
        self.up = conv
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(x)
        if self.relu:
            y = torch.relu(y)
        return y


def test_kernel_as_large_as_its_stride_becomes_a_pointwise_conv() -> None:
    """The usual upsampling of a U-Net. The relu stays behind the convolution, to be absorbed."""
    model = scripted(Up(nn.ConvTranspose2d(4, 3, 2, stride=2), relu=True))
    change = before_and_after(PASS, model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv_transpose2d(%x, self.up.weight, self.up.bias, [2, 2], [0, 0], [0, 0], 1, [1, 1])
              %1 : Tensor = aten::relu(%0)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.up.weight_as_convolution, self.up.bias_as_convolution, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::relu(%0)
              %2 : Tensor = aten::unflatten(%1, -3, [2, 2, 3])
              %3 : Tensor = aten::movedim(%2, [-2, -5, -1, -4, -3], [-5, -4, -3, -2, -1])
              %4 : Tensor = aten::flatten(%3, -5, -4)
              %5 : Tensor = aten::flatten(%4, -3, -2)
              %6 : Tensor = aten::movedim(%5, [-1], [-3])
              %7 : Tensor = aten::clone(%6, 0)
              return (%7)
        """,
    )
    assert change.model.up.weight_as_convolution.shape == (12, 4, 1, 1)
    assert_same_output(change.model, model, sample(2, 4, 3, 5))


def test_larger_kernel_is_cut_to_size() -> None:
    x = sample(2, 4, 3)
    model = traced(Up(nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1, groups=2)), x)
    change = before_and_after(PASS, model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv_transpose1d(%x, self.up.weight, self.up.bias, [2], [1], [0], 2, [1])
              return (%0)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv1d(%x, self.up.weight_as_convolution, self.up.bias_as_convolution, [1], [1], [1], 2)
              %1 : Tensor = aten::unflatten(%0, -2, [2, 2, 3])
              %2 : Tensor = aten::movedim(%1, [-1, -3, -4, -2], [-4, -3, -2, -1])
              %3 : Tensor = aten::flatten(%2, -2, -1)
              %4 : Tensor = aten::flatten(%3, -3, -2)
              %5 : Tensor = aten::movedim(%4, [-1], [-2])
              %6 : Tensor = aten::slice(%5, -1, 1, -1, 1)
              %7 : Tensor = aten::clone(%6, 0)
              return (%7)
        """,
    )
    assert_same_output(change.model, model, x)


def test_stride_one_is_a_conv_with_the_mirrored_kernel() -> None:
    model = scripted(Up(nn.ConvTranspose2d(4, 3, 3, padding=1, bias=False)))
    change = before_and_after(PASS, model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv_transpose2d(%x, self.up.weight, None, [1, 1], [1, 1], [0, 0], 1, [1, 1])
              return (%0)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.up.weight_as_convolution, None, [1, 1], [1, 1], [1, 1], 1)
              return (%0)
        """,
    )
    mirrored = model.up.weight.transpose(0, 1).flip(2, 3)
    assert torch.equal(change.model.up.weight_as_convolution, mirrored)
    assert_same_output(change.model, model, sample(2, 4, 3, 5))


class Twice(Up):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(self.up(x))
        return y


def test_two_calls_share_one_weight() -> None:
    model = scripted(Twice(nn.ConvTranspose2d(3, 3, 2, stride=2)))
    change = before_and_after(PASS, model)
    assert change.after.count("self.up.weight_as_convolution,") == 2
    assert_same_output(change.model, model, sample(1, 3, 2, 2))


def test_layout_is_that_of_the_float_model() -> None:
    """Whatever follows may take a view."""
    model = scripted(Up(nn.ConvTranspose2d(3, 4, 2, stride=2)))
    prepared = before_and_after(PASS, model).model
    assert prepared(sample(1, 3, 2, 2)).is_contiguous()


def test_input_without_a_batch() -> None:
    model = scripted(Up(nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2)))
    change = before_and_after(PASS, model)
    assert_same_output(change.model, model, sample(4, 3, 5))


# --- what must stay ---


def assert_stays(module: nn.Module, op: str, reason: str) -> None:
    prepared = trace_prepare(scripted(module)).model
    assert reasons(prepared) == [(op, reason)]


def test_depthwise_with_stride_stays() -> None:
    model = scripted(Up(nn.ConvTranspose2d(4, 4, 2, stride=2, groups=4)))
    change = before_and_after(PASS, model)
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv_transpose2d(%x, self.up.weight, self.up.bias, [2, 2], [0, 0], [0, 0], 4, [1, 1])
              return (%0)
        """,
    )
    assert reasons(change.model) == [
        (
            "aten::conv_transpose2d",
            "stock int8 kernels run this depthwise shape slower than float",
        )
    ]


def test_mostly_zeros_stays() -> None:
    assert_stays(
        Up(nn.ConvTranspose1d(4, 4, 1, stride=5)),
        "aten::conv_transpose1d",
        "as a convolution it would have more than 4 times the multiplications, which int8 does "
        "not make up for",
    )


class OutputSize(Up):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(x, [int(x.size(2)) * 2, int(x.size(3)) * 2])
        return y


def test_output_size_computed_at_run_time_stays() -> None:
    prepared = trace_prepare(scripted(OutputSize(nn.ConvTranspose2d(4, 3, 3, 2, 1)))).model
    assert (
        "aten::conv_transpose2d",
        "its geometry is computed at run time",
    ) in reasons(prepared)


class Functional(nn.Module):
    def __init__(self, weight: bool) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(3, 3, 2, 2))
        self.weight = weight

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.weight:
            return torch.conv_transpose2d(x, self.kernel * x.mean())
        return torch.conv_transpose2d(x, self.kernel, bias)


@pytest.mark.parametrize("what", ["weight", "bias"])
def test_computed_weight_or_bias_stays(what: str) -> None:
    prepared = trace_prepare(scripted(Functional(what == "weight"))).model
    assert ("aten::conv_transpose2d", f"its {what} is computed at run time") in reasons(prepared)


def test_float_part_stays() -> None:
    model = scripted(Up(nn.ConvTranspose2d(4, 3, 2, stride=2)))
    change = before_and_after(PASS, model, qconfig_dict={"": FIXED, "up": None})
    assert change.after == change.before
    assert "aten::conv_transpose2d" in change.after


# --- every geometry ---


@st.composite
def geometries(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    rank = draw(st.sampled_from([1, 2, 3]))
    groups = draw(st.sampled_from([1, 1, 2]))
    stride, kernel, padding, dilation, output_padding = [], [], [], [], []
    shape = [draw(st.integers(1, 2)), groups * draw(st.integers(1, 3))]
    for _ in range(rank):
        stride.append(draw(st.integers(1, 4)))
        kernel.append(draw(st.integers(1, 5)))
        dilation.append(draw(st.integers(1, 3)))
        output_padding.append(draw(st.integers(0, max(stride[-1], dilation[-1]) - 1)))
        shape.append(draw(st.integers(2, 5)))
        full = (shape[-1] - 1) * stride[-1] + dilation[-1] * (kernel[-1] - 1)
        padding.append(draw(st.integers(0, min(3, full // 2))))
    module = CLASSES[rank](
        shape[1],
        groups * draw(st.integers(1, 3)),
        kernel,
        stride,
        padding,
        output_padding,
        groups,
        draw(st.booleans()),
        dilation,
    )
    return Up(module, draw(st.booleans())), sample(*shape)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(geometries())
def test_equals_the_transposed_convolution(case: tuple[nn.Module, Tensor]) -> None:
    module, x = case
    model = scripted(module)
    prepared = trace_prepare(model).model
    assert_same_output(prepared, model, x)
