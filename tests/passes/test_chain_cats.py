"""chain_cats: an int8 concatenation begins with an earlier one that holds its first parts already."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from jitquant import QConfig, QConfigMapping, convert_jit, default_qconfig, prepare_jit
from jitquant.observers import FixedQParamsObserver
from tests.ir import (
    ACTIVATION_SCALE,
    FIXED,
    assert_change,
    before_and_after,
    reasons,
    sample,
    scripted,
)

X = sample(2, 2, 3, 3)


def parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values to concatenate."""
    return x + x, x * x, x + x * x


class Growing(nn.Module):
    """DenseNet's way: all lists have the same beginning."""

    def forward(self, x: Tensor) -> Any:
        a, b, c = parts(x)
        two = torch.cat([a, b], 1)
        three = torch.cat([a, b, c], 1)
        return torch.cat([a, b, c, a], 1), two, three


class OnePart(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return torch.cat([x + x], 1) * x


def test_the_longer_one_begins_with_the_shorter_one() -> None:
    change = before_and_after("chain_cats", scripted(Growing()), X)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = quantized::add(%0, %0, 0.0625, 128)
              %2 : Tensor = quantized::mul(%0, %0, 0.0625, 128)
              %3 : Tensor = quantized::mul(%0, %0, 0.0625, 128)
              %4 : Tensor = quantized::add(%0, %3, 0.0625, 128)
              %5 : Tensor[] = prim::ListConstruct(%1, %2)
              %6 : Tensor = quantized::cat(%5, 1, 0.0625, 128)
              %7 : Tensor = aten::dequantize(%6)
              %8 : Tensor[] = prim::ListConstruct(%1, %2, %4)
              %9 : Tensor = quantized::cat(%8, 1, 0.0625, 128)
              %10 : Tensor = aten::dequantize(%9)
              %11 : Tensor[] = prim::ListConstruct(%1, %2, %4, %1)
              %12 : Tensor = quantized::cat(%11, 1, 0.0625, 128)
              %13 : Tensor = aten::dequantize(%12)
              %14 : (Tensor, Tensor, Tensor) = prim::TupleConstruct(%13, %7, %10)
              return (%14)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = quantized::add(%0, %0, 0.0625, 128)
              %2 : Tensor = quantized::mul(%0, %0, 0.0625, 128)
              %3 : Tensor = quantized::mul(%0, %0, 0.0625, 128)
              %4 : Tensor = quantized::add(%0, %3, 0.0625, 128)
              %5 : Tensor[] = prim::ListConstruct(%1, %2)
              %6 : Tensor = quantized::cat(%5, 1, 0.0625, 128)
              %7 : Tensor = aten::dequantize(%6)
              %8 : Tensor[] = prim::ListConstruct(%6, %4)
              %9 : Tensor = quantized::cat(%8, 1, 0.0625, 128)
              %10 : Tensor = aten::dequantize(%9)
              %11 : Tensor[] = prim::ListConstruct(%9, %1)
              %12 : Tensor = quantized::cat(%11, 1, 0.0625, 128)
              %13 : Tensor = aten::dequantize(%12)
              %14 : (Tensor, Tensor, Tensor) = prim::TupleConstruct(%13, %7, %10)
              return (%14)
        """,
    )


def test_one_part_is_the_concatenation() -> None:
    change = before_and_after("chain_cats", scripted(OnePart()), X)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = quantized::add(%0, %0, 0.0625, 128)
              %2 : Tensor[] = prim::ListConstruct(%1)
              %3 : Tensor = quantized::cat(%2, 1, 0.0625, 128)
              %4 : Tensor = quantized::mul(%3, %0, 0.0625, 128)
              %5 : Tensor = aten::dequantize(%4)
              return (%5)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::quantize_per_tensor(%x, 0.0625, 128, 13)
              %1 : Tensor = quantized::add(%0, %0, 0.0625, 128)
              %2 : Tensor = quantized::mul(%1, %0, 0.0625, 128)
              %3 : Tensor = aten::dequantize(%2)
              return (%3)
        """,
    )
    assert ("aten::cat", "the only tensor that it reads") in reasons(change.model)


class OtherEnd(nn.Module):
    def forward(self, x: Tensor) -> Any:
        a, b, c = parts(x)
        return torch.cat([b, c], 1), torch.cat([a, b, c], 1)


class OtherSecond(nn.Module):
    def forward(self, x: Tensor) -> Any:
        a, b, c = parts(x)
        return torch.cat([a, c], 1), torch.cat([a, b, c], 1)


