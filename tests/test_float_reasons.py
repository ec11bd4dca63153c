"""Ops that stay float: the reason is in coverage, and the convolutions around them are int8."""

from collections.abc import Callable
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
    assert (op, reasons()[op]) in {(row.op, row.reason) for row in covered.float}
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
