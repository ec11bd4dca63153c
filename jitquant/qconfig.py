"""QConfig: which observers choose the qparams of activations and of weights."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from jitquant import _torch_ao
from jitquant.backend import BACKENDS, get_backend
from jitquant.errors import JitQuantError, JitQuantTypeError, JitQuantValueError
from jitquant.observers import (
    HistogramObserver,
    MinMaxObserver,
    Observer,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    ShapeRecorder,
)

__all__ = [
    "NAMED",
    "QConfig",
    "check_qconfig",
    "default_dynamic_qconfig",
    "default_qconfig",
    "float16_dynamic_qconfig",
    "float_qparams_weight_only_qconfig",
    "float_qparams_weight_only_qconfig_4bit",
    "get_default_qconfig",
    "is_dynamic",
    "per_channel_dynamic_qconfig",
    "qconfig_of_name",
    "script_qconfig",
]


class QConfig(NamedTuple):
    """How to quantize an op: what makes the observer of its activations and of its weight.

    Attributes:
        activation: observer class, `Observer.with_args(...)`, or any function that returns a new
            observer. Per tensor, quint8. For dynamic quantization
            `PlaceholderObserver.with_args(dtype=torch.quint8, is_dynamic=True)`.
        weight: the same for the weight. Per tensor or per channel, qint8. For weights of float16,
            `PlaceholderObserver.with_args(dtype=torch.float16)`, beside dynamic activations of
            float16; for tables of embeddings that are packed, of quint8 or quint4x2, beside
            activations of float32.
    """

    activation: Callable[[], torch.nn.Module]
    weight: Callable[[], torch.nn.Module]


_WEIGHT_PER_CHANNEL = PerChannelMinMaxObserver.with_args(
    dtype=torch.qint8, qscheme=torch.per_channel_symmetric
)
_WEIGHT_PER_TENSOR = MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)

default_qconfig = QConfig(activation=MinMaxObserver.with_args(), weight=_WEIGHT_PER_CHANNEL)
"""Minimum and maximum for activations (fast to calibrate), weights as on x86."""

_DYNAMIC = PlaceholderObserver.with_args(dtype=torch.quint8, is_dynamic=True)

default_dynamic_qconfig = QConfig(activation=_DYNAMIC, weight=_WEIGHT_PER_TENSOR)
"""Dynamic: int8 weights with one scale; ops quantize what they read. For `quantize_dynamic_jit`."""

per_channel_dynamic_qconfig = QConfig(activation=_DYNAMIC, weight=_WEIGHT_PER_CHANNEL)
"""Dynamic, with one scale for each output of a weight."""

float16_dynamic_qconfig = QConfig(
    activation=PlaceholderObserver.with_args(dtype=torch.float16, is_dynamic=True),
    weight=PlaceholderObserver.with_args(dtype=torch.float16),
)
"""Weights of float16, activations of float32; on the engines x86 and fbgemm."""

float_qparams_weight_only_qconfig = QConfig(
    activation=PlaceholderObserver, weight=PlaceholderObserver.with_args(dtype=torch.quint8)
)
"""For embeddings: each row of the table in bytes, with a scale and a lowest value of float32."""

float_qparams_weight_only_qconfig_4bit = QConfig(
    activation=PlaceholderObserver, weight=PlaceholderObserver.with_args(dtype=torch.quint4x2)
)
"""For embeddings: each row of the table in 4 bits, with a scale and a lowest value of float16."""


NAMED = {
    "default": default_qconfig,
    "default_dynamic": default_dynamic_qconfig,
    "per_channel_dynamic": per_channel_dynamic_qconfig,
    "float16_dynamic": float16_dynamic_qconfig,
    "float_qparams_weight_only": float_qparams_weight_only_qconfig,
    "float_qparams_weight_only_4bit": float_qparams_weight_only_qconfig_4bit,
}
"""By their names in files; an engine's name stands for its default."""


def is_dynamic(qconfig: QConfig) -> bool:
    """Whether a checked qconfig needs no calibration: dynamic, or for tables of embeddings."""
    activation: Any = qconfig.activation()
    return isinstance(activation, PlaceholderObserver)


