"""restore_layout: what depends on the memory layout reads contiguous tensors."""

import torch
from torch import Tensor, nn

from jitquant import convert_jit, default_qconfig, prepare_jit
from tests.ir import before_and_after, sample, scripted


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


def test_image_is_returned_contiguous() -> None:
    change = before_and_after("restore_layout", scripted(ReturnsImage()), sample(1, 2, 3, 3))
    assert change.after.count("aten::contiguous") == 1
    assert "aten::contiguous" not in change.before
    x = sample(1, 2, 3, 3)
    prepared = prepare_jit(scripted(ReturnsImage()), {"": default_qconfig})
    prepared(x)
    assert convert_jit(prepared)(x).is_contiguous()


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
