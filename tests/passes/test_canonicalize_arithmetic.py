"""canonicalize_arithmetic: differences become sums, and constants become what a row takes."""

import pytest
import torch
from torch import Tensor, nn

import jitquant
from tests.ir import (
    assert_change,
    assert_same_output,
    assert_unchanged,
    before_and_after,
    reasons,
    sample,
    scripted,
    traced,
)
from tests.models import reloaded, sqnr

PASS = "canonicalize_arithmetic"


def constants() -> torch.jit.ScriptModule:
    """`c` is a tensor, `s` has no dimensions; a new class each time, for `define`."""

    class Constants(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Parameter(torch.zeros(3))
            self.s = nn.Parameter(torch.zeros(()))
            self.i = nn.Parameter(torch.tensor([1, 2, 3]), requires_grad=False)

    model = scripted(Constants())
    with torch.no_grad():
        model.c.copy_(torch.tensor([0.5, -2.0, 4.0]))
        model.s.fill_(0.25)
    return model


def spelled(expression: str, arguments: str = "x, y") -> torch.jit.ScriptModule:
    """A model whose forward returns `expression` of x, y and the constants."""
    model = constants()
    model.define(f"""
def forward(self, {arguments}):
    c = self.c
    s = self.s
    i = self.i
    return {expression}
""")
    return model


def graph(*lines: str) -> str:
    """A graph of x and y that returns the last line's value."""
    body = [f"  %{i} : Tensor = {line}" for i, line in enumerate(lines)]
    return "\n".join(
        ["graph(self, %x : Tensor, %y : Tensor):", *body, f"  return (%{len(body) - 1})"]
    )


@pytest.mark.parametrize(
    ("expression", "before", "after"),
    [
        ("x - 0.5", ["aten::sub(%x, 0.5, 1)"], ["aten::add(%x, -0.5, 1)"]),
        ("x - 3", ["aten::sub(%x, 3, 1)"], ["aten::add(%x, -3, 1)"]),
        ("torch.sub(x, 3, alpha=2)", ["aten::sub(%x, 3, 2)"], ["aten::add(%x, -6, 1)"]),
        ("torch.add(x, 0.5, alpha=3)", ["aten::add(%x, 0.5, 3)"], ["aten::add(%x, 1.5, 1)"]),
        ("x - y", ["aten::sub(%x, %y, 1)"], ["aten::add(%x, %y, -1)"]),
        ("torch.sub(x, y, alpha=0.5)", ["aten::sub(%x, %y, 0.5)"], ["aten::add(%x, %y, -0.5)"]),
        (
            "torch.rsub(x, 1.5)",
            ["aten::rsub(%x, 1.5, 1)"],
            ["aten::add(%x, -1.5, 1)", "aten::neg(%0)"],
        ),
        ("x * s", ["aten::mul(%x, self.s)"], ["aten::mul(%x, tensor({0.25}))"]),
        ("s * x", ["aten::mul(self.s, %x)"], ["aten::mul(%x, tensor({0.25}))"]),
        ("x / s", ["aten::div(%x, self.s)"], ["aten::div(%x, tensor({0.25}))"]),
        ("x - s", ["aten::sub(%x, self.s, 1)"], ["aten::add(%x, tensor({-0.25}), 1)"]),
        (
            "s - x",
            ["aten::sub(self.s, %x, 1)"],
            ["aten::add(%x, tensor({-0.25}), 1)", "aten::neg(%0)"],
        ),
        ("s + x", ["aten::add(self.s, %x, 1)"], ["aten::add(%x, tensor({0.25}), 1)"]),
        ("x - c", ["aten::sub(%x, self.c, 1)"], ["aten::add(%x, self.c_negated, 1)"]),
        (
            "torch.add(x, c, alpha=3)",
            ["aten::add(%x, self.c, 3)"],
            ["aten::add(%x, self.c_scaled, 1)"],
        ),
        ("x / c", ["aten::div(%x, self.c)"], ["aten::mul(%x, self.c_reciprocal)"]),
        ("c - x", ["aten::sub(self.c, %x, 1)"], ["aten::add(self.c, %x, -1)"]),
    ],
)
def test_spelling(expression: str, before: list[str], after: list[str]) -> None:
    model = spelled(expression)
    change = before_and_after(PASS, model)
    assert_change(change, graph(*before), graph(*after))
    assert_same_output(change.model, model, sample(4, 3), sample(2, 4, 3)[0])


@pytest.mark.parametrize(
    ("expression", "lines"),
    [
        ("x + y", ["aten::add(%x, %y, 1)"]),
        ("x + 0.5", ["aten::add(%x, 0.5, 1)"]),
        ("torch.add(x, y, alpha=2)", ["aten::add(%x, %y, 2)"]),
        ("torch.rsub(x, 1.5, alpha=2)", ["aten::rsub(%x, 1.5, 2)"]),
        ("x * y", ["aten::mul(%x, %y)"]),
        ("x / 3", ["aten::div(%x, 3)"]),
        ("x / y", ["aten::div(%x, %y)"]),
        ("torch.div(x, c, rounding_mode='floor')", ['aten::div(%x, self.c, "floor")']),
        ("c / x", ["aten::div(self.c, %x)"]),
        ("x / i", ["aten::div(%x, self.i)"]),
        ("-x", ["aten::neg(%x)"]),
        ("x ** 2", ["aten::pow(%x, 2)"]),
    ],
)
def test_leaves(expression: str, lines: list[str]) -> None:
    assert_unchanged(before_and_after(PASS, spelled(expression)), graph(*lines))


def test_leaves_a_division_by_zero() -> None:
    model = spelled("x / c")
    with torch.no_grad():
        model.c[1] = 0.0
    assert_unchanged(before_and_after(PASS, model), graph("aten::div(%x, self.c)"))


@pytest.mark.parametrize("expression", ["x - n", "x - b", "torch.sub(x, y, alpha=n)"])
def test_leaves_numbers_of_run_time_and_says_so(expression: str) -> None:
    model = spelled(
        expression, "x, y, n: int, b: bool = True" if "b" in expression else "x, y, n: int"
    )
    change = before_and_after(PASS, model)
    assert change.after == change.before
    reason = "its second operand or its alpha is computed at run time, or its alpha is not 1"
    assert reasons(change.model) == [("aten::sub", reason)]


def test_value_that_is_used_elsewhere_stays() -> None:
    model = spelled("(x - y) * y")
    change = before_and_after(PASS, model)
    assert_change(
        change,
        graph("aten::sub(%x, %y, 1)", "aten::mul(%0, %y)"),
        graph("aten::add(%x, %y, -1)", "aten::mul(%0, %y)"),
    )
    assert_same_output(change.model, model, sample(4, 3), sample(2, 4, 3)[1])


def test_constant_is_changed_once() -> None:
    model = spelled("(x - c) * (y - c) + c")
    change = before_and_after(PASS, model)
    assert change.after.count("self.c_negated") == 2
    assert change.after.count("self.c,") == 1
    assert [name for name, _ in change.model.named_parameters() if name.startswith("c")] == [
        "c",
        "c_negated",
    ]
    assert torch.equal(change.model.c, torch.tensor([0.5, -2.0, 4.0]))
    assert_same_output(change.model, model, sample(4, 3), sample(2, 4, 3)[1])


def test_model_of_the_user_has_no_new_attribute() -> None:
    model = spelled("(x - c) / c")
    before_and_after(PASS, model)
    assert [name for name, _ in model.named_parameters()] == ["c", "s", "i"]


class Traced(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (1.5 - x) * y - 0.5


@pytest.mark.parametrize("load", [False, True])
def test_traced_numbers_become_numbers_again(load: bool) -> None:
    """Tracing makes some numbers 0-dim float64 tensors."""
    model = traced(Traced(), sample(4, 3), sample(4, 3))
    model = reloaded(model) if load else model
    change = before_and_after(PASS, model)
    assert_change(
        change,
        graph("aten::rsub(%x, 1.5, 1)", "aten::mul(%0, %y)", "aten::sub(%1, tensor({0.5}), 1)"),
        graph(
            "aten::add(%x, -1.5, 1)",
            "aten::neg(%0)",
            "aten::mul(%1, %y)",
            "aten::add(%2, -0.5, 1)",
        ),
    )
    assert_same_output(change.model, model, sample(4, 3), sample(4, 3))


class State(nn.Module):
    """What has no dimensions, times a number: float64, if the number were a tensor."""

    state: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.register_buffer("state", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z: Tensor = y + (self.state * 0.5 + y.mean())
        return z


@pytest.mark.parametrize("make", ["script", "trace", "load"])
def test_a_zero_state_times_a_traced_number_is_float32(make: str) -> None:
    x = sample(2, 8, 8, 8)
    model = scripted(State()) if make == "script" else traced(State(), x)
    model = reloaded(model) if make == "load" else model
    converted = jitquant.quantize_jit(model, {"": jitquant.default_qconfig}, lambda m: m(x))
    assert [op.op for op in jitquant.coverage(converted).int8][:1] == ["aten::conv2d"]
    assert sqnr(model(x), reloaded(converted)(x)) >= 25


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float64])
@pytest.mark.parametrize(
    "expression",
    ["x - 2", "x - 0.5", "2 - x", "x - y", "torch.sub(x, y, alpha=2)", "x - s", "x * s", "s - x"],
)
def test_other_dtypes_stay_as_they_are(dtype: torch.dtype, expression: str) -> None:
    """Integers promote as before, wrap as before, and stay float."""
    model = spelled(expression)
    change = before_and_after(PASS, model)
    x, y = (torch.tensor([[1, 5, 200]]).to(dtype), torch.tensor([3, 7, 0]).to(dtype))
    for inputs in ((x, y), (x.float(), y), (x, y.float()), (x.long(), y)):
        actual, expected = change.model(*inputs), model(*inputs)
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)
