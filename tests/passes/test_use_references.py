"""use_references: each int8 op becomes what it computes, in stock float and integer ops."""

from typing import Any

import torch
from torch import Tensor, nn

from jitquant import coverage
from tests.ir import (
    Change,
    assert_same_output,
    assert_unchanged,
    before_and_after,
    sample,
    scripted,
)


def change_of(model: nn.Module, *shape: int) -> Change:
    return before_and_after("use_references", scripted(model), sample(*shape), debug="exact")


class Moved(nn.Module):
    """The relu is not absorbed, since reshape stands before it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.reshape(self.linear(x), [1, 4]))


def test_ops_that_compute_are_spelled_out_and_those_that_move_stay() -> None:
    change = change_of(Moved(), 2, 2)
    assert "quantized::linear(" in change.before and "aten::relu(" in change.before
    assert "quantized::" not in change.after and "aten::relu(" not in change.after
    assert "aten::matmul(" in change.after
    assert change.after.count(", [1, 4])") == change.before.count(", [1, 4])") == 1
    assert [op.reason for op in coverage(change.model).ops] == [
        "quantized::linear",
        "aten::reshape",
        "aten::relu",
    ]
    assert_same_output(change.model, scripted(Moved()), sample(2, 2), atol=0.15)


class MeanOfAll(nn.Module):
    """Of one value, so that the mean spans as much as its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = torch.mean(self.linear(x)).reshape([1, 1])
        return self.linear(mean)  # type: ignore[no-any-return]


def test_overloads_are_told_apart() -> None:
    change = change_of(MeanOfAll(), 1, 1)
    assert "aten::mean(" in change.before and "aten::_make_per_tensor_quantized_tensor(" in (
        change.after
    )
    assert [op.reason for op in coverage(change.model).ops][1] == "aten::mean"
    assert "quantized::" not in change.after


class Quantized(nn.Module):
    """An int8 op of the user's own, on its own packed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.ao.nn.quantized.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        q = torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)
        y: Tensor = self.linear(q).dequantize()
        return y


def test_ops_that_were_int8_before_stay() -> None:
    change = change_of(Quantized(), 1, 2)
    assert_unchanged(change, change.before)
    assert [op.reason for op in coverage(change.model).ops if "linear" in op.op] == [
        "it was int8 before"
    ]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.linear(x))
        return y


def test_weight_is_beside_the_float_weight_once() -> None:
    model = scripted(Twice())
    converted: Any = change_of(Twice(), 1, 2).model
    assert [name for name, _ in converted.named_buffers()] == [
        f"linear.weight_{part}" for part in ("int8", "scale", "zero_point")
    ]
    integers = converted.linear.weight_int8
    assert integers.dtype == torch.int8
    assert converted.linear.weight_scale.dtype == torch.float32
    real = (integers - converted.linear.weight_zero_point) * converted.linear.weight_scale
    step = float(converted.linear.weight_scale)
    assert float((real - converted.linear.weight.detach()).abs().max()) <= step / 2
    assert torch.equal(converted.linear.weight, dict(model.named_parameters())["linear.weight"])


def test_frozen_weight_gets_the_name_of_its_module() -> None:
    frozen = torch.jit.freeze(scripted(nn.Sequential(nn.Linear(2, 2))))
    change = before_and_after("use_references", frozen, sample(1, 2), debug="exact")
    assert [name for name, _ in change.model.named_buffers()] == [
        f"weight_{part}" for part in ("int8", "scale", "zero_point")
    ]
