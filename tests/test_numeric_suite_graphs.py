"""numeric_suite: branches, loops, state, writes in place, and what convert folds or adds."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

import jitquant
from jitquant._engine import engine_set
from jitquant.numeric_suite import Comparison, compare_ops, compare_outputs, compare_weights
from jitquant.quantize import _convert
from tests.ir import FIXED, sample, scripted
from tests.numeric_suite import (
    Two,
    prepared_of,
    quantized_of,
    reloaded,
    rows,
)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(2, 2)
        self.other = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x) if bool(x.sum() > 0) else self.other(x)
        return y.exp()


def test_branches_that_ran_are_compared_and_others_named() -> None:
    script = scripted(Branches())
    positive, negative = sample(2, 2).abs(), -sample(2, 2).abs()
    int8 = quantized_of(script, [positive, negative])
    both = compare_ops(script, int8, [positive, negative])
    assert {each.module for each in both.ops} >= {"one", "other"}
    one = compare_ops(script, int8, [positive])
    assert "other" not in {each.module for each in one.ops}
    assert ("other", "it did not run on the data") in [
        (each.module, each.reason) for each in one.unmatched
    ]


class Rounds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor, n: int) -> Tensor:
        for _ in range(n):
            x = torch.tanh(self.linear(x))
        for _ in range(2):
            x = self.linear(x)
        return x


def test_each_round_of_a_loop_counts() -> None:
    """Freezing unrolls the second loop."""
    script = scripted(Rounds())
    x = sample(4, 2)
    int8 = reloaded(quantized_of(script, [(x, 3)]))
    result = compare_outputs(script, int8, [(x, 3)])
    counts = [each.errors.count for each in result.ops if each.module == "linear"]
    assert counts == [3 * 8, 2 * 8]


class Stateful(nn.Module):
    h: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("h", torch.zeros(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        self.h = 0.5 * self.h + self.linear(x)
        return self.h


def test_state_goes_on_from_batch_to_batch_and_starts_as_in_the_file() -> None:
    script = scripted(Stateful())
    script.h = torch.zeros(1, 2)
    data = [sample(1, 2)] * 3
    prepared = prepared_of(script, data)
    int8 = jitquant.convert_jit(prepared)
    step = 1 / 16
    for float_model in (script, prepared):
        result = compare_outputs(float_model, int8, data)
        assert result.ops[-1].errors.max_abs_error < 4 * step  # a step for each sum
    assert torch.equal(script.h, torch.zeros(1, 2))


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.exp()
        z = y.view(-1)
        y[0] = 0.0
        x.mul_(0.5)
        return y + z.sum() * 0.0


def test_values_are_those_before_a_later_write() -> None:
    script = scripted(Writes())
    x = torch.ones(2, 2)
    int8 = quantized_of(script, [x.clone()])
    batch = x.clone()
    result = compare_outputs(script, int8, [batch])
    assert torch.equal(batch, x)
    exp = next(each for each in result.ops if each.op == "aten::exp")
    assert exp.errors.sqnr == math.inf


class Fills(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros_like(x)
        mask[:1] = 3.0
        return torch.exp(self.linear(x)) * mask.view(-1, 2)


def test_a_slice_that_is_written_stays_one_of_the_quantized_model() -> None:
    """A copy of the slice in its place would leave the mask at zero."""
    script = scripted(Fills())
    int8 = quantized_of(script, [sample(2, 2)])
    result = compare_ops(script, int8, [sample(2, 2)])
    found = {each.op: each.errors.sqnr for each in result.ops if not each.int8}
    assert found["aten::slice"] == found["aten::view"] == math.inf


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        y = self.linear(x)
        order = y.argsort(-1)
        parts = y.chunk(2, -1)
        return y.masked_fill(y > 0, -float("inf")), {"order": order, "part": parts[0]}


def test_infinite_and_integer_values_and_lists() -> None:
    script = scripted(Masked())
    x = sample(8, 2)
    int8 = quantized_of(script, [x])
    result = compare_outputs(script, int8, [x])
    masked = next(each for each in result.ops if each.op == "aten::masked_fill")
    assert masked.errors.not_finite > 0 and math.isfinite(masked.errors.sqnr)
    reasons = {each.op: each.reason for each in result.unmatched}
    assert reasons["aten::argsort"] == "its values are int64"
    assert reasons["aten::gt"] == "its values are bool"
    assert reasons["aten::chunk"] == "it gives no single tensor"
    returned = [each.module for each in result.ops if each.op == "return"]
    assert returned == ["output.0", "output.1.part"]


def test_dynamic_models() -> None:
    script = scripted(Two())
    int8 = jitquant.quantize_dynamic_jit(script, {"": jitquant.default_dynamic_qconfig})
    data = [sample(4, 1)]
    assert [each.module for each in compare_weights(script, int8).ops] == ["first", "second"]
    result = compare_ops(script, int8, data)
    assert rows(result) == [("first", "aten::linear"), ("second", "aten::linear")]
    assert result.ops[0].how == "quantized::linear_dynamic"
    assert 30 < result.ops[0].errors.sqnr < math.inf


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.left = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(self.linear(self.linear(x)))


def test_two_calls_of_a_module_are_two_ops_and_float_ones_are_listed() -> None:
    script = scripted(Shared())
    prepared = jitquant.prepare_jit(script, {"": FIXED, "left": None})
    prepared(sample(2, 2))
    int8 = jitquant.convert_jit(prepared)
    found = [(each.module, each.index, each.int8) for each in compare_ops(script, int8, DATA_2).ops]
    assert found == [("x", 0, True), ("linear", 0, True), ("linear", 1, True), ("left", 0, False)]
    weights = compare_weights(script, int8)
    assert weights.ops[-1].errors.sqnr == math.inf


DATA_2 = [sample(2, 2)]


class Left(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.bn = nn.BatchNorm2d(2)
        self.conv2 = nn.Conv2d(2, 2, 1)
        self.bn2 = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.bn(self.conv(x))))


def test_what_is_left_float_is_folded_in_neither_model() -> None:
    script = scripted(Left())
    data = [sample(1, 2, 3, 3)]
    prepared = jitquant.prepare_jit(script, {"": FIXED, "conv": None})
    prepared(data[0])
    result = compare_outputs(script, jitquant.convert_jit(prepared), data)
    assert ("conv", "aten::conv2d") in rows(result)
    assert next(each for each in result.ops if each.module == "conv").errors.sqnr == math.inf
    assert result.unmatched == ()
    assert "bn" in [each.module for each in result.ops]
    assert "bn2" not in [each.module for each in result.ops]


def test_what_is_left_float_after_folding_is_folded_in_both() -> None:
    """As by auto_mapping: the prepared model has conv with its BatchNorm in it."""
    script = scripted(Left())
    data = [sample(1, 2, 3, 3)]
    int8 = _convert(prepared_of(script, data), False, None, None, left_float={0})
    assert [op.int8 for op in jitquant.coverage(int8).ops] == [False, True]
    result = compare_outputs(script, int8, data)
    assert result.unmatched == ()
    conv = next(each for each in result.ops if each.module == "conv")
    assert conv.errors.max_abs_error < 1e-6  # BatchNorm is folded in float32 in both


class Grouped(nn.Module):
    """fbgemm is fast with a multiple of 8 groups, and gets two of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(4, 6, 1)
        self.grouped = nn.Conv2d(6, 6, 3, 1, 1, groups=6)
        self.project = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.grouped(torch.relu(self.expand(x))))


def test_channels_that_convert_added_are_left_out() -> None:
    with engine_set("fbgemm"):
        script = scripted(Grouped())
        data = [sample(1, 4, 5, 5)]
        int8 = reloaded(quantized_of(script, data))
        weights = compare_weights(script, int8, per_channel=True)
        assert [len(each.errors.channels) for each in weights.ops] == [6, 6, 3]
        both: list[Callable[..., Comparison]] = [compare_outputs, compare_ops]
        for compare in both:
            result = compare(script, int8, data, per_channel=True)
            assert result.unmatched == ()
            assert [len(each.errors.channels) for each in result.ops][1:4] == [6, 6, 3]
            assert all(each.errors.max_abs_error < 0.2 for each in result.ops)  # 3 steps of 1/16
