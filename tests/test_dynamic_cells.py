"""Dynamic quantization of LSTMCell, GRUCell and RNNCell, step by step and in loops."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jitquant
from jitquant import QConfig
from jitquant._engine import engine_set
from tests.models import assert_untouched, graph_text, images, reloaded, sqnr
from tests.test_dynamic import DYNAMIC, ENGINES, INT8

HALF = jitquant.float16_dynamic_qconfig
X = images(3, 12)


class Lstm(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(12, 16, **options)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, c = self.cell(x)
        h, c = self.cell(x + 1, (h, c))
        return h, c


class Gru(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.cell = nn.GRUCell(12, 16, **options)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.cell(x + 1, self.cell(x)),)


class Rnn(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.cell = nn.RNNCell(12, 16, **options)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.cell(x + 1, self.cell(x)),)


CELLS: dict[str, Callable[[], nn.Module]] = {
    "lstm": Lstm,
    "lstm without bias": lambda: Lstm(bias=False),
    "gru": Gru,
    "gru without bias": lambda: Gru(bias=False),
    "tanh": Rnn,
    "relu": lambda: Rnn(nonlinearity="relu", bias=False),
}


def build(name: str, how: str) -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    module = CELLS[name]().eval()
    model: torch.jit.ScriptModule = (
        torch.jit.script(module) if how == "script" else torch.jit.trace(module, X)
    )
    return model


def linear_ops(model: torch.jit.ScriptModule) -> list[str]:
    names = re.findall(r" = ((?:aten|quantized)::\w+)\(", graph_text(model))
    return [name for name in names if re.search("lstm|gru|rnn|linear|cell|prepack", name)]


@pytest.mark.parametrize("how", ["script", "trace"])
@pytest.mark.parametrize("name", CELLS)
def test_cells(name: str, how: str) -> None:
    model = build(name, how)
    for qconfig in (*INT8, HALF):
        with assert_untouched(model):
            result = reloaded(jitquant.quantize_dynamic_jit(model, {"": qconfig}))
        op = "quantized::linear_dynamic" + "_fp16" * (qconfig == HALF)
        assert linear_ops(result) == [op] * 4
        with torch.no_grad():
            for expected, actual in zip(model(X), result(X), strict=True):
                assert sqnr(expected, actual) > (65 if qconfig == HALF else 35)
                assert actual.shape == expected.shape
            if how == "script":
                assert result(X[0])[0].shape == (16,)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["lstm", "gru", "tanh"])
def test_engines(engine: str, name: str) -> None:
    model = build(name, "script")
    with engine_set(engine), torch.no_grad():
        result = reloaded(jitquant.quantize_dynamic_jit(model, DYNAMIC))
        assert sqnr(model(X)[0], result(X)[0]) > 35


@pytest.mark.parametrize("qconfig", [INT8[1], HALF])
@pytest.mark.parametrize("name", ["lstm", "gru", "relu"])
def test_debug_computes_the_same_in_float(name: str, qconfig: QConfig) -> None:
    model = build(name, "script")
    debug = reloaded(jitquant.quantize_dynamic_jit(model, {"": qconfig}, debug=True))
    result = jitquant.quantize_dynamic_jit(model, {"": qconfig})
    assert linear_ops(debug) == ["aten::linear"] * 4
    assert torch.equal(debug.cell.weight_ih, model.cell.weight_ih)
    with torch.no_grad():
        assert sqnr(result(X)[0], debug(X)[0]) > 60


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(12, 16)
        self.other = nn.GRUCell(16, 16)

    def forward(self, x: Tensor, steps: int) -> Tensor:
        state = (torch.zeros(3, 16), torch.zeros(3, 16))
        for _ in range(steps):
            state = self.cell(x, state)
        h = state[0]
        y: Tensor = self.other(h) if steps > 2 else self.other(h, h)
        return y


def test_branches_and_loops_hold_packed_weights() -> None:
    torch.manual_seed(0)
    model = torch.jit.script(Loop().eval())
    result = reloaded(jitquant.quantize_dynamic_jit(model, DYNAMIC))
    assert linear_ops(result) == ["quantized::linear_dynamic"] * 6
    packed = set(re.findall(r"name=\"(\w*packed_params\w*)\"", graph_text(result)))
    assert sorted(packed) == [
        "cell_packed_params",
        "cell_packed_params_1",
        "other_packed_params",
        "other_packed_params_1",
    ]
    for steps in (1, 20):
        assert sqnr(model(X, steps), result(X, steps)) > 35


@pytest.mark.parametrize("name", ["lstm", "gru", "tanh", "relu"])
def test_static_qconfigs_leave_them_float(name: str) -> None:
    model = build(name, "script")
    result = jitquant.quantize_jit(model, {"": jitquant.default_qconfig}, lambda m: m(X))
    reason = "torch's int8 form computes its scales at run time: a dynamic qconfig makes it int8"
    cells = [op for op in jitquant.coverage(result).ops if op.op.endswith("_cell")]
    assert [(op.int8, op.reason) for op in cells] == [(False, reason)] * 2


def test_a_type_in_the_mapping() -> None:
    torch.manual_seed(0)
    model = torch.jit.script(nn.Sequential(nn.Linear(12, 12), nn.GRUCell(12, 16)).eval())
    mapping = jitquant.QConfigMapping().set_object_type(nn.GRUCell, INT8[1])
    result = jitquant.quantize_dynamic_jit(model, mapping)
    assert linear_ops(result) == ["aten::linear", *["quantized::linear_dynamic"] * 2]
