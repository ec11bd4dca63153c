"""pad_groups: a grouped convolution gets groups of zeros, with which its int8 kernel is fast."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import jitquant
from jitquant import convert_jit, default_qconfig, prepare_jit
from jitquant._engine import engine_set
from tests.ir import (
    assert_change,
    assert_unchanged,
    before_and_after,
    example_model,
    reasons,
    sample,
    scripted,
    steps_apart,
    traced,
)

PASS = "pad_groups"
CANNOT = (
    "stock int8 kernels are slow for channels that are no multiple of 8, and its neighbours "
    "cannot pad them"
)


@pytest.fixture(params=["fbgemm"], autouse=True)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """fbgemm, which has the rule from two groups on; x86 has it from 101 on."""
    with engine_set(request.param) as name:
        yield name


class Block(nn.Module):
    """A convolution of `channels`, a grouped one, and one that reads it."""

    def __init__(
        self, channels: int = 6, width: int = 1, multiplier: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        self.expand = nn.Conv2d(4, channels, 1, bias=bias)
        self.grouped = nn.Conv2d(
            *(channels, multiplier * channels, 3), 1, 1, groups=channels // width, bias=bias
        )
        self.project = nn.Conv2d(multiplier * channels, 3, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.project(self.grouped(functional.relu(self.expand(x))))
        return result


def test_weights_get_zeros() -> None:
    change = before_and_after(PASS, scripted(Block(bias=False)), sample(1, 4, 5, 5))
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.expand.weight, None, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::relu(%0)
              %2 : Tensor = aten::conv2d(%1, self.grouped.weight, None, [1, 1], [1, 1], [1, 1], 6)
              %3 : Tensor = aten::conv2d(%2, self.project.weight, None, [1, 1], [0, 0], [1, 1], 1)
              return (%3)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, tensor(<Tensor>), None, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::relu(%0)
              %2 : Tensor = aten::conv2d(%1, tensor(<Tensor>), None, [1, 1], [1, 1], [1, 1], 8)
              %3 : Tensor = aten::conv2d(%2, tensor(<Tensor>), None, [1, 1], [0, 0], [1, 1], 1)
              return (%3)
        """,
    )


def convert(model: torch.jit.ScriptModule, *inputs: Tensor) -> Any:
    """The int8 model after loading, and the debug model."""
    prepared = prepare_jit(model, {"": default_qconfig})
    prepared(*inputs)
    file = io.BytesIO()
    int8 = convert_jit(prepared)
    torch.jit.save(int8, file)
    file.seek(0)
    return torch.jit.load(file), convert_jit(prepared, debug=True)


def packed_shapes(int8: Any) -> list[tuple[int, ...]]:
    """Shapes of all packed weights in the order of the ops; equal weights are packed once."""
    shapes = []
    for node in int8.graph.findAllNodes("prim::GetAttr"):
        value = getattr(int8, node.s("name"))
        if hasattr(value, "unpack"):
            shapes.append(tuple(value.unpack()[0].shape))
    return shapes


