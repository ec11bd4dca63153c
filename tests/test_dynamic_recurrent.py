"""Dynamic quantization of LSTM, GRU and their cells: numbers, states, packed sequences, files."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import jitquant
from jitquant import QConfig
from jitquant._engine import engine_set
from jitquant.observers import PlaceholderObserver
from tests.models import assert_untouched, graph_text, images, reloaded, sqnr
from tests.test_dynamic import DYNAMIC, ENGINES, INT8

HALF = jitquant.float16_dynamic_qconfig
QCONFIGS = (*INT8, HALF)
MINIMUM = {HALF: 60.0}
"""Least SQNR in dB against float: 8 bits leave 40 or more of random layers, float16 70 or more."""

X = images(4, 7, 12)
LENGTHS = torch.tensor([7, 5, 5, 2])
GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "layers": {"num_layers": 3},
    "both ways": {"bidirectional": True},
    "all": {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.5},
    "no bias": {"bias": False, "batch_first": True},
}


class Lstm(nn.Module):
    def __init__(self, **geometry: Any) -> None:
        super().__init__()
        self.rnn = nn.LSTM(12, 16, **geometry)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.rnn(x)
        y, (h, c) = self.rnn(x + 1, (h, c))
        return y, h, c


class Gru(nn.Module):
    def __init__(self, **geometry: Any) -> None:
        super().__init__()
        self.rnn = nn.GRU(12, 16, **geometry)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.rnn(x)
        y, h = self.rnn(x + 1, h)
        return y, h


class PackedLstm(nn.Module):
    def __init__(self, **geometry: Any) -> None:
        super().__init__()
        self.rnn = nn.LSTM(12, 16, **geometry)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.rnn(pack_padded_sequence(x, lengths, batch_first=True))
        return pad_packed_sequence(y, batch_first=True)[0], h, c


class PackedGru(nn.Module):
    def __init__(self, **geometry: Any) -> None:
        super().__init__()
        self.rnn = nn.GRU(12, 16, **geometry)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.rnn(pack_padded_sequence(x, lengths, batch_first=True))
        return pad_packed_sequence(y, batch_first=True)[0], h


LAYERS = {"lstm": Lstm, "gru": Gru}
PACKED = {"lstm": PackedLstm, "gru": PackedGru}


def build(
    module: Callable[..., nn.Module], how: str, *inputs: Tensor, **geometry: Any
) -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    layer = module(**geometry).eval()
    model: torch.jit.ScriptModule = (
        torch.jit.script(layer) if how == "script" else torch.jit.trace(layer, inputs)
    )
    return model


def recurrent_ops(model: torch.jit.ScriptModule) -> list[str]:
    names = re.findall(r" = ((?:aten|quantized)::\w+)\(", graph_text(model))
    return [name for name in names if re.search("lstm|gru|rnn|linear|cell|prepack", name)]


def assert_near(
    model: torch.jit.ScriptModule, result: Any, inputs: tuple[Tensor, ...], decibels: float
) -> None:
    with torch.no_grad():
        for expected, actual in zip(model(*inputs), result(*inputs), strict=True):
            assert actual.shape == expected.shape
            assert sqnr(expected, actual) > decibels


@pytest.mark.parametrize("how", ["script", "trace"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("kind", LAYERS)
def test_sequences(kind: str, geometry: str, how: str) -> None:
    """Twice in one model: the states of the first run go into the second."""
    model = build(LAYERS[kind], how, X, **GEOMETRIES[geometry])
    for qconfig in QCONFIGS:
        with assert_untouched(model):
            result = reloaded(jitquant.quantize_dynamic_jit(model, {"": qconfig}))
        assert recurrent_ops(result) == [f"aten::quantized_{kind}"] * 2
        assert_near(model, result, (X,), MINIMUM.get(qconfig, 35.0))
        layers = [op for op in jitquant.coverage(result).ops if op.op == f"aten::{kind}"]
        how_it_runs = f"aten::quantized_{kind}" + ", with float16 weights" * (qconfig == HALF)
        assert [(op.int8, op.reason) for op in layers] == [(qconfig != HALF, how_it_runs)] * 2


@pytest.mark.parametrize("how", ["script", "trace"])
@pytest.mark.parametrize("kind", LAYERS)
def test_packed_sequences(kind: str, how: str) -> None:
    model = build(PACKED[kind], how, X, LENGTHS, **GEOMETRIES["all"])
    for qconfig in (INT8[1], HALF):
        result = reloaded(jitquant.quantize_dynamic_jit(model, {"": qconfig}))
        assert recurrent_ops(result) == [f"aten::quantized_{kind}"]
        assert_near(model, result, (X, LENGTHS), MINIMUM.get(qconfig, 35.0))


@pytest.mark.parametrize("kind", LAYERS)
def test_other_sizes_and_no_batch(kind: str) -> None:
    """torch.nn takes a sequence without a batch dimension, and batches without elements."""
    model = build(LAYERS[kind], "script", num_layers=2)
    result = jitquant.quantize_dynamic_jit(model, DYNAMIC)
    assert_near(model, result, (images(40, 1, 12),), 35)
    assert_near(model, result, (images(1, 9, 12),), 35)
    assert_near(model, result, (images(5, 12),), 35)


def step_rounded(x: Tensor, reduce_range: bool) -> Tensor:
    """8 bits, or 7, with the range of `x`."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    if low == high:
        return x
    step = (high - low) / (127 if reduce_range else 255)
    zero_point = round(-low / step)
    return ((x / step).round() + zero_point).clamp(0, 255).sub(zero_point) * step


