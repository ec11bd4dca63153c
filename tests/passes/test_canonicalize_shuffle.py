"""canonicalize_shuffle: channels that are shuffled by two views become one op."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jitquant
from jitquant import convert_jit, default_qconfig, prepare_jit
from tests.ir import (
    assert_change,
    assert_same_output,
    before_and_after,
    sample,
    scripted,
    steps_apart,
    traced,
)

PASS = "canonicalize_shuffle"


class Shuffle(nn.Module):
    """As in torchvision's ShuffleNetV2."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w)
        x = torch.transpose(x, 1, 2).contiguous()
        return x.view(n, c, h, w)


def test_scripted() -> None:
    model = scripted(Shuffle())
    change = before_and_after(PASS, model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : int[] = aten::size(%x)
              %1 : int, %2 : int, %3 : int, %4 : int = prim::ListUnpack(%0)
              %5 : int = aten::floordiv(%2, 2)
              %6 : int[] = prim::ListConstruct(%1, 2, %5, %3, %4)
              %7 : Tensor = aten::view(%x, %6)
              %8 : Tensor = aten::transpose(%7, 1, 2)
              %9 : Tensor = aten::contiguous(%8, 0)
              %10 : int[] = prim::ListConstruct(%1, %2, %3, %4)
              %11 : Tensor = aten::view(%9, %10)
              return (%11)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::channel_shuffle(%x, 2)
              %1 : Tensor = aten::clone(%0, 0)
              return (%1)
        """,
    )
    assert_same_output(change.model, model, sample(2, 6, 3, 2))


class ConvShuffle(nn.Module):
    def __init__(self, shuffle: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)
        self.shuffle = shuffle

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        result: Tensor = self.shuffle(torch.cat([y, torch.relu(y)], 1))
        return result


class Backwards(nn.Module):
    """Other ways to write it: -1 channels, dims in the other order, reshape."""

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.size()
        y = x.reshape(n, 3, -1, h, w).transpose(2, 1)
        return y.reshape(n, -1, h, w)


class BySize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.view(x.size(0), 2, x.size(1) // 2, x.size(2), x.size(3))
        return y.transpose(1, 2).contiguous().view(x.size(0), -1, x.size(2), x.size(3))


@pytest.mark.parametrize("mode", ["scripted", "traced"])
@pytest.mark.parametrize("shuffle", [Shuffle(), Backwards(), BySize()])
def test_behind_a_convolution(shuffle: nn.Module, mode: str) -> None:
    """The convolution shows that there are four dimensions, where the graph does not."""
    x = sample(2, 3, 4, 5)
    module = ConvShuffle(shuffle)
    model = scripted(module) if mode == "scripted" else traced(module, x)
    change = before_and_after(PASS, model)
    assert "aten::channel_shuffle" in change.after
    assert "aten::transpose" not in change.after
    for size in ((2, 3, 4, 5), (1, 3, 7, 1)):
        assert_same_output(change.model, model, sample(*size))


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.size()
        y = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        n, c, h, w = y.size()
        return y.view(n, 3, c // 3, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def test_one_behind_the_other() -> None:
    model = scripted(Twice())
    change = before_and_after(PASS, model)
    assert change.after.count("aten::channel_shuffle") == 2
    assert_same_output(change.model, model, sample(2, 6, 3, 2))


def test_int8_model_has_the_numbers_of_the_debug_model() -> None:
    model, x = scripted(ConvShuffle(Shuffle())), sample(2, 3, 4, 5)
    prepared = prepare_jit(model, {"": default_qconfig})
    prepared(x)
    int8: Any = convert_jit(prepared)
    assert jitquant.coverage(int8).float == ()
    kinds = [node.kind() for node in int8.inlined_graph.nodes()]
    assert "aten::channel_shuffle" in kinds
    assert "aten::clone" not in kinds, "which would copy"
    assert steps_apart(int8, convert_jit(prepared, debug=True), x) <= 1


# --- what is no shuffle, or not known to be one ---


class OtherRows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.size()
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, w, h)


class OtherDims(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.size()
        return x.view(n, 2, c // 2, h, w).transpose(2, 3).contiguous().view(n, c, h, w)


class OtherSizes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.transpose(2, 3).size()
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class AnyRank(nn.Module):
    """Five dimensions become four, which a shuffle would keep."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.view(x.size(0), 2, -1, x.size(2), x.size(3))
        return y.transpose(1, 2).contiguous().view(x.size(0), -1, x.size(2), x.size(3))


class ReadBetween(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.size()
        y = x.view(n, 2, c // 2, h, w)
        return y.transpose(1, 2).contiguous().view(n, c, h, w) * y.sum()


@pytest.mark.parametrize(
    "module", [OtherRows(), OtherDims(), OtherSizes(), AnyRank(), ReadBetween()]
)
def test_what_is_no_shuffle_stays(module: nn.Module) -> None:
    model = scripted(module)
    change = before_and_after(PASS, model)
    assert change.after == change.before
    assert "aten::transpose" in change.before
    assert_same_output(change.model, model, sample(2, 6, 3, 2))


class Written(nn.Module):
    """With as many groups as channels the views may be of the input's own memory."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.size()
        y = x.view(n, 6, c // 6, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        y.add_(1)
        return x + y


def test_shuffle_that_is_written_stays() -> None:
    model = scripted(Written())
    change = before_and_after(PASS, model)
    assert change.after == change.before
    assert_same_output(change.model, model, sample(2, 6, 3, 2))
