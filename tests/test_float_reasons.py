"""Ops that stay float: the reason is in coverage, and the convolutions around them are int8."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import jitquant
from jitquant import _C
from tests.test_ops import Mode, quantize, run, sqnr

pytestmark = pytest.mark.filterwarnings(
    "ignore:The TorchScript type system doesn't support instance-level annotations:UserWarning",
    "ignore:Converting a tensor to a Python boolean:torch.jit.TracerWarning",
)

Function = Callable[[Tensor], Tensor]

CHANNELS_LAST = "on channels-last memory, which int8 convolutions leave, its int8 kernel takes "
AS_FLOAT = " times as long as float between dequantize and quantize"

# Reasons of rows of the op table; all others are known without looking at the op.
OF_FILTERS = {
    "local_response_norm": f"{CHANNELS_LAST}1.3 to 3.2{AS_FLOAT}",
    "reflect_pad": f"{CHANNELS_LAST}0.9 to 2.6{AS_FLOAT}, and loses that layout",
    "replicate_pad": "torch has no int8 kernel for it",
}

# What stays float between two convolutions; the last kind is the one that the reason is of.
FUNCTIONS: dict[str, tuple[Function, str]] = {
    "gelu": (F.gelu, "aten::gelu"),
    "silu": (F.silu, "aten::silu"),
    "mish": (F.mish, "aten::mish"),
    "softplus": (F.softplus, "aten::softplus"),
    "log_sigmoid": (F.logsigmoid, "aten::log_sigmoid"),
    "softshrink": (F.softshrink, "aten::softshrink"),
    "hardshrink": (F.hardshrink, "aten::hardshrink"),
    "glu": (lambda y: F.glu(torch.cat([y, y], 1), 1), "aten::glu"),
    "softmax": (lambda y: F.softmax(y, 1), "aten::softmax"),
    "log_softmax": (lambda y: F.log_softmax(y, 1), "aten::log_softmax"),
    "bilinear": (
        lambda y: F.interpolate(y, scale_factor=2.0, mode="bilinear"),
        "aten::upsample_bilinear2d",
    ),
    "bicubic": (
        lambda y: F.interpolate(y, scale_factor=2.0, mode="bicubic"),
        "aten::upsample_bicubic2d",
    ),
    "adaptive_max_pool2d": (lambda y: F.adaptive_max_pool2d(y, 3), "aten::adaptive_max_pool2d"),
    "lp_pool2d": (lambda y: F.lp_pool2d(y, 2.0, 2), "aten::abs"),
    "local_response_norm": (lambda y: F.local_response_norm(y, 2), "aten::pad"),
    "reflect_pad": (lambda y: F.pad(y, (1, 1, 1, 1), mode="reflect"), "aten::pad"),
    "replicate_pad": (lambda y: F.pad(y, (1, 1, 1, 1), mode="replicate"), "aten::pad"),
    "pixel_shuffle": (
        lambda y: F.pixel_shuffle(y.flip(1), 2).repeat(1, 4, 1, 1),
        "aten::pixel_shuffle",
    ),
    "roll": (lambda y: y.roll(1, 3), "aten::roll"),
    "hstack": (lambda y: torch.hstack([y, y])[:, :8], "aten::hstack"),
    "maximum": (lambda y: torch.maximum(y, -0.5 * y), "aten::maximum"),
    "minimum": (lambda y: torch.min(y, -0.5 * y), "aten::min"),
    "amax": (lambda y: y - y.amax((2, 3), keepdim=True), "aten::amax"),
    "abs": (torch.abs, "aten::abs"),
    "exp": (torch.exp, "aten::exp"),
    "sum": (lambda y: y + y.sum(1, keepdim=True), "aten::sum"),
    "cumsum": (lambda y: y.cumsum(2), "aten::cumsum"),
    "where": (lambda y: torch.where(y > 0.5, y, 0.25 * y), "aten::where"),
    "masked_fill": (lambda y: y.masked_fill(y > 0.5, 0.3), "aten::masked_fill"),
    "matmul": (lambda y: torch.matmul(y, y.transpose(2, 3)), "aten::matmul"),
}


class Between(nn.Module):
    """A function between two 3x3 convolutions of 8 channels."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.before = nn.Conv2d(4, 8, 3)
        self.after = nn.Conv2d(8, 8, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(self.function(self.before(x)))
        return y


def between(function: Function) -> nn.Module:
    """As a module with source, which torch.jit.script needs."""
    torch.manual_seed(0)
    module = Between(function)
    return fx.GraphModule(module, fx.Tracer().trace(module)).eval()


def reasons() -> dict[str, str]:
    return {row.op: row.reason for row in _C.float_ops()}


def test_rows_are_of_ops_that_torch_has_and_no_row_makes_int8() -> None:
    torch_has: set[str] = {schema.name for schema in torch._C._jit_get_all_schemas()}
    int8 = {row.op.split(".")[0] for row in _C.supported_ops()}
    ops = [row.op for row in _C.float_ops()]
    assert sorted(set(ops)) == sorted(ops)
    assert set(ops) <= torch_has - int8


@pytest.mark.parametrize("mode", ["scripted", "traced"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_convolutions_around_a_float_op_are_int8(name: str, mode: Mode) -> None:
    function, op = FUNCTIONS[name]
    inputs = (torch.randn(2, 4, 8, 8),)
    model = quantize(between(function), inputs, mode)
    covered = jitquant.coverage(model.int8)
    assert [row.op for row in covered.int8].count("aten::conv2d") == 2
    reason = OF_FILTERS.get(name) or reasons()[op]
    assert (op, reason) in {(row.op, row.reason) for row in covered.float}
    assert sqnr(run(model.int8, inputs), run(model.float_model, inputs)) >= 25.0


@pytest.mark.parametrize("name", ["gelu", "silu", "abs", "bilinear", "adaptive_max_pool2d"])
def test_channels_last_survives_the_float_op(name: str) -> None:
    """The second convolution would copy a contiguous tensor."""
    inputs = (torch.randn(2, 4, 8, 8),)
    model = quantize(between(FUNCTIONS[name][0]), inputs).int8
    graph: Any = model.graph.copy()
    _, second = graph.findAllNodes("quantized::conv2d")
    graph.eraseOutput(0)
    graph.registerOutput(second.inputsAt(0))
    interpret: Any = torch._C.__dict__["_jit_interpret_graph"]
    read = interpret(graph, (model._c, *inputs))
    assert read.is_quantized and read.is_contiguous(memory_format=torch.channels_last)


class Embedded(nn.Module):
    """A table of 50 rows, looked up before a linear layer; `mode` is that of EmbeddingBag."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.rows: nn.Module = nn.EmbeddingBag(50, 32, mode=mode) if mode else nn.Embedding(50, 32)
        self.linear = nn.Linear(32, 8)

    def forward(self, indices: Tensor) -> Tensor:
        y: Tensor = self.linear(self.rows(indices))
        return y


@pytest.mark.parametrize("mode", ["scripted", "traced"])
@pytest.mark.parametrize("bag", ["", "sum", "mean", "max"])
def test_embeddings_are_float_before_an_int8_linear(bag: str, mode: Mode) -> None:
    torch.manual_seed(0)
    inputs = (torch.randint(0, 50, (6, 5)),)
    model = quantize(Embedded(bag).eval(), inputs, mode)
    covered = jitquant.coverage(model.int8)
    assert "aten::linear" in [row.op for row in covered.int8]
    op = "aten::embedding_bag" if bag else "aten::embedding"
    assert (op, reasons()[op]) in {(row.op, row.reason) for row in covered.float}
    assert sqnr(run(model.int8, inputs), run(model.float_model, inputs)) >= 25.0


# --- reasons that depend on the model around an op ---


def covered(
    model: nn.Module, *inputs: Any, qconfig: Any = jitquant.default_qconfig
) -> jitquant.Coverage:
    """The coverage of a scripted model, calibrated on one sample."""
    prepared = jitquant.prepare_jit(torch.jit.script(model.eval()), {"": qconfig})
    prepared(*inputs)
    return jitquant.coverage(jitquant.convert_jit(prepared))


def float_reasons(coverage: jitquant.Coverage) -> list[tuple[str, str]]:
    return [(op.op, op.reason) for op in coverage.float]


def line_of(model: type[nn.Module], text: str) -> str:
    """ "(file:line)" of the first line of a class that holds `text`."""
    lines, first = inspect.getsourcelines(model)
    (offset, *_) = [i for i, line in enumerate(lines) if text in line]
    return f"({Path(__file__).name}:{first + offset})"


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.other = nn.Conv2d(3, 3, 3, padding=1)


class SkipsABranch(Layers):
    """Ops of every role, and one that is float anyway."""

    def forward(self, x: Tensor, deep: bool) -> Tensor:
        y: Tensor = self.conv(x)
        if deep:
            y = F.relu(F.relu(self.other(y)) + y)
            y = F.gelu(F.relu6(F.avg_pool2d(y * 2.0 / 3.0, 1)))
            y = F.hardsigmoid(torch.cat([y, y], 1)[:, :3].mean(1, keepdim=True))
        return y


NEVER = "its branch never ran in calibration, or on empty tensors only"


def test_all_ops_of_a_branch_that_never_ran_say_so() -> None:
    x = torch.randn(1, 3, 8, 8)
    result = covered(SkipsABranch(), x, False)
    assert [op.op for op in result.int8] == ["aten::conv2d"]
    assert len(result.float) == 14
    assert {op.reason for op in result.float} == {NEVER}


def test_a_branch_that_ran_has_other_reasons() -> None:
    result = covered(SkipsABranch(), torch.randn(1, 3, 8, 8), True)
    assert NEVER not in {op.reason for op in result.float}
    assert result.never_ran == ()
    assert result.summary().splitlines()[0] == f"{len(result.int8)} of {len(result.ops)} ops int8"


def test_summary_counts_ops_that_never_ran_apart() -> None:
    result = covered(SkipsABranch(), torch.randn(1, 3, 8, 8), False)
    assert result.never_ran == result.float
    assert result.summary() == (
        "1 of 1 ops int8\n"
        "  not counted: 14 of branches or loops that never ran in calibration, or on empty tensors "
        "only"
    )


class FloatBranch(Layers):
    """A branch that nothing but a record of shapes tells anything of."""

    def forward(self, x: Tensor, deep: bool) -> Tensor:
        if deep:
            x = F.gelu(x).exp()
        y: Tensor = self.conv(x)
        return y


@pytest.mark.parametrize("ran", [True, False])
def test_a_branch_of_float_ops_is_known_to_have_run(ran: bool) -> None:
    reasons_now = {op.reason for op in covered(FloatBranch(), torch.randn(1, 3, 8, 8), ran).float}
    assert (reasons_now == {NEVER}) != ran
    assert reasons_now == {NEVER} or NEVER not in reasons_now


class Loops(Layers):
    def forward(self, x: Tensor, count: int) -> Tensor:
        for _ in range(count):
            x = F.relu(self.conv(x))
        y: Tensor = self.other(x)
        return y


def test_ops_of_a_loop_that_never_ran() -> None:
    result = covered(Loops(), torch.randn(1, 3, 8, 8), 0)
    assert float_reasons(result) == [
        ("aten::conv2d", NEVER.replace("branch", "loop")),
        ("aten::relu", NEVER.replace("branch", "loop")),
    ]


def test_a_part_left_float_by_the_user_keeps_that_reason() -> None:
    prepared = jitquant.prepare_jit(
        torch.jit.script(Loops().eval()), {"": jitquant.default_qconfig, "conv": None}
    )
    prepared(torch.randn(1, 3, 8, 8), 0)
    left = dict(float_reasons(jitquant.coverage(jitquant.convert_jit(prepared))))
    assert left["aten::conv2d"] == "its qconfig is None"


class BetweenFloatOps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(x).transpose(1, 2).relu() * 2.0
        y = F.max_pool1d(F.avg_pool1d(-y.flatten(1)[:, None], 1), 1)
        return F.gelu(y.clamp(0.0, 1.0))


def test_only_ops_that_move_values_are_said_to_move_values() -> None:
    result = covered(BetweenFloatOps(), torch.randn(1, 3, 8))
    moves = "it moves values between float ops"
    alone = "no int8 op gives its input or reads its result"
    assert [entry for entry in float_reasons(result) if entry[0] != "aten::gelu"] == [
        ("aten::transpose", moves),
        ("aten::relu", alone),
        ("aten::mul", alone),
        ("aten::flatten", moves),
        ("aten::slice", moves),
        ("aten::unsqueeze", moves),
        ("aten::neg", alone),
        ("aten::avg_pool1d", alone),
        ("aten::max_pool1d", alone),
        ("aten::clamp", "no int8 op before it can absorb it"),
    ]


class AbsorbedByNothing(Layers):
    def forward(self, x: Tensor, i: Tensor) -> Tensor:
        y: Tensor = self.conv(F.relu(x + i))
        return y


def test_relu_of_an_op_that_calibration_makes_float() -> None:
    """The relu is observed, so what reads it is int8."""
    x, i = torch.randn(1, 3, 8, 8), torch.ones(1, 3, 8, 8, dtype=torch.int64)
    result = covered(AbsorbedByNothing(), x, i)
    assert float_reasons(result) == [
        ("aten::add", "its input 'i' is Long, not float32"),
        ("aten::relu", "the op that would absorb it stays float"),
    ]


class Vanishes(Layers):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        z: Tensor = self.other(F.gelu(x) * 1e-7) + self.other(F.relu(y - 100.0))
        return z


def test_values_without_qparams_are_named() -> None:
    result = covered(Vanishes(), torch.randn(1, 3, 8, 8))
    mul = f"its input, given by aten::mul in the top module {line_of(Vanishes, '1e-7')},"
    found = [(op, reason) for op, reason in float_reasons(result) if "its" in reason]
    relu = f"its input, given by aten::relu in the top module {line_of(Vanishes, '100.0')},"
    assert (
        "aten::conv2d",
        f"{mul} spanned less than 3.1e-05 in calibration, too little for int8",
    ) in found
    assert ("aten::conv2d", f"{relu} was zero in all of calibration") in found


class Empties(Layers):
    def forward(self, x: Tensor, some: bool) -> Tensor:
        y: Tensor = self.conv(x)
        if some:
            y = self.other(y[:, :, :0, :0].reshape(0, 3, 8, 8)).sum() + self.other(y)
        return y


def test_value_that_was_empty_in_a_branch_that_ran() -> None:
    result = covered(Empties(), torch.randn(1, 3, 8, 8), True)
    convs = [reason for op, reason in float_reasons(result) if op == "aten::conv2d"]
    twice = "its weight is in the file twice, packed for aten::conv2d in 'other' too"
    assert convs == [f"its output was empty in all of calibration; {twice}"]


class WritesAView(Layers):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        view = y[0]
        view.mul_(2.0)
        z: Tensor = self.other(y)
        return z


def test_the_op_that_writes_in_place_is_named() -> None:
    result = covered(WritesAView(), torch.randn(1, 3, 8, 8))
    where = line_of(WritesAView, "mul_")
    reason = f"aten::mul_ in the top module {where} writes its memory in place"
    convs = [op.reason for op in result.ops if op.op == "aten::conv2d"]
    assert convs == [reason, reason]