def emulated_lstm(x: Tensor, rnn: Any, reduce_range: bool) -> Tensor:
    """One layer's outputs by the formulas: the input has one scale, each step's state its own."""
    inputs = step_rounded(x, reduce_range) @ rnn.weight_ih_l0.T + rnn.bias_ih_l0
    h = c = torch.zeros(x.shape[1], 16)
    outputs = []
    for step in inputs:
        gates = step + step_rounded(h, reduce_range) @ rnn.weight_hh_l0.T + rnn.bias_hh_l0
        i, f, g, o = gates.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs)


class Outputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(12, 16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rnn(x)[0]
        return y


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("reduce_range", [False, True])
def test_lstm_is_what_the_formulas_say(engine: str, reduce_range: bool) -> None:
    """Weights that are multiples of their scale leave only the rounding of values.

    A value at the edge of two steps may fall to either, which is far less than 8 bits cost.
    """
    model = build(Outputs, "script")
    for weight in (model.rnn.weight_ih_l0, model.rnn.weight_hh_l0):
        weight.data = (weight.data * 256).round() / 256
        weight.data[:, 0] = 127 / 256
        weight.data[:, 1] = -1 / 256  # pairs of neighbours do not overflow
    activation = PlaceholderObserver.with_args(
        dtype=torch.quint8, is_dynamic=True, reduce_range=reduce_range
    )
    weight = jitquant.observers.FixedQParamsObserver.with_args(
        scale=1 / 256, zero_point=0, dtype=torch.qint8, qscheme=torch.per_tensor_symmetric
    )
    with engine_set(engine), torch.no_grad():
        result = jitquant.quantize_dynamic_jit(model, {"": QConfig(activation, weight)})
        ignored = reduce_range and engine == "qnnpack"  # by its kernels
        expected = emulated_lstm(X, model.rnn, reduce_range and not ignored)
        assert sqnr(model(X), result(X)) < 55
        assert sqnr(expected, result(X)) > 65


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", LAYERS)
def test_engines(engine: str, kind: str) -> None:
    model = build(LAYERS[kind], "script", **GEOMETRIES["all"])
    with engine_set(engine):
        result = reloaded(jitquant.quantize_dynamic_jit(model, DYNAMIC))
        assert_near(model, result, (X,), 35)


def test_files_are_small() -> None:
    """A quarter of the weights, and no second copy of them. torch saves float16 as float32."""
    model = torch.jit.script(nn.Sequential(nn.LSTM(128, 256, 2)).eval())
    size = len(model.save_to_buffer())
    int8, half = (
        len(jitquant.quantize_dynamic_jit(model, {"": each}).save_to_buffer())
        for each in (INT8[1], HALF)
    )
    assert int8 < 0.28 * size
    assert half < 1.01 * size


@pytest.mark.parametrize("kind", LAYERS)
def test_debug_rounds_weights_and_input(kind: str) -> None:
    """Hidden states stay as they are, so that debug is nearer to float than int8 is."""
    model = build(LAYERS[kind], "script")
    debug = reloaded(jitquant.quantize_dynamic_jit(model, DYNAMIC, debug=True))
    assert recurrent_ops(debug) == [f"aten::{kind}"] * 2
    assert torch.equal(debug.rnn.weight_ih_l0, model.rnn.weight_ih_l0)
    assert graph_text(debug).count("quantize_per_channel(") == 4
    result = jitquant.quantize_dynamic_jit(model, DYNAMIC)
    assert_near(debug, result, (X,), 38)
    assert 30 < sqnr(model(X)[0], debug(X)[0]) < 60


# --- control flow ---


class Control(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(16, 16)
        self.other = nn.GRU(16, 16)

    def forward(self, x: Tensor, rounds: int) -> Tensor:
        x = self.rnn(x)[0] if rounds > 2 else self.other(self.rnn(x)[0])[0]
        for _ in range(rounds):
            x = x + self.rnn(x)[0]
        return x


def test_branches_and_loops_hold_packed_weights() -> None:
    model = build(Control, "script")
    result = reloaded(jitquant.quantize_dynamic_jit(model, DYNAMIC))
    kinds = ["aten::quantized_lstm"] * 2 + ["aten::quantized_gru", "aten::quantized_lstm"]
    assert sorted(recurrent_ops(result)) == sorted(kinds)
    packed = re.findall(r"name=\"(\w*packed_params\w*)\"", graph_text(result))
    assert sorted(set(packed)) == ["other_packed_params", "rnn_packed_params"]
    x = images(3, 2, 16)
    for rounds in (1, 3):
        assert sqnr(model(x, rounds), result(x, rounds)) > 35


# --- what stays float ---


@pytest.mark.parametrize(
    ("layer", "op", "reason"),
    [
        (nn.LSTM(12, 16, proj_size=5), "lstm", "torch has no int8 kernel for projected states"),
        (nn.RNN(12, 16), "rnn_tanh", "torch has no int8 kernel for it"),
        (nn.RNN(12, 16, nonlinearity="relu"), "rnn_relu", "torch has no int8 kernel for it"),
    ],
)
def test_layers_without_kernels(layer: nn.Module, op: str, reason: str) -> None:
    model = torch.jit.script(nn.Sequential(layer).eval())
    result = reloaded(jitquant.quantize_dynamic_jit(model, DYNAMIC))
    assert (f"aten::{op}", reason) in [
        (each.op, each.reason) for each in jitquant.coverage(result).float
    ]
    assert torch.equal(result(X)[0], model(X)[0])


ONLY_DYNAMIC = "torch's int8 form computes its scales at run time: a dynamic qconfig makes it int8"


@pytest.mark.parametrize("kind", LAYERS)
def test_static_qconfigs_leave_them_float(kind: str) -> None:
    model = build(LAYERS[kind], "script")
    static = {"": jitquant.default_qconfig}
    result = jitquant.quantize_jit(model, static, lambda m: m(X))
    reasons = [op.reason for op in jitquant.coverage(result).float if op.op == f"aten::{kind}"]
    assert reasons == [ONLY_DYNAMIC] * 2
    with pytest.raises(jitquant.JitQuantValueError, match="the qconfig of global is static"):
        jitquant.quantize_dynamic_jit(model, static)


@pytest.mark.parametrize("kind", LAYERS)
def test_left_float(kind: str) -> None:
    model = build(LAYERS[kind], "script")
    config = {"": jitquant.default_dynamic_qconfig, "rnn": None}
    result = jitquant.quantize_dynamic_jit(model, config)
    reasons = [op.reason for op in jitquant.coverage(result).float if op.op == f"aten::{kind}"]
    assert reasons == ["its qconfig is None"] * 2
    assert_near(model, result, (X,), 120)


def test_values_beyond_float16_stay_float() -> None:
    model = build(Lstm, "script")
    model.rnn.weight_hh_l0.data[0, 0] = 1e6
    result = jitquant.quantize_dynamic_jit(model, {"": HALF})
    reasons = {op.op: op.reason for op in jitquant.coverage(result).float}
    assert reasons["aten::lstm"] == "its weights are too large for float16"


def test_weights_that_are_not_finite() -> None:
    model = build(Lstm, "script")
    model.rnn.weight_hh_l0.data[0, 0] = torch.nan
    message = r"the weight of aten::lstm in 'rnn' \(\S+\) holds NaN or infinite values"
    with assert_untouched(model), pytest.raises(jitquant.JitQuantError, match=message):
        jitquant.quantize_dynamic_jit(model, DYNAMIC)


class Computed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(64, 12))
        self.u = nn.Parameter(torch.randn(64, 16))

    def forward(self, x: Tensor, factor: Tensor) -> Tensor:
        weights: list[Tensor] = [self.w * factor, self.u]
        zeros = torch.zeros(1, x.size(1), 16)
        y, _, _ = torch.lstm(x, [zeros, zeros], weights, False, 1, 0.0, False, False, False)
        return y


def test_weights_computed_at_run_time() -> None:
    model = build(Computed, "script")
    result = jitquant.quantize_dynamic_jit(model, DYNAMIC)
    reasons = {op.op: op.reason for op in jitquant.coverage(result).float}
    assert reasons["aten::lstm"] == "its weight is computed at run time"
    assert torch.equal(result(X, torch.tensor(2.0)), model(X, torch.tensor(2.0)))


# --- static and dynamic in one model ---


class Speech(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(12, 24, 3, padding=1)
        self.rnn = nn.LSTM(24, 16, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(self.conv(x.transpose(1, 2)).relu().transpose(1, 2))
        z: Tensor = self.head(y[:, -1])
        return z


@pytest.mark.parametrize("how", ["script", "trace"])
def test_static_convolutions_before_a_dynamic_lstm(how: str) -> None:
    model = build(Speech, how, X)
    mapping = (
        jitquant.QConfigMapping()
        .set_global(jitquant.get_default_qconfig())
        .set_object_type(nn.LSTM, jitquant.per_channel_dynamic_qconfig)
    )
    result = reloaded(jitquant.quantize_jit(model, mapping, lambda m: m(X)))
    text = graph_text(result)
    for op in ("quantized::conv1d_relu(", "aten::quantized_lstm(", "quantized::linear("):
        assert text.count(op) == 1
    assert "prepack" not in text
    assert sqnr(model(X), result(X)) > 25