class Hardswish(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = functional.hardswish(self.grouped(functional.silu(self.expand(x))))
        result: Tensor = self.project(y)
        return result


class TwoReaders(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.grouped(self.expand(x))
        result: Tensor = self.project(y) + self.project(y)
        return result


class CalledTwice(Block):
    """The expanding convolution also gives a value that may not grow."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.grouped(self.expand(x)))
        z = torch.sigmoid(self.expand(x)).mean(1, keepdim=True)
        result: Tensor = y + z
        return result


class TwoGrouped(Block):
    """The convolution between the two grows in both dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.between = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.grouped(self.between(self.grouped(self.expand(x))))
        result: Tensor = self.project(y)
        return result


EXPAND, GROUPED, PROJECT = (8, 4, 1, 1), (8, 1, 3, 3), (3, 8, 1, 1)


@pytest.mark.parametrize("mode", ["scripted", "traced"])
@pytest.mark.parametrize(
    ("module", "shapes"),
    [
        (Block(), [EXPAND, GROUPED, PROJECT]),
        (Block(bias=False), [EXPAND, GROUPED, PROJECT]),
        (Block(multiplier=2), [EXPAND, (16, 1, 3, 3), (3, 16, 1, 1)]),
        (Block(20, width=2), [(32, 4, 1, 1), (32, 2, 3, 3), (3, 32, 1, 1)]),
        (Hardswish(), [EXPAND, GROUPED, PROJECT]),
        (TwoReaders(), [EXPAND, GROUPED, PROJECT]),
        (CalledTwice(), [EXPAND, GROUPED, PROJECT, (6, 4, 1, 1)]),
        (TwoGrouped(), [EXPAND, GROUPED, (8, 8, 1, 1), PROJECT]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_numbers_are_those_of_the_debug_model(module: nn.Module, shapes: Any, mode: str) -> None:
    """One step, since a kernel may round the last bit of a value differently; 2 over layers."""
    x = sample(2, 4, 7, 6)
    model = scripted(module) if mode == "scripted" else traced(module, x)
    int8, debug = convert(model, x)
    assert sorted(packed_shapes(int8)) == sorted(shapes)
    for size in ((7, 6), (1, 9)):
        assert steps_apart(int8, debug, sample(2, 4, *size)) <= 2


@pytest.mark.parametrize("engine", ["x86"], indirect=True)
@pytest.mark.parametrize(("channels", "padded"), [(116, 120), (98, 98), (104, 104)])
def test_engine_x86_pads_more_than_100_groups(channels: int, padded: int) -> None:
    x = sample(1, 4, 7, 7)
    int8, debug = convert(scripted(Block(channels)), x)
    assert packed_shapes(int8)[1] == (padded, 1, 3, 3)
    assert jitquant.coverage(int8).float == ()
    assert steps_apart(int8, debug, x) <= 2


@pytest.mark.parametrize("engine", ["onednn"], indirect=True)
def test_engine_without_the_rule_pads_nothing(engine: str) -> None:
    int8, _ = convert(scripted(Block()), sample(1, 4, 7, 7))
    assert packed_shapes(int8)[1] == (6, 1, 3, 3)


def test_debug_model_has_the_weights_of_the_original() -> None:
    _, debug = convert(scripted(Block()), sample(1, 4, 7, 7))
    assert debug.expand.weight.shape == (6, 4, 1, 1)


def test_whole_eights_stay() -> None:
    change = before_and_after(PASS, scripted(Block(8, bias=False)), sample(1, 4, 5, 5))
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.expand.weight, None, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::relu(%0)
              %2 : Tensor = aten::conv2d(%1, self.grouped.weight, None, [1, 1], [1, 1], [1, 1], 8)
              %3 : Tensor = aten::conv2d(%2, self.project.weight, None, [1, 1], [0, 0], [1, 1], 1)
              return (%3)
        """,
    )


# --- neighbours that cannot pad ---


class Alone(Block):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.project(self.grouped(x))
        return result


class ReadTwice(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(x)
        result: Tensor = self.project(self.grouped(y) + y)
        return result


class Returned(Block):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.grouped(self.expand(x))
        return result


class ReadBySoftmax(Block):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = functional.softmax(self.grouped(self.expand(x)), 1)
        return result


class FromGrouped(Block):
    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(4, 6, 1, groups=2)


@pytest.mark.parametrize(
    ("module", "channels"),
    [(Alone(), 6), (ReadTwice(), 4), (Returned(), 4), (ReadBySoftmax(), 4), (FromGrouped(), 4)],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_other_neighbours_leave_it_float(module: nn.Module, channels: int) -> None:
    int8, _ = convert(scripted(module), sample(1, channels, 7, 7))
    found = {op.module: op.reason for op in jitquant.coverage(int8).ops}
    assert found["grouped"] == CANNOT


@pytest.mark.parametrize("name", ["expand", "project"])
def test_neighbour_that_is_left_float_is_not_changed(name: str) -> None:
    model = torch.jit.script(example_model(Block()))
    prepared = prepare_jit(model, {"": default_qconfig, name: None})
    prepared(sample(1, 4, 7, 7))
    int8 = convert_jit(prepared)
    assert ("aten::conv2d", CANNOT) in reasons(int8)
