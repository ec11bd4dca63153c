"""Dynamic quantization: what users call, the numbers that come out, and what coverage says."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.ao.quantization as torch_ao
from torch import Tensor, nn
from torch.nn import functional

import jitquant
from jitquant import JitQuantError, JitQuantValueError, QConfig
from jitquant._engine import engine_set
from jitquant.observers import MinMaxObserver, PlaceholderObserver
from tests.models import assert_untouched, graph_text, images, reloaded, sqnr

DYNAMIC = {"": jitquant.per_channel_dynamic_qconfig}
INT8 = (jitquant.default_dynamic_qconfig, jitquant.per_channel_dynamic_qconfig)
ENGINES = [e for e in torch.backends.quantized.supported_engines if e != "none"]


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 24)
        self.second = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(functional.relu(self.first(x)))
        return y


def mlp() -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    model: torch.jit.ScriptModule = torch.jit.script(Mlp().eval())
    return model


X = images(6, 16)


def ops(model: torch.jit.ScriptModule) -> list[str]:
    """All ops with weights, as the graph has them."""
    names = re.findall(r" = ((?:aten|quantized)::\w+)\(", graph_text(model))
    return [n for n in names if n.startswith("quantized::") or n.endswith(("linear", "conv2d"))]


def emulated(x: Tensor, linear: nn.Linear, per_channel: bool) -> Tensor:
    """By the formulas, in float64: 8-bit values with the range of `x`, 8-bit symmetric weights."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = (high - low) / 255
    zero_point = round(-low / step)
    rounded = ((x.double() / step).round() + zero_point).clamp(0, 255).sub(zero_point) * step
    weight = linear.weight.detach().double()
    largest = weight.abs().amax(1, keepdim=True) if per_channel else weight.abs().max()
    pairs = weight.reshape(len(weight), -1, 2)
    same_sign = (pairs.prod(2) > 0) * pairs.sum(2).abs()
    safe = same_sign.amax(1, keepdim=True) if per_channel else same_sign.max()
    scale = torch.maximum(largest / 127.5, safe / 127)
    weight = (weight / scale).round().clamp(-128, 127) * scale
    return functional.linear(rounded, weight, linear.bias.detach().double())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("per_channel", [False, True])
