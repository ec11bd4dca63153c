"""configure: each op gets the qconfig that was decided on, and passes leave alone what has none."""

from typing import Any

import pytest
from torch import Tensor, nn

from jitquant import convert_jit, prepare_jit
from tests.ir import (
    FIXED,
    assert_same_output,
    before_and_after,
    reasons,
    sample,
    scripted,
    traced,
)


class ConvBn(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d(1)
        self.conv = conv
        self.bn = nn.BatchNorm2d(2)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.bn(self.conv(self.pad(x))))
        return y


X = sample(1, 2, 4, 4)


def prepared_text(qconfig_dict: dict[str, Any], conv: nn.Module | None = None) -> str:
    """The graph before observers are inserted."""
    model = scripted(ConvBn(conv or nn.Conv2d(2, 2, 3)))
    change = before_and_after("plan", model, qconfig_dict=qconfig_dict)
    assert_same_output(change.model, model, X)
    return change.after


def test_marks_are_the_decisions_and_reach_no_file() -> None:
    change = before_and_after(
        "configure",
        scripted(ConvBn(nn.Conv2d(2, 2, 3))),
        qconfig_dict={"": FIXED, "bn": None},
        show=str,
    )
    assert "jitquant_qconfig" not in change.before
    assert change.after.count("jitquant_qconfig=0") == 3
    assert "aten::batch_norm[jitquant_qconfig=-1]" in change.after
    assert "jitquant_qconfig" not in str(change.model.graph)


def test_with_a_qconfig_everywhere_all_is_folded() -> None:
    text = prepared_text({"": FIXED})
    assert "batch_norm" not in text and "pad(" not in text


@pytest.mark.parametrize("left_float", ["conv", "bn"])
def test_batch_norm_is_not_folded_where_either_is_left_float(left_float: str) -> None:
    text = prepared_text({"": FIXED, left_float: None})
    assert "self.conv.weight" in text and "aten::batch_norm(" in text


@pytest.mark.parametrize("left_float", ["conv", "pad"])
def test_padding_is_not_folded_where_either_is_left_float(left_float: str) -> None:
    assert "aten::pad(" in prepared_text({"": FIXED, left_float: None})


def test_transposed_convolution_that_is_left_float_is_not_rewritten() -> None:
    conv = nn.ConvTranspose2d(2, 2, 2, stride=2)
    assert "aten::conv_transpose2d(" in prepared_text({"": FIXED, "conv": None}, conv)
    assert "aten::conv_transpose2d(" not in prepared_text({"": FIXED}, conv)


def test_a_batch_norm_stays_float_with_its_convolution() -> None:
    """As an int8 op of its own it would round the convolution's result once more."""
    for model in (scripted(ConvBn(nn.Conv2d(2, 2, 3))), traced(ConvBn(nn.Conv2d(2, 2, 3)), X)):
        prepared = prepare_jit(model, {"": FIXED, "conv": None})
        prepared(X)
        for stage in (prepared, convert_jit(prepared)):
            assert dict(reasons(stage))["aten::batch_norm"] == (
                "the layer that it normalizes is left float"
            )


def test_an_activation_that_is_left_float_is_not_absorbed() -> None:
    model = scripted(ConvBn(nn.Conv2d(2, 2, 3)))
    prepared = prepare_jit(model, {"": FIXED, "relu": None})
    prepared(X)
    found = dict(reasons(convert_jit(prepared)))
    assert found["aten::conv2d"] == "quantized::conv2d"
    assert found["aten::relu"] == "its qconfig is None"


def test_what_a_pass_makes_of_an_op_has_its_qconfig() -> None:
    """Here: the slices behind a convolution whose padding is not symmetric."""

    class Depthwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pad = nn.ZeroPad2d((0, 1, 0, 1))
            self.conv = nn.Conv2d(8, 8, 3, stride=2, groups=8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(self.pad(x))
            return y

    prepared = prepare_jit(scripted(Depthwise()), {"conv": FIXED, "pad": FIXED})
    assert dict(reasons(prepared))["aten::slice"] == "int8"