def get_default_qconfig(backend: str | None = "x86", activation_bits: int = 8) -> QConfig:
    """Return the QConfig that suits a quantized engine.

    Activations: `HistogramObserver`, quint8. Weights: qint8 and symmetric, per channel on x86,
    fbgemm and onednn, per tensor on qnnpack, as torch.ao has them.

    Args:
        backend: "x86", "fbgemm", "onednn" or "qnnpack"; None for the engine that is set.
        activation_bits: 8, or 7 for activations in [0, 127], as torch.ao has them on x86 and
            fbgemm. 8 are safe on every CPU: convert_jit enlarges weight scales where a kernel's
            16-bit sums could overflow.

    Raises:
        JitQuantTypeError: backend is not a string, or activation_bits no int.
        JitQuantValueError: an unknown backend, or one that this torch has no engine for; another
            number of bits.
    """
    found = get_backend(backend)
    if not isinstance(activation_bits, int) or isinstance(activation_bits, bool):
        raise JitQuantTypeError(f"activation_bits must be an int, got {activation_bits!r}")
    if activation_bits not in found.activation_bits:
        known = " or ".join(map(str, found.activation_bits))
        raise JitQuantValueError(f"activation_bits must be {known}, got {activation_bits}")
    full = activation_bits == max(found.activation_bits)
    activation = HistogramObserver.with_args(**({} if full else {"reduce_range": True}))
    weight = _WEIGHT_PER_TENSOR if found.name == "qnnpack" else _WEIGHT_PER_CHANNEL
    return QConfig(activation=activation, weight=weight)


def script_qconfig(qconfig: object) -> QConfig:
    """Check `qconfig`, and return a QConfig that holds both observers, built and scripted.

    The two fields of the result are the scripted modules themselves, not factories.

    Raises:
        JitQuantTypeError, JitQuantValueError: see `check_qconfig`.
    """
    checked = check_qconfig(qconfig, "qconfig")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated")
        return QConfig(
            activation=torch.jit.script(checked.activation()),
            weight=torch.jit.script(checked.weight()),
        )


def check_qconfig(qconfig: object, where: str) -> QConfig:
    """Return `qconfig` as a QConfig whose factories give jitquant observers fit for the engines.

    Args:
        qconfig: a `QConfig`, or a torch.ao.quantization.QConfig, of observers of either.
        where: what the errors call it, such as "qconfig_dict['']".

    Raises:
        JitQuantTypeError: not a QConfig, an observer instance instead of a factory, or a factory
            that gives anything but an observer that jitquant knows.
        JitQuantValueError: activation and weight swapped, a per-channel or qint8 activation, a
            quint8 weight, a placeholder that is not dynamic, a dynamic activation of another dtype
            than its weight asks for, a fake-quantize module.
    """
    if isinstance(qconfig, QConfig):
        given = qconfig
    elif _torch_ao.is_torch_ao(qconfig):
        given = QConfig(*_torch_ao.unpack_qconfig(qconfig, where))
    else:
        raise JitQuantTypeError(
            f"{where}: expected a jitquant.QConfig or torch.ao.quantization.QConfig, "
            f"got {qconfig!r} of type {type(qconfig).__name__}{_meant(qconfig)}"
        )
    activation_factory, activation = _check_factory(given.activation, f"{where}, activation")
    weight_factory, weight = _check_factory(given.weight, f"{where}, weight")

    checked = QConfig(activation=activation_factory, weight=weight_factory)
    if isinstance(activation, PlaceholderObserver) and activation.is_dynamic:
        _check_dynamic(activation, weight, where)
        return checked
    if _is_for_tables(activation, weight):
        return checked
    for part, observer in (("activation", activation), ("weight", weight)):
        if isinstance(observer, ShapeRecorder):
            raise JitQuantValueError(
                f"{where}, {part}: a {type(observer).__name__} keeps no statistics, so no qparams. "
                "Dynamic quantization has PlaceholderObserver.with_args(dtype=torch.quint8, "
                f"is_dynamic=True) as activation. {_torch_ao.FOR_FLOAT}"
            )
    if activation.ch_axis >= 0:
        raise JitQuantValueError(
            f"{where}: the activation observer is per channel ({type(activation).__name__}), but "
            "activations are quantized per tensor; are activation and weight swapped?"
        )
    if activation.dtype == torch.qint8 and weight.dtype == torch.quint8:
        raise JitQuantValueError(
            f"{where}: the activation observer gives qint8 and the weight observer quint8; "
            "are activation and weight swapped?"
        )
    if not any(activation.dtype in backend.activation_dtypes for backend in BACKENDS.values()):
        raise JitQuantValueError(
            f"{where}: the activation observer gives qint8, and no engine runs them; use quint8"
        )
    if not any(weight.dtype in backend.weight_dtypes for backend in BACKENDS.values()):
        raise JitQuantValueError(
            f"{where}: the weight observer gives quint8, but engines take qint8 weights only"
        )
    return checked