def test_one_linear_is_what_the_formulas_say(engine: str, per_channel: bool) -> None:
    """Of 90 outputs, those of one value at the edge of two steps may differ by that step."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 15).eval()
    with engine_set(engine):
        result = jitquant.quantize_dynamic_jit(torch.jit.script(layer), {"": INT8[per_channel]})
        output = result(X)
    safe = engine != "qnnpack"  # which sums in 32 bits
    expected = emulated(X, layer, per_channel)
    if safe:
        torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-5)
    else:
        assert sqnr(expected, output) > 40


@pytest.mark.parametrize("qconfig", INT8)
def test_int8(qconfig: QConfig) -> None:
    model = mlp()
    with assert_untouched(model):
        result = reloaded(jitquant.quantize_dynamic_jit(model, {"": qconfig}))
    assert ops(result) == ["quantized::linear_relu_dynamic", "quantized::linear_dynamic"]
    assert [(op.op, op.int8, op.reason) for op in jitquant.coverage(result).ops] == [
        ("aten::linear", True, "quantized::linear_relu_dynamic"),
        ("aten::relu", True, "absorbed by aten::linear"),
        ("aten::linear", True, "quantized::linear_dynamic"),
    ]
    assert sqnr(model(X), result(X)) > 35
    assert sqnr(model(X[0:1]), result(X[0:1])) > 35
    assert result(X[:0]).shape == (0, 5)
    assert result(X.reshape(2, 3, 16)).shape == (2, 3, 5)


def test_float16() -> None:
    model = mlp()
    result = reloaded(jitquant.quantize_dynamic_jit(model, {"": jitquant.float16_dynamic_qconfig}))
    assert ops(result) == ["quantized::linear_relu_dynamic_fp16", "quantized::linear_dynamic_fp16"]
    assert [(op.int8, op.reason) for op in jitquant.coverage(result).ops] == [
        (False, "quantized::linear_relu_dynamic_fp16"),
        (False, "absorbed by aten::linear"),
        (False, "quantized::linear_dynamic_fp16"),
    ]
    halved = mlp()
    for parameter in halved.parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.half().float()
    torch.testing.assert_close(result(X), halved(X), rtol=0, atol=1e-6)
    assert not torch.equal(result(X), model(X))


def test_values_beyond_float16_stay_float() -> None:
    model = nn.Linear(16, 4).eval()
    model.weight.data[0, 0] = 1e6
    result = jitquant.quantize_dynamic_jit(
        torch.jit.script(model), {"": jitquant.float16_dynamic_qconfig}
    )
    assert jitquant.coverage(result).ops[0].reason == "its weights are too large for float16"
    torch.testing.assert_close(result(X), model(X))


@pytest.mark.parametrize("engine", ["onednn", "qnnpack"])
def test_float16_is_refused_where_there_is_none(engine: str) -> None:
    message = (
        f"the qconfig of global: the engine {engine} has no weights of float16, only x86 and "
        "fbgemm do. Use default_dynamic_qconfig, or set another engine."
    )
    config = {"": jitquant.float16_dynamic_qconfig}
    with engine_set(engine), pytest.raises(JitQuantValueError, match=re.escape(message)):
        jitquant.prepare_dynamic_jit(mlp(), config)
    prepared = jitquant.prepare_dynamic_jit(mlp(), config)
    with engine_set(engine), pytest.raises(JitQuantValueError, match="has no weights of float16"):
        jitquant.convert_dynamic_jit(prepared)


def test_in_steps_saved_between_and_in_place() -> None:
    model = mlp()
    expected = jitquant.quantize_dynamic_jit(model, DYNAMIC)
    prepared = reloaded(jitquant.prepare_dynamic_jit(model, DYNAMIC))
    torch.testing.assert_close(prepared(X), model(X))
    assert [op.reason for op in jitquant.coverage(prepared).ops] == [
        "int8, dynamic",
        "absorbed by aten::linear",
        "int8, dynamic",
    ]
    assert torch.equal(jitquant.convert_dynamic_jit(prepared)(X), expected(X))
    assert jitquant.quantize_dynamic_jit(model, DYNAMIC, inplace=True) is model
    assert torch.equal(model(X), expected(X))


@pytest.mark.parametrize("qconfig", [*INT8, jitquant.float16_dynamic_qconfig])
def test_debug_computes_the_same_in_float(qconfig: QConfig) -> None:
    model = mlp()
    debug = reloaded(jitquant.quantize_dynamic_jit(model, {"": qconfig}, debug=True))
    result = jitquant.quantize_dynamic_jit(model, {"": qconfig})
    assert ops(debug) == ["aten::linear", "aten::linear"]
    assert torch.equal(debug.first.weight, model.first.weight)
    assert sqnr(result(X), debug(X)) > 60


# --- wrong combinations ---

STATIC = jitquant.default_qconfig


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: jitquant.prepare_dynamic_jit(m, {"": STATIC}),
            "prepare_dynamic_jit: the qconfig of global is static, so it needs calibration. Use "
            "prepare_jit, which takes static and dynamic qconfigs in one mapping, or a dynamic "
            "qconfig such as default_dynamic_qconfig.",
        ),
        (
            lambda m: jitquant.quantize_dynamic_jit(m, {**DYNAMIC, "second": STATIC}),
            "quantize_dynamic_jit: the qconfig of module_name 'second' is static, so it needs "
            "calibration. Use quantize_jit, which",
        ),
        (
            lambda m: jitquant.prepare_jit(m, DYNAMIC),
            "prepare_jit: all qconfigs are dynamic, so there is nothing to calibrate. Use "
            "prepare_dynamic_jit, or a static qconfig such as get_default_qconfig().",
        ),
        (
            lambda m: jitquant.quantize_jit(m, DYNAMIC, lambda prepared: None),
            "quantize_jit: all qconfigs are dynamic, so there is nothing to calibrate. Use "
            "quantize_dynamic_jit",
        ),
        (
            lambda m: jitquant.convert_jit(jitquant.prepare_dynamic_jit(m, DYNAMIC)),
            "convert_jit: prepare_dynamic_jit prepared the model, which needs no calibration. Call "
            "convert_dynamic_jit.",
        ),
        (
            lambda m: jitquant.convert_dynamic_jit(jitquant.prepare_jit(m, {"": STATIC})),
            "convert_dynamic_jit: the model has static qconfigs, so prepare_jit prepared it. "
            "Calibrate it and call convert_jit.",
        ),
        (
            jitquant.convert_dynamic_jit,
            "convert_dynamic_jit: the model was not prepared. Call prepare_dynamic_jit, and "
            "convert that.",
        ),
    ],
)
def test_wrong_functions(call: Callable[[torch.jit.ScriptModule], object], message: str) -> None:
    model = mlp()
    with assert_untouched(model), pytest.raises(JitQuantValueError) as caught:
        call(model)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {nn.Linear},
            "qconfig_dict must be a dict of submodule names to qconfigs, such as {'': "
            "default_dynamic_qconfig}, a QConfigMapping or a predicate, got set. For types give "
            "QConfigMapping().set_object_type(type, qconfig).",
        ),
        (
            {},
            "qconfig_dict gives no qconfig, so nothing would be quantized. Use {'': "
            "default_dynamic_qconfig} for the whole model.",
        ),
    ],
)
def test_errors_propose_a_dynamic_qconfig(config: Any, message: str) -> None:
    for function in (jitquant.prepare_dynamic_jit, jitquant.quantize_dynamic_jit):
        with pytest.raises(JitQuantError, match=f"^{re.escape(message)}"):
            function(mlp(), config)


WEIGHT = jitquant.default_dynamic_qconfig.weight


@pytest.mark.parametrize(
    ("activation", "weight", "message"),
    [
        (
            PlaceholderObserver.with_args(dtype=torch.float32, is_dynamic=True),
            WEIGHT,
            "here: a dynamic activation is torch.quint8 or torch.float16, got torch.float32",
        ),
        (
            PlaceholderObserver.with_args(dtype=torch.float16, is_dynamic=True),
            WEIGHT,
            "here: a dynamic activation of torch.float16 needs PlaceholderObserver.with_args("
            "dtype=torch.float16) for the weight, as float16_dynamic_qconfig has; got a "
            "MinMaxObserver of torch.qint8",
        ),
        (
            PlaceholderObserver.with_args(dtype=torch.quint8, is_dynamic=True),
            PlaceholderObserver.with_args(dtype=torch.float16),
            "here: a dynamic activation of torch.quint8 needs an observer of qint8 weights, as "
            "default_dynamic_qconfig has; got a PlaceholderObserver of torch.float16",
        ),
        (
            MinMaxObserver,
            PlaceholderObserver.with_args(dtype=torch.float16),
            "here, weight: a PlaceholderObserver keeps no statistics, so no qparams. Dynamic "
            "quantization has PlaceholderObserver.with_args(dtype=torch.quint8, is_dynamic=True) "
            "as activation. To leave ops float use None as the qconfig",
        ),
    ],
)
def test_observers_that_do_not_go_together(activation: Any, weight: Any, message: str) -> None:
    with pytest.raises(JitQuantValueError, match=f"^{re.escape(message)}$"):
        jitquant.qconfig.check_qconfig(QConfig(activation, weight), "here")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": 5}, "dtype must be a torch.dtype, got 5"),
        ({"dtype": torch.qint8}, "dtype must be one of torch.float32, torch.float16, torch.quint8"),
        ({"is_dynamic": 1}, "is_dynamic must be a bool, got 1"),
        ({"reduce_range": True}, "reduce_range is for dynamic quint8 only"),
    ],
)
def test_arguments_of_placeholders(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(JitQuantError, match=f"PlaceholderObserver: {re.escape(message)}"):
        PlaceholderObserver(**arguments)


class Scaled(nn.Module):
    """No linear layer: its product is halved."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 4))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight, alpha=0.5)


