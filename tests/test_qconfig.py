"""QConfig: the defaults of each engine, and what check_qconfig refuses."""

import re
from typing import Any

import pytest
import torch

from jitquant.errors import JitQuantError, JitQuantTypeError, JitQuantValueError
from jitquant.observers import (
    FixedQParamsObserver,
    HistogramObserver,
    MinMaxObserver,
    Observer,
    PerChannelMinMaxObserver,
    ShapeRecorder,
)
from jitquant.qconfig import (
    QConfig,
    check_qconfig,
    default_qconfig,
    get_default_qconfig,
    script_qconfig,
)

PER_CHANNEL_SYMMETRIC = torch.per_channel_symmetric
WEIGHT = MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)
PER_CHANNEL_WEIGHT = PerChannelMinMaxObserver.with_args(
    dtype=torch.qint8, qscheme=PER_CHANNEL_SYMMETRIC
)


def what(factory: Any) -> tuple[Any, ...]:
    observer: Observer = factory()
    levels = (observer.quant_min, observer.quant_max)
    return type(observer), observer.dtype, observer.qscheme, levels


HISTOGRAM = (HistogramObserver, torch.quint8, torch.per_tensor_affine, (0, 255))
EIGHT_BITS = (PerChannelMinMaxObserver, torch.qint8, PER_CHANNEL_SYMMETRIC, (-128, 127))


@pytest.mark.parametrize("backend", ["x86", "fbgemm", "onednn"])
def test_defaults_on_x86_have_weights_per_channel(backend: str) -> None:
    qconfig = get_default_qconfig(backend)
    assert what(qconfig.activation) == HISTOGRAM
    assert what(qconfig.weight) == EIGHT_BITS


def test_default_on_qnnpack_has_weights_per_tensor() -> None:
    qconfig = get_default_qconfig("qnnpack")
    assert what(qconfig.activation) == HISTOGRAM
    expected = (MinMaxObserver, torch.qint8, torch.per_tensor_symmetric)
    assert what(qconfig.weight) == (*expected, (-128, 127))


def test_default_backend_is_x86() -> None:
    assert get_default_qconfig() == get_default_qconfig("x86") != get_default_qconfig("qnnpack")


