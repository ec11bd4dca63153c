"""Backends: what an engine cannot do is an error when a model is prepared, never when it runs."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import jitquant
from jitquant import _C, QConfig
from jitquant._engine import engine_set
from jitquant.backend import BACKENDS
from jitquant.errors import JitQuantError, JitQuantTypeError, JitQuantValueError
from jitquant.observers import FixedQParamsObserver, MinMaxObserver, PerChannelMinMaxObserver
from tests.models import PlainNet, calibrate, images, reloaded, scripted, sqnr

ENGINES = ["x86", "fbgemm", "onednn", "qnnpack"]
ACTIVATION = MinMaxObserver.with_args()


@pytest.fixture(autouse=True)
def keeps_the_engine() -> Iterator[None]:
    with engine_set(torch.backends.quantized.engine):
        yield


def weight(scheme: torch.qscheme, **kwargs: Any) -> QConfig:
    per_channel = scheme in (torch.per_channel_symmetric, torch.per_channel_affine)
    cls = PerChannelMinMaxObserver if per_channel else MinMaxObserver
    return QConfig(ACTIVATION, cls.with_args(dtype=torch.qint8, qscheme=scheme, **kwargs))


SYMMETRIC = [torch.per_tensor_symmetric, torch.per_channel_symmetric]
AFFINE = [torch.per_tensor_affine, torch.per_channel_affine]


def net(layer: nn.Module) -> torch.jit.ScriptModule:
    return scripted(nn.Sequential(layer))


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(8, 16, 3), (2, 8, 9)),
    "conv2d": (lambda: nn.Conv2d(8, 16, 3), (2, 8, 9, 9)),
    "conv3d": (lambda: nn.Conv3d(8, 16, 3), (2, 8, 5, 5, 5)),
    "linear": (lambda: nn.Linear(8, 16), (2, 8)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(8, 16, 2, 2), (2, 8, 5, 5)),
}


def test_there_is_a_backend_for_each_engine() -> None:
    assert list(BACKENDS) == ENGINES == [engine.name for engine in _C.engines()]
    assert set(ENGINES) <= set(torch.backends.quantized.supported_engines)
    assert jitquant.get_backend("onednn") is BACKENDS["onednn"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("scheme", SYMMETRIC + AFFINE, ids=str)
def test_what_a_backend_says_is_what_happens(engine: str, name: str, scheme: torch.qscheme) -> None:
    """30 dB: a weight that is wrong by its zero point or its channel costs all of them."""
    torch.backends.quantized.engine = engine
    layer, shape = LAYERS[name]
    model, x = net(layer()), images(*shape)
    backend = BACKENDS[engine]
    (op,) = [op for op in backend.ops if op.op == f"aten::{name}"]
    if scheme in AFFINE and "affine" not in backend.weight_schemes:
        with pytest.raises(JitQuantValueError, match=f"the engine {engine} takes symmetric wei"):
            jitquant.prepare_jit(model, {"": weight(scheme)})
        return
    int8_model = reloaded(jitquant.quantize_jit(model, {"": weight(scheme)}, calibrate, [x]))
    found = jitquant.coverage(int8_model).ops[0]
    assert (found.reason if found.int8 else "") == op.int8_op
    assert found.int8 or found.reason == op.reason
    assert sqnr(model(x), int8_model(x)) > 30


@pytest.mark.parametrize("engine", ENGINES)
def test_weight_channels_are_output_channels(engine: str) -> None:
    torch.backends.quantized.engine = engine
    for layer in (nn.Linear(8, 16), nn.ConvTranspose2d(8, 16, 2, 2)):
        model = net(layer)
        qconfig = weight(torch.per_channel_symmetric, ch_axis=1)
        message = (
            f"the qconfig of module_name '0': the weight observer has ch_axis=1, and the engine "
            f"{engine} takes qparams for each output channel only, which is axis 0, also for "
            "transposed convolutions: they run as convolutions."
        )
        with pytest.raises(JitQuantValueError, match=f"^{re.escape(message)}$"):
            jitquant.prepare_jit(model, {"0": qconfig})


def test_known_zero_points_of_weights_count() -> None:
    torch.backends.quantized.engine = "onednn"

    def fixed(zero_point: int) -> QConfig:
        kwargs = {"scale": 1 / 64, "zero_point": zero_point, "dtype": torch.qint8}
        return QConfig(ACTIVATION, FixedQParamsObserver.with_args(**kwargs))

    jitquant.prepare_jit(scripted(PlainNet()), {"": fixed(0)})
    with pytest.raises(JitQuantValueError, match="takes symmetric weights only"):
        jitquant.prepare_jit(scripted(PlainNet()), {"": fixed(3)})


def test_convert_checks_the_engine_that_is_set_then() -> None:
    """Not the one that was set when the model was prepared."""
    prepared = jitquant.prepare_jit(scripted(PlainNet()), {"": weight(torch.per_tensor_affine)})
    calibrate(prepared, images())
    torch.backends.quantized.engine = "onednn"
    with pytest.raises(JitQuantValueError, match=r"^convert_jit: the engine onednn takes symm"):
        jitquant.convert_jit(prepared)
    torch.backends.quantized.engine = "fbgemm"
    jitquant.convert_jit(prepared)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: QConfig(
                MinMaxObserver.with_args(dtype=torch.qint8), weight(torch.per_tensor_affine).weight
            ),
            "the activation observer gives qint8, and no engine runs them; use quint8",
        ),
        (
            lambda: QConfig(ACTIVATION, MinMaxObserver.with_args(dtype=torch.qint32)),
            "MinMaxObserver: dtype must be torch.quint8 or torch.qint8, got torch.qint32",
        ),
        (
            lambda: QConfig(ACTIVATION, ACTIVATION),
            "the weight observer gives quint8, but engines take qint8 weights only",
        ),
    ],
    ids=["qint8 activations", "qint32 weights", "quint8 weights"],
)
def test_dtypes_that_no_engine_takes(engine: str, make: Any, message: str) -> None:
    torch.backends.quantized.engine = engine
    with pytest.raises(JitQuantError, match=re.escape(message)):
        jitquant.prepare_jit(scripted(PlainNet()), {"": make()})


def test_dtypes_that_one_engine_does_not_take() -> None:
    backend = replace(BACKENDS["x86"], activation_dtypes=(torch.qint8,))
    message = "here: the engine x86 takes qint8 activations only, and the observer gives quint8."
    qconfig = jitquant.default_qconfig
    with pytest.raises(JitQuantValueError, match=f"^{re.escape(message)}$"):
        backend.check_observers(qconfig.activation(), qconfig.weight(), "here")  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_backend_of_the_engine_that_is_set(engine: str) -> None:
    torch.backends.quantized.engine = engine
    assert jitquant.get_backend() is BACKENDS[engine]
    assert jitquant.get_default_qconfig(None) == jitquant.get_default_qconfig(engine)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("tensorrt", JitQuantValueError, "unknown backend 'tensorrt', known are: x86, fbgemm, "),
        (3, JitQuantTypeError, "backend must be a string, got 3"),
    ],
)
def test_unknown_backend(name: Any, error: type[JitQuantError], message: str) -> None:
    with pytest.raises(error, match=message):
        jitquant.get_backend(name)


def test_capabilities_are_a_table() -> None:
    text = str(jitquant.get_backend("qnnpack").capabilities())
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    assert ["engine", "qnnpack"] in lines
    assert ["activations", "quint8, per tensor"] in lines
    assert ["activation bits", "7, 8"] in lines
    assert ["weight schemes", "symmetric, affine"] in lines
    assert ["weight scales", "as given"] in lines
    assert ["aten::linear", "quantized::linear", "quantized::linear_relu", "yes"] in lines
    assert ["aten::tanh", "aten::tanh", "scale 0.0078125, zero point 128"] in lines
    assert ["aten::conv3d", "QNNPACK cannot save a three-dimensional convolution"] in lines
    transposed = ["quantized::conv2d", "quantized::conv2d_relu", "yes", "runs as aten::conv2d"]
    assert ["aten::conv_transpose2d", *transposed] in lines
    onednn = str(jitquant.get_backend("onednn").capabilities())
    assert "enlarged where 16-bit sums could overflow" in onednn
    assert re.search(r"^weight schemes +symmetric$", onednn, re.MULTILINE)
    assert re.search(r"^layers with the op behind +yes$", onednn, re.MULTILINE)


def test_backends_know_every_op_of_the_table() -> None:
    for backend in BACKENDS.values():
        names = [op.op for op in backend.ops]
        assert {row.op for row in _C.supported_ops()} <= set(names)
        assert len(names) == len(set(names))


# Activation bits


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("engine", ENGINES)
def test_activation_bits(bits: int, engine: str) -> None:
    observer: Any = jitquant.get_default_qconfig(engine, activation_bits=bits).activation()
    assert (observer.quant_min, observer.quant_max) == (0, 2**bits - 1)


def test_eight_bits_are_the_default() -> None:
    default = jitquant.get_default_qconfig()
    assert default == jitquant.get_default_qconfig(activation_bits=8)


@pytest.mark.parametrize(
    ("bits", "error", "message"),
    [
        (6, JitQuantValueError, "^activation_bits must be 7 or 8, got 6$"),
        ("8", JitQuantTypeError, "^activation_bits must be an int, got '8'$"),
        (True, JitQuantTypeError, "^activation_bits must be an int, got True$"),
    ],
)
def test_other_bits(bits: Any, error: type[JitQuantError], message: str) -> None:
    with pytest.raises(error, match=message):
        jitquant.get_default_qconfig(activation_bits=bits)


def test_seven_bits_cost_one_bit() -> None:
    """One bit is 6 dB of the rounding of activations; the rounding of weights stays."""
    model, x = scripted(PlainNet()), images(8, 3, 16, 16)
    levels = {}
    for bits in (7, 8):
        qconfig = jitquant.get_default_qconfig(activation_bits=bits)
        int8_model = jitquant.quantize_jit(model, {"": qconfig}, calibrate, [x])
        levels[bits] = sqnr(model(x), int8_model(x))
    assert levels[8] - 7 < levels[7] < levels[8] - 1