def test_addmm_that_is_no_linear_layer() -> None:
    model = torch.jit.script(Scaled().eval())
    result = jitquant.quantize_dynamic_jit(model, DYNAMIC)
    assert [(op.op, op.int8, op.reason) for op in jitquant.coverage(result).ops] == [
        (
            "aten::addmm",
            False,
            "it is no linear layer: its matrix is computed at run time, what it adds is no bias, "
            "or its alpha or beta is not 1",
        )
    ]
    assert torch.equal(result(X), model(X))


# --- what torch.ao's users have ---


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (torch_ao.default_dynamic_qconfig, jitquant.default_dynamic_qconfig),
        (torch_ao.per_channel_dynamic_qconfig, jitquant.per_channel_dynamic_qconfig),
        (torch_ao.float16_dynamic_qconfig, jitquant.float16_dynamic_qconfig),
    ],
)
def test_qconfigs_of_torch_ao(theirs: object, ours: QConfig) -> None:
    results = [jitquant.quantize_dynamic_jit(mlp(), {"": each})(X) for each in (theirs, ours)]
    assert torch.equal(*results)


def test_reduced_range() -> None:
    """7 bits double the step, which costs 6 dB of what rounding the input costs."""
    activation = PlaceholderObserver.with_args(
        dtype=torch.quint8, is_dynamic=True, reduce_range=True
    )
    qconfig = QConfig(activation, jitquant.per_channel_dynamic_qconfig.weight)
    model = mlp()
    result = jitquant.quantize_dynamic_jit(model, {"": qconfig})
    full = jitquant.quantize_dynamic_jit(model, DYNAMIC)
    theirs = QConfig(
        torch_ao.PlaceholderObserver.with_args(
            dtype=torch.quint8, quant_min=0, quant_max=127, is_dynamic=True
        ),
        qconfig.weight,
    )
    same = jitquant.quantize_dynamic_jit(model, {"": theirs})
    assert torch.equal(result(X), same(X))
    assert 20 < sqnr(model(X), result(X)) < sqnr(model(X), full(X)) - 2


