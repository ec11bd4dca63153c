"""restore_layout: what depends on the memory layout reads contiguous tensors."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jitquant import convert_jit, coverage, default_qconfig, prepare_jit
from tests.ir import before_and_after, example_model, sample, scripted


class ReturnsImage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


class ReturnsRow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y


class Strided(ReturnsImage):
    def forward(self, x: Tensor) -> Tensor:
        return torch.as_strided(self.conv(x), [4, 8], [8, 1])


class WritesThroughView(ReturnsImage):
    """The relu stays float, since its result is written, and keeps the layout of its input."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x))
        y.view(-1).add_(0.25)
        return y * 0.5


class WritesInBranch(ReturnsImage):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x)) if x.size(0) == 1 else x.clone()
        y.view(y.size(0), -1)[:, :3].mul_(-2.0)
        return y + 1.0


@pytest.mark.parametrize("net", [WritesThroughView, WritesInBranch])
def test_a_view_of_what_is_written_keeps_its_memory(net: type[ReturnsImage]) -> None:
    torch.manual_seed(0)
    model = scripted(net())
    x = sample(1, 2, 5, 5)
    prepared = prepare_jit(model, {"": default_qconfig})
    prepared(x)
    converted = convert_jit(prepared)
    assert len(coverage(converted).int8) == 1
    expected = model(x)
    assert (converted(x) - expected).norm() < 0.03 * expected.norm()


def test_image_is_returned_contiguous() -> None:
    change = before_and_after("restore_layout", scripted(ReturnsImage()), sample(1, 2, 3, 3))
    assert change.after.count("aten::contiguous") == 1
    assert "aten::contiguous" not in change.before
    x = sample(1, 2, 3, 3)
    prepared = prepare_jit(scripted(ReturnsImage()), {"": default_qconfig})
    prepared(x)
    assert convert_jit(prepared)(x).is_contiguous()


class ReturnsActivation(nn.Module):
    """Float ops keep the layout of what they read. Each of 50 reads the one before twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = torch.sigmoid(self.conv(x))
        row = y.mean([2, 3])
        for _ in range(50):
            row = torch.pow(row, row)
        return torch.pow(y, row.sum()), y.transpose(1, 2), row


def test_what_float_ops_make_of_an_image_is_returned_contiguous() -> None:
    x = sample(1, 2, 3, 3)
    model: Any = torch.jit.trace(example_model(ReturnsActivation()), x)
    prepared: Any = prepare_jit(model, {"": default_qconfig})
    image, view, _ = prepared(x)
    int8: Any = convert_jit(prepared)
    int8_image, _, _ = int8(x)
    assert image.is_contiguous() and int8_image.is_contiguous()
    assert not view.is_contiguous()
    assert coverage(int8).int8


def test_row_is_returned_as_it_is() -> None:
    change = before_and_after("restore_layout", scripted(ReturnsRow()), sample(3, 2))
    assert "aten::dequantize" in change.before
    assert change.after == change.before


def test_strides_of_an_int8_convolution_are_those_of_float() -> None:
    torch.manual_seed(0)
    model = Strided().eval()
    x = torch.randn(1, 2, 6, 6)
    prepared = prepare_jit(scripted(model), {"": default_qconfig})
    expected = prepared(x)
    actual = convert_jit(prepared)(x)
    assert (actual - expected).norm() < 0.05 * expected.norm()


class AddsNoise(ReturnsImage):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x))
        return y * 0 + torch.rand_like(y) + torch.randn_like(y) + torch.bernoulli(y * 0 + 0.5)


def test_random_numbers_are_in_the_order_of_float() -> None:
    model = scripted(AddsNoise())
    x = sample(1, 2, 6, 6)
    prepared = prepare_jit(model, {"": default_qconfig})
    prepared(x)
    converted = convert_jit(prepared)
    assert coverage(converted).int8
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    assert (converted(x) - expected).norm() < 0.05 * expected.norm()