def test_default_qconfig_is_min_max_with_the_weights_of_x86() -> None:
    assert what(default_qconfig.activation)[0] is MinMaxObserver
    assert default_qconfig.weight == get_default_qconfig("x86").weight


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"backend": "cuda"},
            JitQuantValueError,
            "unknown backend 'cuda', known are: x86, fbgemm, onednn, qnnpack",
        ),
        ({"backend": 8}, JitQuantTypeError, "backend must be a string, got 8"),
    ],
)
def test_default_qconfig_refuses(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        get_default_qconfig(**arguments)


def test_engine_that_this_torch_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Quantized:
        supported_engines = ("onednn", "x86")

    monkeypatch.setattr(torch.backends, "quantized", Quantized)
    message = "this torch has no engine 'qnnpack', it has: onednn, x86"
    with pytest.raises(JitQuantValueError, match=f"^{message}$"):
        get_default_qconfig("qnnpack")
    assert what(get_default_qconfig("onednn").weight) == EIGHT_BITS


def test_script_qconfig_gives_scripted_observers_that_work() -> None:
    scripted: Any = script_qconfig(get_default_qconfig("x86"))
    assert isinstance(scripted, QConfig)
    for observer, channels in ((scripted.activation, 1), (scripted.weight, 4)):
        assert isinstance(observer, torch.jit.ScriptModule)
        observer(torch.ones(4, 3))
        scale, _ = observer.calculate_qparams()
        assert scale.shape == (channels,)


def test_check_returns_our_qconfig_as_it_is() -> None:
    qconfig = QConfig(activation=HistogramObserver, weight=WEIGHT)
    assert check_qconfig(qconfig, "here") == qconfig


@pytest.mark.parametrize(
    "activation",
    [HistogramObserver, FixedQParamsObserver.with_args(scale=1 / 256, zero_point=0)],
)
def test_check_takes_any_function_that_gives_an_observer(activation: Any) -> None:
    qconfig = QConfig(activation=lambda: activation(), weight=PER_CHANNEL_WEIGHT)
    assert check_qconfig(qconfig, "here").activation is qconfig.activation


REFUSED: list[tuple[object, type[JitQuantError], str]] = [
    (
        "x86",
        JitQuantTypeError,
        "here: expected a jitquant.QConfig or torch.ao.quantization.QConfig, got 'x86' of type str. Names "
        "are read from files and by QConfigMapping.from_dict only; give "
        "jitquant.get_default_qconfig('x86')",
    ),
    (
        (MinMaxObserver, WEIGHT),
        JitQuantTypeError,
        "here: expected a jitquant.QConfig or torch.ao.quantization.QConfig, got (<class "
        "'jitquant.observers._min_max.MinMaxObserver'>, MinMaxObserver.with_args(dtype=torch.qint8, "
        "qscheme=torch.per_tensor_symmetric)) of type tuple",
    ),
    (
        QConfig(MinMaxObserver(), WEIGHT),
        JitQuantTypeError,
        "here, activation: expected an observer class or its with_args(...), "
        "got an instance of MinMaxObserver",
    ),
    (
        QConfig(MinMaxObserver, None),  # type: ignore[arg-type]
        JitQuantTypeError,
        "here, weight: expected an observer class or its with_args(...), got None",
    ),
    (
        QConfig(MinMaxObserver, torch.nn.Identity),
        JitQuantTypeError,
        "here, weight: expected a jitquant observer or one of torch.ao's FixedQParamsObserver, "
        "HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver, "
        "MovingAveragePerChannelMinMaxObserver, PerChannelMinMaxObserver, got Identity. "
        "To leave ops float use None as the qconfig",
    ),
    (
        QConfig(len, WEIGHT),  # type: ignore[arg-type]
        JitQuantTypeError,
        "here, activation: <built-in function len>() raised TypeError: "
        "len() takes exactly one argument (0 given).",
    ),
    (
        QConfig(HistogramObserver.with_args(bins=1), WEIGHT),
        JitQuantValueError,
        "here, activation: HistogramObserver: bins must be from 256 to 16384, got 1",
    ),
    (
        QConfig(ShapeRecorder, WEIGHT),
        JitQuantValueError,
        "here, activation: a ShapeRecorder keeps no statistics, so no qparams. Dynamic quantization "
        "has PlaceholderObserver.with_args(dtype=torch.quint8, is_dynamic=True) as activation. To "
        "leave ops float use None as the qconfig",
    ),
    (
        QConfig(PER_CHANNEL_WEIGHT, HistogramObserver),
        JitQuantValueError,
        "here: the activation observer is per channel (PerChannelMinMaxObserver), but activations "
        "are quantized per tensor; are activation and weight swapped?",
    ),
    (
        QConfig(WEIGHT, MinMaxObserver),
        JitQuantValueError,
        "here: the activation observer gives qint8 and the weight observer quint8; "
        "are activation and weight swapped?",
    ),
    (
        QConfig(WEIGHT, WEIGHT),
        JitQuantValueError,
        "here: the activation observer gives qint8, and no engine runs them; use quint8",
    ),
    (
        QConfig(MinMaxObserver, MinMaxObserver),
        JitQuantValueError,
        "here: the weight observer gives quint8, but engines take qint8 weights only",
    ),
]


@pytest.mark.parametrize(("qconfig", "error", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_check_refuses(qconfig: object, error: type[JitQuantError], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        check_qconfig(qconfig, "here")


def test_script_qconfig_checks_too() -> None:
    with pytest.raises(JitQuantTypeError, match=r"^qconfig: expected a jitquant\.QConfig or"):
        script_qconfig(None)
