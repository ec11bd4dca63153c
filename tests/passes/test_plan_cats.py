"""plan: what is written with the qparams of a concatenation. The pairs of insert_qdq show it.

The layers multiply by exact numbers, so that the scales are exact too: 1/16 for what has the range
of `X`, [0, 255/16].
"""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from jitquant import QConfig, convert_jit, prepare_jit
from jitquant.observers import FixedQParamsObserver, MinMaxObserver
from tests.ir import FIXED, assert_change, before_and_after

X = torch.arange(256).reshape(1, 4, 8, 8) / 16
BY_RANGE = QConfig(
    activation=MinMaxObserver,
    weight=FixedQParamsObserver.with_args(
        scale=1 / 32, zero_point=0, dtype=torch.qint8, qscheme=torch.per_tensor_symmetric
    ),
)


def times(factor: float, channels: int = 4) -> nn.Conv2d:
    """A convolution that multiplies by a number."""
    conv = nn.Conv2d(channels, channels, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(factor * torch.eye(channels)[:, :, None, None])
    return conv


def script(module: nn.Module) -> Any:
    """With the weights that it has."""
    return torch.jit.script(module.eval())


def pairs(module: nn.Module, qconfigs: dict[str, Any] | None = None) -> list[tuple[float, int]]:
    """Scale and zero point of each quantize of an activation, in the order of the graph."""
    change = before_and_after(
        "insert_qdq", script(module), X, qconfig_dict=qconfigs or {"": BY_RANGE}
    )
    found = re.findall(r"quantize_per_tensor\(\S+, (\S+), (\d+), 13\)", change.after)
    return [(float(scale), int(zero_point)) for scale, zero_point in found]


class Two(nn.Module):
    def __init__(self, first: float = 1.0, second: float = 1.25) -> None:
        super().__init__()
        self.a = times(first)
        self.b = times(second)

    def forward(self, x: Tensor) -> Any:
        return torch.cat([self.a(x), self.b(x).relu()], 1)


# --- read by the concatenation only ---


def test_what_only_a_cat_reads_is_written_with_its_qparams() -> None:
    """The scale of the wider range, 1/4; alone, the first would have 1/16."""
    change = before_and_after("insert_qdq", script(Two(1.0, 4.0)), X, qconfig_dict={"": BY_RANGE})
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::conv2d(%x, self.a.weight, None, [1, 1], [0, 0], [1, 1], 1)
              %1 : Tensor = aten::conv2d(%x, self.b.weight, None, [1, 1], [0, 0], [1, 1], 1)
              %2 : Tensor = aten::relu(%1)
              %3 : Tensor[] = prim::ListConstruct(%0, %2)
              %4 : Tensor = aten::cat(%3, 1)
              return (%4)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 0, 13)
              %1 : Tensor = aten::dequantize(%0)
              %2 : Tensor = aten::quantize_per_tensor(self.a.weight, 0.03125, 0, 12)
              %3 : Tensor = aten::dequantize(%2)
              %4 : Tensor = aten::conv2d(%1, %3, None, [1, 1], [0, 0], [1, 1], 1)
              %5 : Tensor = aten::quantize_per_tensor(%4, 0.25, 0, 13)
              %6 : Tensor = aten::dequantize(%5)
              %7 : Tensor = aten::quantize_per_tensor(self.b.weight, 0.03125, 0, 12)
              %8 : Tensor = aten::dequantize(%7)
              %9 : Tensor = aten::conv2d(%1, %8, None, [1, 1], [0, 0], [1, 1], 1)
              %10 : Tensor = aten::relu(%9)
              %11 : Tensor = aten::quantize_per_tensor(%10, 0.25, 0, 13)
              %12 : Tensor = aten::dequantize(%11)
              %13 : Tensor[] = prim::ListConstruct(%6, %12)
              %14 : Tensor = aten::cat(%13, 1)
              %15 : Tensor = aten::quantize_per_tensor(%14, 0.25, 0, 13)
              %16 : Tensor = aten::dequantize(%15)
              return (%16)
        """,
    )


def test_values_are_rounded_once() -> None:
    """Half a step of the result; with qparams of their own up to half a step of those more."""
    model = Two(0.5, 1.0)
    with torch.no_grad():  # so that the products are no multiples of a step
        model.a.weight += 0.375 * torch.eye(4).roll(1, 0)[:, :, None, None]
    prepared = prepare_jit(script(model), {"": BY_RANGE})
    prepared(X)
    x = torch.randint(0, 256, X.shape, generator=torch.Generator().manual_seed(0)) / 16
    error = (convert_jit(prepared)(x) - model(x)).abs().max()
    assert error <= (1 / 16) / 2


class Moved(Two):
    def forward(self, x: Tensor) -> Any:
        y = functional.max_pool2d(self.a(x), 1)
        parts = functional.channel_shuffle(y, 2).flatten(2).chunk(2, 1)
        return torch.cat([parts[0].relu(), self.b(x).flatten(2)[:, 2:], parts[1]], 1)


def test_through_ops_that_move_values() -> None:
    assert pairs(Moved(1.0, 4.0)) == [(1 / 16, 0), (1 / 4, 0), (1 / 4, 0), (1 / 4, 0)]


class CatRelu(Two):
    def forward(self, x: Tensor) -> Any:
        return torch.cat([self.a(x), self.b(x)], 1).relu()


def test_a_relu_behind_the_cat_clamps_the_same_values() -> None:
    assert pairs(CatRelu(1.0, -1.0)) == [(1 / 16, 0)] * 4


class Nested(Two):
    def forward(self, x: Tensor) -> Any:
        y, z = self.a(x), self.b(x)
        return torch.cat([torch.cat([y, y], 1), torch.cat([z, z], 1)])


def test_cats_of_cats_are_one_group() -> None:
    assert pairs(Nested(1.0, 4.0)) == [(1 / 16, 0), *[(1 / 4, 0)] * 5]


class Branch(Two):
    def __init__(self) -> None:
        super().__init__(1.0, 4.0)
        self.c = times(1.0, 8)

    def forward(self, x: Tensor) -> Any:
        y = torch.cat([self.a(x), self.b(x)], 1) if x.size(0) == 1 else torch.cumprod(x, 1)
        return self.c(y)


def test_a_cat_of_a_branch_hands_on_the_qparams_of_the_branches() -> None:
    assert pairs(Branch()) == [(1 / 16, 0), *[(1 / 4, 0)] * 5]


# --- read by others too ---


class OtherReader(Two):
    def __init__(self, first: float, second: float) -> None:
        super().__init__(first, second)
        self.c = times(1.0)

    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        return torch.cat([y, self.b(x)], 1), self.c(y)


def test_another_reader_gets_a_scale_that_is_at_most_half_as_large_again() -> None:
    x, c = (1 / 16, 0), (1 / 16, 0)
    assert pairs(OtherReader(1.0, 1.5)) == [x, (1.5 / 16, 0), (1.5 / 16, 0), (1.5 / 16, 0), c]


def test_ranges_that_are_too_far_apart_keep_their_qparams() -> None:
    x, c = (1 / 16, 0), (1 / 16, 0)
    assert pairs(OtherReader(1.0, 1.625)) == [
        *(x, (1 / 16, 0)),
        *((1.625 / 16, 0), (1.625 / 16, 0), c),
    ]


class Returned(Two):
    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        return torch.cat([y, self.b(x)], 1), y


def test_a_value_that_is_returned_keeps_its_precision() -> None:
    assert pairs(Returned(1.0, 4.0)) == [(1 / 16, 0), (1 / 16, 0), (1 / 4, 0), (1 / 4, 0)]


class Half(Two):
    """Each half of what a list holds is a reader."""

    def forward(self, x: Tensor) -> Any:
        first, second = self.a(x).chunk(2, 1)
        return torch.cat([first, self.b(x)], 1), second.exp()


@pytest.mark.parametrize(("factor", "scale"), [(1.25, 1.25 / 16), (4.0, 1 / 16)])
def test_the_other_half_is_another_reader(factor: float, scale: float) -> None:
    cat = (factor / 16, 0)
    assert pairs(Half(1.0, factor)) == [(1 / 16, 0), (scale, 0), cat, cat]


class Dense(Two):
    """The second concatenation reads what the first one read, as in DenseNet."""

    def __init__(self, first: float, second: float) -> None:
        super().__init__(1.0, first)
        self.c = times(1.0, 8)
        self.d = times(second)

    def forward(self, x: Tensor) -> Any:
        y, z = self.a(x), self.b(x)
        first = torch.cat([y, z], 1)
        return self.c(first), torch.cat([y, z, self.d(x)], 1)


def test_cats_that_read_the_same_values_are_one_group() -> None:
    one = (1.5 / 16, 0)
    x, first = (1 / 16, 0), (1.25 / 16, 0)
    assert pairs(Dense(1.25, 1.5)) == [x, one, one, one, first, one, one]


def test_cats_that_are_too_far_apart_are_groups_of_their_own() -> None:
    x, first, second = (1 / 16, 0), (1.25 / 16, 0), (4 / 16, 0)
    assert pairs(Dense(1.25, 4.0)) == [x, first, first, first, first, second, second]


class Signs(Two):
    """One value is positive, the other negative: [-0.5, 1] holds both, and is 1.5 times as wide."""

    def __init__(self) -> None:
        super().__init__(1.0, -0.5)
        self.c = times(1.0)

    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        return torch.cat([y, self.b(x)], 1), self.c(y)


def test_a_shared_range_holds_both() -> None:
    assert pairs(Signs())[1:4] == [(1.5 / 16, 85)] * 3


class CatReluOther(OtherReader):
    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        return torch.cat([y, self.b(x)], 1).relu(), self.c(y)


def test_a_cat_with_a_relu_would_copy_nothing() -> None:
    assert pairs(CatReluOther(1.0, 1.25))[1] == (1 / 16, 0)


# --- qparams that are not the cat's to choose ---


def test_what_has_a_qconfig_of_its_own_keeps_its_qparams() -> None:
    own = (0.125, 0)
    fixed = QConfig(
        activation=FixedQParamsObserver.with_args(scale=own[0], zero_point=own[1]),
        weight=FIXED.weight,
    )
    cat = (1 / 4, 0)
    assert pairs(Two(1.0, 4.0), {"": BY_RANGE, "a": fixed}) == [(1 / 16, 0), own, cat, cat]


class Known(Two):
    def forward(self, x: Tensor) -> Any:
        return torch.cat([functional.hardsigmoid(self.a(x)), self.b(x)], 1)


def test_an_op_of_known_range_keeps_its_qparams() -> None:
    x, cat = (1 / 16, 0), (1 / 4, 0)
    assert pairs(Known(1.0, 4.0)) == [x, (1 / 16, 0), (1 / 256, 0), cat, cat]


class Relu6(Two):
    def forward(self, x: Tensor) -> Any:
        return torch.cat([functional.relu6(self.a(x)), self.b(x)], 1)


def test_a_clamp_keeps_the_qparams_with_which_it_saturates() -> None:
    cat = (1 / 4, 0)
    assert pairs(Relu6(1.0, 4.0)) == [(1 / 16, 0), (pytest.approx(6 / 255), 0), cat, cat]


class Negated(Two):
    def forward(self, x: Tensor) -> Any:
        return torch.cat([-self.a(x), self.b(x)], 1)


def test_a_factor_between_changes_the_qparams() -> None:
    assert pairs(Negated(1.0, 4.0))[1] == (1 / 16, 0)
