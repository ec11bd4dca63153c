"""functionalize: in-place ops become functional where nobody can see the difference."""

import re

import pytest
import torch
from torch import Tensor, nn

from tests.ir import (
    FIXED,
    assert_change,
    assert_same_output,
    assert_unchanged,
    before_and_after,
    reasons,
    sample,
    scripted,
)

WRITES = "it writes memory in place that others read"
IN_PLACE = "aten::add_ in the top module writes its memory in place"


class WritesFresh(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        y = y.relu_()
        y += x
        y *= x
        result: Tensor = y
        return result


def test_ops_on_fresh_values_become_functional() -> None:
    model = scripted(WritesFresh())
    change = before_and_after("functionalize", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::linear(%x, self.linear.weight, self.linear.bias)
              %1 : Tensor = aten::relu_(%0)
              %2 : Tensor = aten::add_(%1, %x, 1)
              %3 : Tensor = aten::mul_(%2, %x)
              return (%3)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::linear(%x, self.linear.weight, self.linear.bias)
              %1 : Tensor = aten::relu(%0)
              %2 : Tensor = aten::add(%1, %x, 1)
              %3 : Tensor = aten::mul(%2, %x)
              return (%3)
        """,
    )
    assert_same_output(change.model, model, sample(1, 2))
    assert reasons(change.model) == [
        ("aten::linear", "int8"),
        ("aten::relu", "absorbed by aten::linear"),
        ("aten::add", "int8"),
        ("aten::mul", "int8"),
    ]


class KeepsWhatItWrote(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"features": self.linear(x).relu_()}


def test_fresh_values_that_are_in_a_container_later_become_functional() -> None:
    model = scripted(KeepsWhatItWrote())
    change = before_and_after("functionalize", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::linear(%x, self.linear.weight, self.linear.bias)
              %1 : Tensor = aten::relu_(%0)
              %2 : Dict(str, Tensor) = prim::DictConstruct("features", %1)
              return (%2)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::linear(%x, self.linear.weight, self.linear.bias)
              %1 : Tensor = aten::relu(%0)
              %2 : Dict(str, Tensor) = prim::DictConstruct("features", %1)
              return (%2)
        """,
    )
    assert reasons(change.model) == [
        ("aten::linear", "int8"),
        ("aten::relu", "absorbed by aten::linear"),
    ]


class WritesBehindDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout(self.linear(x))
        y += x
        return y


def test_dropout_in_eval_mode_hides_no_fresh_value() -> None:
    model = scripted(WritesBehindDropout())
    change = before_and_after("functionalize", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::linear(%x, self.linear.weight, self.linear.bias)
              %1 : Tensor = aten::dropout(%0, 0.5, False)
              %2 : Tensor = aten::add_(%1, %x, 1)
              return (%2)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::linear(%x, self.linear.weight, self.linear.bias)
              %1 : Tensor = aten::add(%0, %x, 1)
              return (%1)
        """,
    )
    assert_same_output(change.model, model, sample(1, 2))
    assert reasons(change.model) == [("aten::linear", "int8"), ("aten::add", "int8")]


class WritesAliased(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        alias = y.view(-1)
        y += x
        result: Tensor = alias * 2
        return result


def test_alias_used_later_keeps_the_write() -> None:
    model = scripted(WritesAliased())
    change = before_and_after("functionalize", model)
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::linear(%x, self.linear.weight, self.linear.bias)
              %1 : Tensor = aten::view(%0, [-1])
              %2 : Tensor = aten::add_(%0, %x, 1)
              %3 : Tensor = aten::mul(%1, 2)
              return (%3)
        """,
    )
    assert_same_output(change.model, model, sample(1, 2))
    converted = before_and_after("convert.plan", model, sample(1, 2)).model
    assert_same_output(converted, model, sample(1, 2))
    for stage in (change.model, converted):
        without_line = [(op, re.sub(r" \(\S+:\d+\)", "", reason)) for op, reason in reasons(stage)]
        assert without_line == [
            ("aten::linear", IN_PLACE),
            ("aten::view", IN_PLACE),
            ("aten::add_", WRITES),
            ("aten::mul", IN_PLACE),
        ]


class WritesInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x += 1
        y: Tensor = self.linear(x)
        return y


def test_write_of_an_input_stays() -> None:
    """The caller sees it."""
    model = scripted(WritesInput())
    change = before_and_after("functionalize", model)
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = aten::add_(%x, 1, 1)
              %1 : Tensor = aten::linear(%0, self.linear.weight, self.linear.bias)
              return (%1)
        """,
    )
    converted = before_and_after("convert.plan", model, sample(1, 2)).model
    assert_same_output(change.model, model, sample(1, 2))
    assert_same_output(converted, model, sample(1, 2), atol=0.1)  # activations in steps of 1/16
    # The linear layer reads what was written, and nobody writes it again.
    for stage, linear in ((change.model, "int8"), (converted, "quantized::linear")):
        x = torch.zeros(1, 2)
        stage(x)
        assert x.tolist() == [[1.0, 1.0]]
        add = ("aten::add_", WRITES)
        assert reasons(stage) == [add, ("aten::linear", linear)]


class WritesBuffer(nn.Module):
    state: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.state += x
        return self.state * 2


def test_write_of_a_buffer_stays() -> None:
    model = scripted(WritesBuffer())
    change = before_and_after("functionalize", model, qconfig_dict={"": FIXED})
    assert_unchanged(
        change,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = prim::GetAttr[name="state"](self)
              %1 : Tensor = aten::add_(%0, %x, 1)
               = prim::SetAttr[name="state"](self, %1)
              %2 : Tensor = prim::GetAttr[name="state"](self)
              %3 : Tensor = aten::mul(%2, 2)
              return (%3)
        """,
    )
    assert reasons(change.model) == [
        ("aten::add_", WRITES),
        ("aten::mul", "no int8 op gives its input or reads its result"),
    ]