class NoFurther(nn.Module):
    """Both hold the same, and libtorch makes them one."""

    def forward(self, x: Tensor) -> Any:
        a, b, _ = parts(x)
        return torch.cat([a, b], 1), torch.cat([a, b], 1)


class OtherOrder(nn.Module):
    def forward(self, x: Tensor) -> Any:
        a, b, c = parts(x)
        return torch.cat([b, a], 1), torch.cat([a, b, c], 1)


class OtherAxis(nn.Module):
    def forward(self, x: Tensor) -> Any:
        a, _, _ = parts(x)
        return torch.cat([a, a], 2), torch.cat([a, a, a], 1)


class OtherBlock(nn.Module):
    def forward(self, x: Tensor) -> Any:
        a, b, c = parts(x)
        y = a
        if x.size(0) < 10:
            y = torch.cat([a, b], 1)
        return y, torch.cat([a, b, c], 1)


class WithRelu(nn.Module):
    """The first one has no negative values, as its relu is a part of it."""

    def forward(self, x: Tensor) -> Any:
        a, b, c = parts(x)
        return torch.relu(torch.cat([a, b], 1)), torch.cat([a, b, c], 1)


class SamePart(nn.Module):
    """One part twice: the shorter one's is not the end of its list."""

    def forward(self, x: Tensor) -> Any:
        a, _, _ = parts(x)
        return torch.cat([a, a], 1), torch.cat([a, a, a], 1)


class OneOfRelu(nn.Module):
    def forward(self, x: Tensor) -> Any:
        a, _, _ = parts(x)
        return torch.relu(torch.cat([a], 1))


def converted(model: nn.Module, qconfig: Any = FIXED, debug: Any = False) -> torch.jit.ScriptModule:
    config = qconfig if isinstance(qconfig, QConfigMapping) else {"": qconfig}
    prepared: Any = prepare_jit(scripted(model), config)
    prepared(X)
    return convert_jit(prepared, debug=debug)


def parts_of_each(model: torch.jit.ScriptModule) -> list[int]:
    """How many tensors each int8 concatenation reads, in graph order."""
    graph: Any = model.inlined_graph
    cats = [
        *graph.findAllNodes("quantized::cat", recurse=True),
        *graph.findAllNodes("quantized::cat_relu", recurse=True),
    ]
    return [len(list(cat.inputsAt(0).node().inputs())) for cat in cats]


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        (Growing(), [2, 2, 2]),
        (SamePart(), [2, 2]),
        (OtherEnd(), [2, 3]),
        (OtherSecond(), [2, 3]),
        (NoFurther(), [2]),
        (OtherOrder(), [2, 3]),
        (OtherAxis(), [2, 3]),
        (OtherBlock(), [2, 3]),
        (WithRelu(), [3, 2]),
        (OneOfRelu(), [1]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_what_is_the_same_is_joined(model: nn.Module, parts: list[int]) -> None:
    int8: Any = converted(model)
    assert parts_of_each(int8) == parts
    exact: Any = converted(model, debug="exact")
    for x in (X, sample(1, 2, 5, 4)):
        results, expected = int8(x), exact(x)
        for result, value in zip(results, expected, strict=True):
            assert torch.equal(result, value)


class OtherRange(nn.Module):
    """The longer one has a range that is too wide for the others that read its parts."""

    def forward(self, x: Tensor) -> Any:
        a, b, c = parts(x)
        return torch.cat([a, b], 1), torch.cat([a, b, 9 * c], 1), a * b


class OneAverage(nn.Module):
    """Averages come in the qparams of what they are averages of, and have a range of their own."""

    def forward(self, x: Tensor) -> Any:
        return torch.cat([functional.avg_pool2d(x * x, 2)], 1)


def test_other_qparams_stay() -> None:
    for model, joined, apart in ((OtherRange(), [2, 2], [2, 3]), (OneAverage(), [], [1])):
        assert parts_of_each(converted(model)) == joined
        assert parts_of_each(converted(model, default_qconfig)) == apart


def test_another_zero_point_alone_stays() -> None:
    activation = FixedQParamsObserver.with_args(scale=ACTIVATION_SCALE, zero_point=127)
    other = QConfig(activation=activation, weight=FIXED.weight)
    mapping = QConfigMapping().set_global(FIXED)
    mapping = mapping.set_module_name_object_type_order("", "aten::cat", 2, other)
    assert parts_of_each(converted(Growing(), mapping)) == [2, 2, 4]