def test_ranges_that_no_kernel_has() -> None:
    activation = torch_ao.PlaceholderObserver.with_args(
        dtype=torch.quint8, quant_min=0, quant_max=15, is_dynamic=True
    )
    message = r"dynamic kernels quantize to \[0, 255\] or \[0, 127\], got \[0, 15\]"
    with pytest.raises(JitQuantValueError, match=message):
        jitquant.quantize_dynamic_jit(mlp(), {"": QConfig(activation, WEIGHT)})


def test_mapping_in_a_file() -> None:
    mapping = jitquant.QConfigMapping.from_dict({"": "per_channel_dynamic", "second": "float"})
    result = jitquant.quantize_dynamic_jit(mlp(), mapping)
    assert ops(result) == ["quantized::linear_relu_dynamic", "aten::linear"]
    written = jitquant.QConfigMapping.from_json(
        jitquant.QConfigMapping().set_global(jitquant.float16_dynamic_qconfig).to_json()
    )
    assert ops(jitquant.quantize_dynamic_jit(mlp(), written))[1].endswith("linear_dynamic_fp16")


# --- static and dynamic in one model ---


class ConvMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.up = nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.mlp = Mlp()
        self.last = nn.Conv1d(5, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.up(self.conv(x).relu()).mean(dim=[2, 3]))
        z: Tensor = self.last(y.unsqueeze(2))
        return z


def test_static_and_dynamic_in_one_call() -> None:
    torch.manual_seed(0)
    model = torch.jit.script(ConvMlp().eval())
    image = images(2, 3, 8, 8)
    config = {"": STATIC, "mlp": jitquant.per_channel_dynamic_qconfig}
    result = reloaded(jitquant.quantize_jit(model, config, lambda m: m(image)))
    assert ops(result) == [
        "quantized::conv2d_relu",
        "quantized::conv2d",
        "quantized::linear_relu_dynamic",
        "quantized::linear_dynamic",
        "quantized::conv1d",
    ]
    assert all(op.int8 for op in jitquant.coverage(result).ops if "conv" in op.op or "lin" in op.op)
    assert sqnr(model(image), result(image)) > 25
    needs = {each.what: each.needs for each in jitquant.check(result).requirements}
    assert needs["activation bits"] == "8"


@pytest.mark.parametrize(
    ("qconfig", "reason"),
    [
        (
            jitquant.default_dynamic_qconfig,
            "its qconfig is dynamic, and torch's dynamic kernels clip its output to the range of "
            "its input",
        ),
        (jitquant.float16_dynamic_qconfig, "torch has no kernel of float16 for it"),
    ],
)
def test_convolutions_stay_as_they_are(qconfig: QConfig, reason: str) -> None:
    """Transposed ones too, which static quantization rewrites."""
    torch.manual_seed(0)
    model = torch.jit.script(ConvMlp().eval())
    result = jitquant.quantize_dynamic_jit(model, {"": qconfig})
    reasons = {op.op: op.reason for op in jitquant.coverage(result).float}
    for op in ("aten::conv2d", "aten::conv1d", "aten::conv_transpose2d"):
        assert reasons[op] == reason
    assert reasons["aten::mean"] == "its qconfig is dynamic, which is for layers with weights"
    image = images(2, 3, 8, 8)
    assert sqnr(model(image), result(image)) > 35


class Normalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 8)
        self.bn = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.linear(x))
        return y


def test_batch_norm_is_folded() -> None:
    torch.manual_seed(0)
    module = Normalized()
    module(X * 3 + 1)
    model = torch.jit.script(module.eval())
    result = jitquant.quantize_dynamic_jit(model, DYNAMIC)
    assert "batch_norm" not in graph_text(result)
    assert sqnr(model(X), result(X)) > 35


