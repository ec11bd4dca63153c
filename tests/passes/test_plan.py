"""plan: decides which ops become int8, which values are observed, and why others stay float."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from jitquant import convert_jit, coverage, default_qconfig, prepare_jit
from tests.ir import (
    FIXED,
    assert_same_output,
    assert_text,
    assert_unchanged,
    before_and_after,
    reasons,
    sample,
    scripted,
)

X = sample(1, 2, 3, 3)


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


def test_plan_changes_nothing() -> None:
    model = scripted(Conv())
    graph = """
        graph(self, %x : Tensor):
          %0 : Tensor = aten::conv2d(%x, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
          return (%0)
    """
    assert_unchanged(before_and_after("plan", model), graph)
    assert_unchanged(before_and_after("convert.plan", model, X), graph)


def test_inputs_and_outputs_of_an_op_are_observed() -> None:
    change = before_and_after("insert_observers", scripted(Conv()))
    assert_text(
        change.after,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_0, %x)
              %1 : Tensor = aten::conv2d(%0, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %2 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_1, %1)
              return (%2)
        """,
    )
    assert reasons(change.model) == [("aten::conv2d", "int8")]


# --- absorption ---


class ConvRelu(Conv):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x).relu()
        return result


class ConvRelu6(Conv):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu6(self.conv(x))


class ConvClamp(Conv):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x).clamp(-0.5, 0.5)
        return result


class ConvHardtanh(Conv):
    def forward(self, x: Tensor) -> Tensor:
        return functional.hardtanh(self.conv(x), -0.5, 0.25)


@pytest.mark.parametrize(
    ("module", "op", "after"),
    [
        (
            ConvRelu(),
            "aten::relu",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_0, %x)
                  %1 : Tensor = aten::conv2d(%0, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
                  %2 : Tensor = aten::relu(%1)
                  %3 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_1, %2)
                  return (%3)
            """,
        ),
        (
            ConvRelu6(),
            "aten::relu6",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_0, %x)
                  %1 : Tensor = aten::conv2d(%0, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
                  %2 : Tensor = aten::relu6(%1)
                  %3 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_1, %2)
                  return (%3)
            """,
        ),
        (
            ConvClamp(),
            "aten::clamp",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_0, %x)
                  %1 : Tensor = aten::conv2d(%0, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
                  %2 : Tensor = aten::clamp(%1, -0.5, 0.5)
                  %3 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_1, %2)
                  return (%3)
            """,
        ),
        (
            ConvHardtanh(),
            "aten::hardtanh",
            """
                graph(self, %x : Tensor):
                  %0 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_0, %x)
                  %1 : Tensor = aten::conv2d(%0, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
                  %2 : Tensor = aten::hardtanh(%1, -0.5, 0.25)
                  %3 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_1, %2)
                  return (%3)
            """,
        ),
    ],
)
def test_conv_absorbs_the_activation(module: nn.Module, op: str, after: str) -> None:
    """The value between them is not observed."""
    model = scripted(module)
    change = before_and_after("insert_observers", model)
    assert_text(change.after, after)
    assert reasons(change.model) == [
        ("aten::conv2d", "int8"),
        (op, "absorbed by aten::conv2d"),
    ]
    assert_same_output(change.model, model, X)


class ConvTwoUsers(Conv):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        result: Tensor = y.relu() + y
        return result


def test_conv_with_a_second_user_absorbs_nothing() -> None:
    change = before_and_after("insert_observers", scripted(ConvTwoUsers()))
    assert_text(
        change.after,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_0, %x)
              %1 : Tensor = aten::conv2d(%0, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %2 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_1, %1)
              %3 : Tensor = aten::relu(%2)
              %4 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_3, %3)
              %5 : Tensor = aten::add(%4, %2, 1)
              %6 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_2, %5)
              return (%6)
        """,
    )
    assert reasons(change.model) == [
        ("aten::conv2d", "int8"),
        ("aten::relu", "int8"),
        ("aten::add", "int8"),
    ]


class ConvOpenClamp(Conv):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x).clamp(min=0.0)
        return result