class BuildsList(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        values.append(x.neg())
        return torch.cat(values)


def test_appended_list_becomes_one_list() -> None:
    model = scripted(BuildsList())
    change = before_and_after("functionalize", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor[] = prim::ListConstruct(%x)
              %1 : Tensor = aten::neg(%x)
              %2 : Tensor[] = aten::append(%0, %1)
              %3 : Tensor = aten::cat(%0, 0)
              return (%3)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::neg(%x)
              %1 : Tensor[] = prim::ListConstruct(%x, %0)
              %2 : Tensor = aten::cat(%1, 0)
              return (%2)
        """,
    )
    assert_same_output(change.model, model, sample(1, 2))


# --- who reads what a write left ---


class WritesAfterReads(nn.Module):
    """Views and reads of the tensor that all come before the writes."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.neg()
        before = y.view(-1) * 2.0
        y -= 0.5
        y.mul_(before.view(1, 2))
        return y + before.sum()


def test_reads_and_views_from_before_a_write_do_not_hinder() -> None:
    model = scripted(WritesAfterReads())
    change = before_and_after("functionalize", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::neg(%x)
              %1 : Tensor = aten::view(%0, [-1])
              %2 : Tensor = aten::mul(%1, 2.0)
              %3 : Tensor = aten::sub_(%0, 0.5, 1)
              %4 : Tensor = aten::view(%2, [1, 2])
              %5 : Tensor = aten::mul_(%3, %4)
              %6 : Tensor = aten::sum(%2, None)
              %7 : Tensor = aten::add(%3, %6, 1)
              return (%7)
        """,
        after="""
            graph(self, %x : Tensor):
              %0 : Tensor = aten::neg(%x)
              %1 : Tensor = aten::view(%0, [-1])
              %2 : Tensor = aten::mul(%1, 2.0)
              %3 : Tensor = aten::sub(%0, 0.5, 1)
              %4 : Tensor = aten::view(%2, [1, 2])
              %5 : Tensor = aten::mul(%3, %4)
              %6 : Tensor = aten::sum(%2, None)
              %7 : Tensor = aten::add(%5, %6, 1)
              return (%7)
        """,
    )
    assert_same_output(change.model, model, sample(1, 2))


class Accumulates(nn.Module):
    def forward(self, x: Tensor, count: int) -> Tensor:
        total = torch.zeros_like(x)
        for _ in range(count):
            total += x
            total.relu_()
        return total


def test_value_that_goes_round_a_loop_is_written_as_a_new_one() -> None:
    model = scripted(Accumulates())
    change = before_and_after("functionalize", model)
    assert_change(
        change,
        before="""
            graph(self, %x : Tensor, %count : int):
              %0 : Tensor = aten::zeros_like(%x, None, None, None, None, None)
              %1 : Tensor = prim::Loop(%count, True, %0)
                block0(%2 : int, %3 : Tensor):
                  %4 : Tensor = aten::add_(%3, %x, 1)
                  %5 : Tensor = aten::relu_(%4)
                  -> (True, %4)
              return (%1)
        """,
        after="""
            graph(self, %x : Tensor, %count : int):
              %0 : Tensor = aten::zeros_like(%x, None, None, None, None, None)
              %1 : Tensor = prim::Loop(%count, True, %0)
                block0(%2 : int, %3 : Tensor):
                  %4 : Tensor = aten::add(%3, %x, 1)
                  %5 : Tensor = aten::relu(%4)
                  -> (True, %5)
              return (%1)
        """,
    )
    x = sample(1, 2)
    for count in (0, 1, 3):
        torch.testing.assert_close(change.model(x, count), model(x, count), rtol=0, atol=1e-5)


class ReadsAView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.neg()
        first = y[0]
        y.add_(x)
        return first + y


class ReadsTheBase(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.neg()
        y[:, 0].mul_(3.0)
        return y.exp()


class ReturnsTheBase(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.neg()
        y.view(-1).mul_(3.0)
        return y


class ReadsBehindABranch(nn.Module):
    """The write is in the branch, and its result is not handed out."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.neg()
        if bool(x.sum() > 0):
            y.mul_(2.0)
        return y + x


class ReadsInTheNextRound(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.neg()
        total = x + 1.0
        for _ in range(3):
            total = total + y
            y.mul_(2.0)
        return total


class ReadsBehindALoop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.neg()
        z = y
        for _ in range(2):
            z.mul_(2.0)
        return y + z


class TakesTurnsInALoop(nn.Module):
    """Two values that go round, and from the second round on are one tensor."""

    def forward(self, x: Tensor) -> Tensor:
        y, z = x.neg(), x.exp()
        for _ in range(3):
            y = y.add_(z)
            z = y
        return y + z


class KeepsTheOldOneInALoop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y, old = x.neg(), x.exp()
        for _ in range(3):
            old = y
            y = y.mul_(2.0)
        return y + old


class HeldByAList(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.neg()
        values = [y, x]
        y.mul_(2.0)
        return torch.stack(values).sum(0) + y  # without it torch.jit.script drops the write


class HeldByADict(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.neg()
        values = {"x": x.exp()}
        if x.size(0) > 1:
            values["y"] = y
        y.mul_(2.0)
        return values["y"] + x


class ReturnsBoth(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.neg()
        first = y[0]
        y.mul_(2.0)
        return first, y


class WritesInBothBranches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.neg()
        if bool(x.sum() > 0):
            y *= 2.0
        else:
            y += 1.0
        return y.exp()


class WritesTheInputOfALoop(nn.Module):
    """The first round's value is also read behind the loop."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.neg()
        z = y
        for _ in range(2):
            z *= 2.0
        return y + z


STAY = [
    ReadsAView,
    ReadsTheBase,
    ReturnsTheBase,
    ReadsBehindABranch,
    ReadsInTheNextRound,
    ReadsBehindALoop,
    HeldByAList,
    HeldByADict,
    ReturnsBoth,
    WritesTheInputOfALoop,
]


@pytest.mark.parametrize("model", STAY)
def test_write_that_somebody_sees_stays(model: type[nn.Module]) -> None:
    float_model = scripted(model())
    change = before_and_after("functionalize", float_model)
    assert change.after == change.before
    assert WRITES in {reason for _, reason in reasons(change.model)}
    for x in (sample(2, 2), -sample(2, 2)):
        assert_same_output(change.model, float_model, x)


@pytest.mark.parametrize("model", [WritesInBothBranches, TakesTurnsInALoop, KeepsTheOldOneInALoop])
def test_write_that_is_handed_out_of_its_block_does_not_stay(model: type[nn.Module]) -> None:
    float_model = scripted(model())
    change = before_and_after("functionalize", float_model)
    assert "_(" in change.before and "_(" not in change.after
    for x in (sample(2, 2), -sample(2, 2)):
        assert_same_output(change.model, float_model, x)
