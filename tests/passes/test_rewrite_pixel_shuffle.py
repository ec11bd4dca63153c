"""rewrite_pixel_shuffle: behind a convolution, a pixel shuffle becomes a rearrangement of rows."""

from typing import Any

import pytest
from torch import Tensor, nn
from torch.nn import functional

from jitquant import convert_jit, coverage, default_qconfig, prepare_jit
from tests.ir import (
    assert_change,
    assert_same_output,
    assert_unchanged,
    before_and_after,
    example_model,
    reasons,
    sample,
    scripted,
    steps_apart,
    traced,
)

PASS = "rewrite_pixel_shuffle"


class Up(nn.Module):
    def __init__(self, factor: int = 2, channels: int = 3, bias: bool = True) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(2, channels * factor**2, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return functional.pixel_shuffle(self.conv(x), self.factor)


def test_behind_a_convolution() -> None:
    model = scripted(Up(bias=False))
    change = before_and_after(PASS, model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight, None, [1, 1], [1, 1], [1, 1], 1)
              %1 : Tensor = aten::pixel_shuffle(%0, 2)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.conv.weight_by_phase, None, [1, 1], [1, 1], [1, 1], 1)
              %1 : Tensor = aten::unflatten(%0, -3, [2, 2, 3])
              %2 : Tensor = aten::movedim(%1, [-2, -5, -1, -4, -3], [-5, -4, -3, -2, -1])
              %3 : Tensor = aten::flatten(%2, -3, -2)
              %4 : Tensor = aten::flatten(%3, -4, -3)
              %5 : Tensor = aten::movedim(%4, [-1], [-3])
              %6 : Tensor = aten::clone(%5, 0)
              return (%6)
        """,
    )
    assert_same_output(change.model, model, sample(2, 2, 4, 5))


class UpRelu(Up):
    def forward(self, x: Tensor) -> Tensor:
        return functional.pixel_shuffle(functional.relu(self.conv(x)), self.factor)


class UpTwice(Up):
    """One convolution, called twice, with one weight in the new order and one in the old."""

    def forward(self, x: Tensor) -> Tensor:
        y = functional.pixel_shuffle(self.conv(x), self.factor)
        z = functional.pixel_shuffle(self.conv(x * 2), self.factor)
        other = self.conv(x)[:, :3].repeat(1, 1, 2, 2)
        result: Tensor = y + z + other
        return result


@pytest.mark.parametrize("mode", ["scripted", "traced"])
@pytest.mark.parametrize(
    "module",
    [Up(), Up(3, 1), Up(4, 5, bias=False), UpRelu(), UpTwice()],
    ids=["2", "to_one_channel", "4", "relu", "twice"],
)
def test_numbers(module: nn.Module, mode: str) -> None:
    """Float: the same; int8: within one step of the debug model, two where two sums follow."""
    x = sample(2, 2, 4, 5)
    model = scripted(module) if mode == "scripted" else traced(module, x)
    prepared = prepare_jit(model, {"": default_qconfig})
    assert_same_output(prepared, model, x)
    int8: Any = convert_jit(prepared)
    assert "aten::pixel_shuffle" not in {op.op for op in coverage(int8).ops}
    assert coverage(int8).float == ()
    debug = convert_jit(prepared, debug=True)
    for size in ((2, 2, 4, 5), (1, 2, 1, 7)):
        assert steps_apart(int8, debug, sample(*size)) <= (2 if isinstance(module, UpTwice) else 1)


def test_unbatched_image() -> None:
    model = scripted(Up())
    assert_same_output(before_and_after(PASS, model).model, model, sample(2, 4, 5))


def test_one_new_weight_for_all_uses() -> None:
    change = before_and_after(PASS, scripted(UpTwice()))
    assert change.after.count("self.conv.weight_by_phase,") == 2
    assert change.after.count("self.conv.weight,") == 1


# --- what stays ---


class Given(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.pixel_shuffle(x, 2)


def test_what_no_convolution_gives() -> None:
    change = before_and_after(PASS, scripted(Given()))
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::pixel_shuffle(%x, 2)
              return (%0)
        """,
    )
    ((_, reason),) = reasons(change.model)
    assert reason.startswith("on channels-last memory, which int8 convolutions leave, its int8")


class ReadTwice(Up):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        result: Tensor = functional.pixel_shuffle(y, self.factor) * y.mean()
        return result


class Grouped(Up):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 1, groups=2)


@pytest.mark.parametrize("module", [ReadTwice(), Grouped()])
def test_channels_that_cannot_be_reordered(module: nn.Module) -> None:
    model = scripted(module)
    change = before_and_after(PASS, model)
    assert change.after == change.before
    assert "aten::pixel_shuffle" in change.before


@pytest.mark.parametrize("key", ["conv", "shuffle"])
def test_what_is_left_float(key: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 8, 1)
            self.shuffle = nn.PixelShuffle(2)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.shuffle(self.conv(x))
            return result

    model = scripted(example_model(Net()))
    change = before_and_after(PASS, model, qconfig_dict={"": default_qconfig, key: None})
    assert change.after == change.before