def test_clamp_with_one_bound_is_absorbed() -> None:
    change = before_and_after("insert_observers", scripted(ConvOpenClamp()))
    assert_text(
        change.after,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_0, %x)
              %1 : Tensor = aten::conv2d(%0, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %2 : Tensor = aten::clamp(%1, 0.0, None)
              %3 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_1, %2)
              return (%3)
        """,
    )
    assert reasons(change.model) == [
        ("aten::conv2d", "int8"),
        ("aten::clamp", "absorbed by aten::conv2d"),
    ]


class SigmoidRelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.hardsigmoid(x).relu()


def test_op_of_known_range_absorbs_nothing_and_its_output_is_not_observed() -> None:
    change = before_and_after("insert_observers", scripted(SigmoidRelu()))
    assert_text(
        change.after,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_0, %x)
              %1 : Tensor = aten::hardsigmoid(%0)
              %2 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_1, %1)
              %3 : Tensor = aten::relu(%2)
              return (%3)
        """,
    )
    assert reasons(change.model) == [("aten::hardsigmoid", "int8"), ("aten::relu", "int8")]
    assert change.model.jitquant_observer_0.original_name == "FixedQParamsObserver"
    assert change.model.jitquant_observer_1.original_name == "ShapeRecorder"


# --- why an op stays float ---


class TwoConvs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 2, 1)
        self.b = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x))
        return y


def test_qconfig_none_leaves_the_module_float() -> None:
    model = scripted(TwoConvs())
    change = before_and_after("insert_observers", model, qconfig_dict={"": FIXED, "b": None})
    assert_text(
        change.after,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_0, %x)
              %1 : Tensor = aten::conv2d(%0, self.a.weight, self.a.bias, [1, 1], [0, 0], [1, 1], 1)
              %2 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_1, %1)
              %3 : Tensor = aten::conv2d(%2, self.b.weight, self.b.bias, [1, 1], [0, 0], [1, 1], 1)
              return (%3)
        """,
    )
    assert reasons(change.model) == [
        ("aten::conv2d", "int8"),
        ("aten::conv2d", "its qconfig is None"),
    ]


def test_only_the_named_module_is_int8() -> None:
    change = before_and_after("plan", scripted(TwoConvs()), qconfig_dict={"b": FIXED})
    assert reasons(change.model) == [
        ("aten::conv2d", "no rule of its configuration matches it"),
        ("aten::conv2d", "int8"),
    ]


class ComputedWeight(Conv):
    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.conv.weight * x.sum())


class SetsWeight(Conv):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.zeros(2, 2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.weight = self.weight + 1
        return functional.conv2d(x, self.weight)


class OptionalBias(Conv):
    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return functional.conv2d(x, self.conv.weight, bias)


class ComputedStride(Conv):
    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.conv.weight, stride=x.size(0))


class Alpha(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, x, alpha=x.size(0))


class ComputedFactor(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.size(1)


class ZeroFactor(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0


class ComputedTerm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.size(1)


class ComputedList(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(x.chunk(2, 1))


class SharedList(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        parts = [x, x.neg()]
        return torch.cat(parts), parts


class MeanOfDtype(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1, dtype=torch.float64)


class ListUsedAsWhole(Conv):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.conv(x).chunk(2, 1))


class NoRow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumprod(1)


class Masked(nn.Module):
    """A mask of -inf, which a softmax may read and an observer may not."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.matmul(x, x.transpose(-2, -1)) * 0.5
        return (scores + self.mask[: x.size(-2), : x.size(-2)]).softmax(-1)


def test_sum_that_only_a_softmax_reads_is_float() -> None:
    model = scripted(Masked())
    model.mask = torch.full((4, 4), -torch.inf).triu(1)
    prepared = prepare_jit(model, {"": FIXED})
    assert (
        dict(reasons(prepared))["aten::add"]
        == "only softmax or attention reads it, beside float values"
    )
    assert_same_output(prepared, model, X)


class AddBeforeSoftmax(Conv):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.softmax(y + torch.relu(y), 1)


def test_sum_of_int8_values_before_a_softmax_is_int8() -> None:
    prepared = prepare_jit(scripted(AddBeforeSoftmax()), {"": FIXED})
    assert dict(reasons(prepared))["aten::add"] == "int8"