# --- linear in every spelling ---


class Spellings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, 16) / 4)
        self.b = nn.Parameter(torch.randn(16))
        self.layer = nn.Linear(16, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.addmm(self.b, x, self.w)
        x = x + x @ self.w.t() + self.b
        x = x + torch.matmul(x, self.w)
        x = x + functional.linear(x, self.w, self.b)
        x = x + torch.einsum("ni,oi->no", x, self.w)
        y: Tensor = self.layer(x) / 30
        return y


@pytest.mark.parametrize("how", ["script", "trace"])
def test_spellings(how: str) -> None:
    torch.manual_seed(0)
    module = Spellings().eval()
    model = torch.jit.script(module) if how == "script" else torch.jit.trace(module, X)
    result = reloaded(jitquant.quantize_dynamic_jit(model, DYNAMIC))
    assert ops(result) == ["quantized::linear_dynamic"] * 6
    assert "prepack" not in graph_text(result)
    assert sqnr(model(X), result(X)) > 30


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.encoder(x)
        return y


@pytest.mark.parametrize("how", ["script", "trace"])
def test_attention(how: str) -> None:
    torch.manual_seed(0)
    module = Attention().eval()
    x = images(2, 5, 16)
    with torch.no_grad():
        model = torch.jit.script(module) if how == "script" else torch.jit.trace(module, x)
        result = reloaded(jitquant.quantize_dynamic_jit(model, DYNAMIC))
        # One for query, key and value together, one behind them, two of the feed-forward part.
        assert set(ops(result)) == {"quantized::linear_dynamic", "quantized::linear_relu_dynamic"}
        assert len(ops(result)) == 4
        assert "prepack" not in graph_text(result)
        assert sqnr(model(x), result(x)) > 30


class Control(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)
        self.other = nn.Linear(16, 16)

    def forward(self, x: Tensor, rounds: int) -> Tensor:
        x = self.layer(x) if rounds > 2 else self.other(self.layer(x))
        for _ in range(rounds):
            x = self.layer(x).relu()
        return x


def test_branches_and_loops_hold_packed_weights() -> None:
    torch.manual_seed(0)
    model = torch.jit.script(Control().eval())
    result = reloaded(jitquant.quantize_dynamic_jit(model, DYNAMIC))
    assert len(ops(result)) == 4
    assert "prepack" not in graph_text(result) and "quantize_per" not in graph_text(result)
    packed = re.findall(r"name=\"(\w*packed_params\w*)\"", graph_text(result))
    assert sorted(set(packed)) == ["layer_packed_params", "other_packed_params"]
    for rounds in (1, 3):
        assert sqnr(model(X, rounds), result(X, rounds)) > 30


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(200, 16)
        self.hidden = nn.Linear(16, 16)
        self.head = nn.Linear(16, 200, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.head(self.hidden(self.embedding(ids)))
        return y


def test_tied_weights() -> None:
    """The embedding keeps the float table, and the linear layer has it packed."""
    torch.manual_seed(0)
    model = torch.jit.script(Tied().eval())
    ids = torch.arange(12).reshape(3, 4)
    result = reloaded(jitquant.quantize_dynamic_jit(model, DYNAMIC))
    assert sqnr(model(ids), result(ids)) > 30
    assert [op.op for op in jitquant.coverage(result).float] == ["aten::embedding"]


# --- documented limits ---


def test_a_row_depends_on_its_batch_mates() -> None:
    """All rows have the scale of the largest value."""
    result = jitquant.quantize_dynamic_jit(mlp(), DYNAMIC)
    batch = torch.cat([X[:1], X[1:] * 1000])
    assert sqnr(mlp()(X[:1]), result(X[:1])) > 35
    assert sqnr(mlp()(X[:1]), result(batch)[:1]) < 20


def test_one_infinity_spoils_all_rows() -> None:
    result = jitquant.quantize_dynamic_jit(torch.jit.script(nn.Linear(16, 5).eval()), DYNAMIC)
    batch = X.clone()
    batch[0, 0] = math.inf
    assert not result(batch)[1:].isfinite().any()


def test_nan_raises() -> None:
    result = jitquant.quantize_dynamic_jit(mlp(), DYNAMIC)
    with pytest.raises(RuntimeError, match="min should be less than or equal to max"):
        result(X * math.nan)