def _is_for_tables(activation: Observer, weight: Observer) -> bool:
    """Whether observers are those of float_qparams_weight_only_qconfig or its 4-bit kin."""
    if not (
        isinstance(activation, PlaceholderObserver) and isinstance(weight, PlaceholderObserver)
    ):
        return False
    is_table = weight.dtype in (torch.quint8, torch.quint4x2) and not weight.is_dynamic
    return is_table and activation.dtype == torch.float32


def _check_dynamic(activation: PlaceholderObserver, weight: Observer, where: str) -> None:
    """Raise unless the observers of a dynamic qconfig go together."""
    wanted = {
        torch.quint8: "an observer of qint8 weights, as default_dynamic_qconfig has",
        torch.float16: "PlaceholderObserver.with_args(dtype=torch.float16) for the weight, as "
        "float16_dynamic_qconfig has",
    }
    if activation.dtype not in wanted:
        raise JitQuantValueError(
            f"{where}: a dynamic activation is torch.quint8 or torch.float16, got "
            f"{activation.dtype}"
        )
    is_half = isinstance(weight, PlaceholderObserver) and weight.dtype == torch.float16
    is_int8 = not isinstance(weight, ShapeRecorder) and weight.dtype == torch.qint8
    if not (is_int8 if activation.dtype == torch.quint8 else is_half):
        raise JitQuantValueError(
            f"{where}: a dynamic activation of {activation.dtype} needs "
            f"{wanted[activation.dtype]}; got a {type(weight).__name__} of {weight.dtype}"
        )


def qconfig_of_name(name: object) -> str:
    """The code of the qconfig that a name stands for in files; "" for all other values."""
    if name == "float":
        return "None"
    if isinstance(name, str) and name in NAMED:
        return f"jitquant.{name}_qconfig"
    is_engine = isinstance(name, str) and name in BACKENDS
    return f"jitquant.get_default_qconfig({name!r})" if is_engine else ""


def _meant(given: object) -> str:
    """What a user may have meant by something that is no qconfig."""
    meant = qconfig_of_name(given)
    if meant:
        return f". Names are read from files and by QConfigMapping.from_dict only; give {meant}"
    if isinstance(given, str):
        return ". Give a qconfig, such as jitquant.get_default_qconfig()"
    if isinstance(given, Mapping):
        return ". Plain data is read by QConfigMapping.from_dict only"
    if isinstance(given, type) or callable(given):
        return ". A qconfig has two observers: QConfig(activation=..., weight=...)"
    return ""


def _check_factory(factory: object, where: str) -> tuple[Callable[[], torch.nn.Module], Observer]:
    """Return a factory of jitquant observers that does what `factory` does, and one observer."""
    if isinstance(factory, torch.nn.Module):
        raise JitQuantTypeError(
            f"{where}: expected an observer class or its with_args(...), "
            f"got an instance of {type(factory).__name__}"
        )
    if not callable(factory):
        raise JitQuantTypeError(
            f"{where}: expected an observer class or its with_args(...), got {factory!r}"
        )
    try:
        product = _torch_ao.make(factory)
    except JitQuantError as error:
        raise type(error)(f"{where}: {error}") from error
    except Exception as error:
        advice = " Give its arguments: with_args(...)." if isinstance(factory, type) else ""
        raise JitQuantTypeError(
            f"{where}: {factory!r}() raised {type(error).__name__}: {error}.{advice}"
        ) from error
    if isinstance(product, Observer):
        return factory, product
    if _torch_ao.is_torch_ao(product):
        converted = _torch_ao.convert_observer(product, where)
        return converted, converted()
    raise JitQuantTypeError(
        f"{where}: expected a jitquant observer or one of torch.ao's "
        f"{', '.join(_torch_ao.supported_observers())}, got {type(product).__name__}. "
        f"{_torch_ao.FOR_FLOAT}"
    )