@pytest.mark.parametrize(
    ("module", "op", "reason"),
    [
        (ComputedWeight(), "aten::conv2d", "its weight is computed at run time"),
        (SetsWeight(), "aten::conv2d", "its weight is computed at run time"),
        (OptionalBias(), "aten::conv2d", "its bias is computed at run time"),
        (ComputedStride(), "aten::conv2d", "its geometry is computed at run time"),
        (Alpha(), "aten::add", "its alpha is computed at run time"),
        (ComputedFactor(), "aten::mul", "its factor is computed at run time"),
        (ZeroFactor(), "aten::mul", "its factor is zero, or too small or large for a scale"),
        (ComputedTerm(), "aten::add", "its second operand is computed at run time"),
        (ComputedList(), "aten::cat", "its list is the result of aten::chunk"),
        (ListUsedAsWhole(), "aten::chunk", "its list is used as a whole"),
        (SharedList(), "aten::cat", "its list has another user"),
        (MeanOfDtype(), "aten::mean", "it changes the dtype"),
        (NoRow(), "aten::cumprod", "no int8 form of aten::cumprod"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_reason_why_an_op_stays_float(module: nn.Module, op: str, reason: str) -> None:
    model = scripted(module)
    prepared = prepare_jit(model, {"": FIXED})
    assert dict(reasons(prepared))[op] == reason
    assert_same_output(prepared, model, X)


class WritesWeight(nn.Module):
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        self.weight.add_(1.0)
        return functional.linear(x, self.weight)


def test_weight_that_the_model_writes_is_no_constant() -> None:
    model = scripted(WritesWeight())
    prepared = prepare_jit(model, {"": FIXED})
    prepared(X)
    converted = convert_jit(prepared)
    for stage in (prepared, converted):
        assert not coverage(stage).int8


class IntegerAdd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y[:, :, index + index]


def test_add_of_int64_stays_float_after_calibration() -> None:
    """Only calibration shows the dtype."""
    model = scripted(IntegerAdd())
    prepared = prepare_jit(model, {"": FIXED})
    index = torch.tensor([0, 1])
    prepared(X, index)
    converted = convert_jit(prepared)
    assert dict(reasons(converted))["aten::add"] == "its input 'index' is Long, not float32"
    assert dict(reasons(converted))["aten::linear"] == "quantized::linear"
    assert_same_output(converted, model, X, index, atol=0.1)


class MovesFloats(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.neg().flatten(1).relu().neg()


def test_values_that_move_between_float_ops_stay_float() -> None:
    model = scripted(MovesFloats())
    change = before_and_after("insert_observers", model)
    assert_text(
        change.after,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_0, %x)
              %1 : Tensor = aten::neg(%0)
              %2 : Tensor = aten::flatten(%1, 1, -1)
              %3 : Tensor = aten::relu(%2)
              %4 : Tensor = aten::neg(%3)
              return (%4)
        """,
    )
    assert reasons(change.model) == [
        ("aten::neg", "no int8 op gives its input or reads its result"),
        ("aten::flatten", "it moves values between float ops"),
        ("aten::relu", "no int8 op gives its input or reads its result"),
        ("aten::neg", "no int8 op gives its input or reads its result"),
    ]


class MovesToConv(Conv):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x.transpose(2, 3))
        return y.transpose(2, 3)


def test_values_that_move_to_and_from_an_int8_op_move_in_int8() -> None:
    """One observer in front of the way, none on it."""
    change = before_and_after("insert_observers", scripted(MovesToConv()))
    assert_text(
        change.after,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_0, %x)
              %1 : Tensor = aten::transpose(%0, 2, 3)
              %2 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_2, %1)
              %3 : Tensor = aten::conv2d(%2, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
              %4 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_1, %3)
              %5 : Tensor = aten::transpose(%4, 2, 3)
              return (%5)
        """,
    )
    assert [reason for _, reason in reasons(change.model)] == ["int8"] * 3


class MeanOfNoise(Conv):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y.mean()


def test_average_of_much_narrower_range_than_its_input_stays_float() -> None:
    module = MeanOfNoise()
    model = scripted(module)
    with torch.no_grad():
        model.conv.bias.zero_()
    prepared = prepare_jit(model, {"": default_qconfig})
    noise = sample(1, 2, 32, 32)
    prepared(noise - noise.mean((2, 3), keepdim=True) + 0.01)
    assert reasons(convert_jit(prepared)) == [
        ("aten::conv2d", "quantized::conv2d"),
        ("aten::mean", "its values span less than an eighth of its input's range"),
    ]


# --- control flow ---


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 2, 1)
        self.b = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):  # noqa: SIM108
            y = self.a(x)
        else:
            y = self.b(x).neg()
        z: Tensor = y
        return z


def test_both_branches_of_an_if_are_planned() -> None:
    model = scripted(Branches())
    change = before_and_after("insert_observers", model)
    assert_text(
        change.after,
        """
            graph(self, %x : Tensor):
              %0 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_0, %x)
              %1 : Tensor = aten::sum(%0, None)
              %2 : Tensor = aten::gt(%1, 0)
              %3 : bool = aten::Bool(%2)
              %4 : Tensor = prim::If(%3)
                block0():
                  %5 : Tensor = aten::conv2d(%0, self.a.weight, self.a.bias, [1, 1], [0, 0], [1, 1], 1)
                  %6 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_1, %5)
                  -> (%6)
                block1():
                  %7 : Tensor = aten::conv2d(%0, self.b.weight, self.b.bias, [1, 1], [0, 0], [1, 1], 1)
                  %8 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_2, %7)
                  %9 : Tensor = aten::neg(%8)
                  -> (%9)
              return (%4)
        """,
    )
    for x in (X, -X):
        assert_same_output(change.model, model, x)


def test_branch_that_never_ran_stays_float() -> None:
    model = scripted(Branches())
    prepared = prepare_jit(model, {"": FIXED})
    assert bool(X.sum() > 0) != bool((-X).sum() > 0)
    prepared(X.abs())
    converted = convert_jit(prepared)
    assert [entry for entry in reasons(converted) if entry[0] == "aten::conv2d"] == [
        ("aten::conv2d", "quantized::conv2d"),
        ("aten::conv2d", "its branch never ran in calibration, or on empty tensors only"),
    ]
    assert_same_output(converted, model, -X.abs())  # float: exact
    assert_same_output(converted, model, X.abs(), atol=0.15)


class Loops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor, count: int) -> Tensor:
        for _ in range(count):
            x = self.conv(x).relu()
        return x


