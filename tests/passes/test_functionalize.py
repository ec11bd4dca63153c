"""functionalize: in-place ops become functional where nobody can see the difference."""

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

IN_PLACE = "an op writes its memory in place"


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
        assert reasons(stage) == [
            ("aten::linear", IN_PLACE),
            ("aten::view", IN_PLACE),
            ("aten::add_", "no int8 form of aten::add_"),
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
        add = ("aten::add_", "no int8 form of aten::add_")
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
        ("aten::add_", "no int8 form of aten::add_"),
        ("aten::mul", "it moves values between float ops"),
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