def test_body_of_a_loop_is_planned() -> None:
    model = scripted(Loops())
    change = before_and_after("insert_observers", model)
    assert_text(
        change.after,
        """
            graph(self, %x : Tensor, %count : int):
              %0 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_2, %x)
              %1 : Tensor = prim::Loop(%count, True, %0)
                block0(%2 : int, %3 : Tensor):
                  %4 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_0, %3)
                  %5 : Tensor = aten::conv2d(%4, self.conv.weight, self.conv.bias, [1, 1], [0, 0], [1, 1], 1)
                  %6 : Tensor = aten::relu(%5)
                  %7 : Tensor = prim::CallMethod[name="forward"](self.jitquant_observer_1, %6)
                  -> (True, %7)
              return (%1)
        """,
    )
    assert reasons(change.model) == [
        ("aten::conv2d", "int8"),
        ("aten::relu", "absorbed by aten::conv2d"),
    ]
    with torch.no_grad():
        torch.testing.assert_close(change.model(X, 3), model(X, 3), rtol=0, atol=1e-5)
        converted = convert_jit(change.model)
        torch.testing.assert_close(converted(X, 3), model(X, 3), rtol=0, atol=0.3)
    assert reasons(converted)[0] == ("aten::conv2d", "quantized::conv2d_relu")


class FixedInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 2, 1)
        self.last = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = functional.hardswish(functional.gelu(x))
        z: Tensor = self.last(self.first(x).exp()) + y
        return z


def observers_of(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Which kind of observer sees what, in graph order: (op that gives it or "x", class)."""
    prepared = prepare_jit(scripted(FixedInside()), config)
    graph: Any = prepared.graph
    found = []
    for call in graph.findAllNodes("prim::CallMethod"):
        observer = getattr(prepared, call.inputsAt(0).node().s("name"))
        given = call.inputsAt(1).node().kind()
        found.append((given if given.startswith("aten") else "x", observer.original_name))
    return found


def test_fixed_qparams_of_an_op_are_of_its_output_only() -> None:
    config = {"": default_qconfig, "object_type": [("aten::hardswish", FIXED)]}
    assert ("aten::hardswish", "FixedQParamsObserver") in observers_of(config)
    assert ("aten::gelu", "MinMaxObserver") in observers_of(config)
    seen = observers_of({"": default_qconfig, "first": FIXED})
    assert ("x", "MinMaxObserver") in seen
    convs = [kind for given, kind in seen if given == "aten::conv2d"]
    assert sorted(convs) == ["FixedQParamsObserver", "MinMaxObserver"]


def test_fixed_qparams_everywhere_are_of_inputs_too() -> None:
    assert {kind for _, kind in observers_of({"": FIXED})} == {"FixedQParamsObserver"}
