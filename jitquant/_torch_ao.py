"""Takes a user's torch.ao.quantization objects. The only module that knows torch.ao's names.

torch.ao is never imported here: an object that comes from it brings its module along, so class
names and attributes are enough.
"""

import sys
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch

from jitquant.errors import JitQuantError, JitQuantTypeError, JitQuantValueError
from jitquant.observers import (
    FixedQParamsObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    Observer,
    ObserverFactory,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
)

__all__ = [
    "FOR_FLOAT",
    "TorchAoMapping",
    "convert_observer",
    "default_types",
    "is_mapping",
    "is_torch_ao",
    "make",
    "mapping_dict",
    "supported_observers",
    "unpack_qconfig",
]

FOR_FLOAT = "To leave ops float use None as the qconfig"

_REUSE = "ReuseInputObserver"

# torch.ao's class name: our class, and what it takes besides dtype, qscheme, range and eps
_OBSERVERS: dict[str, tuple[type[Observer], tuple[str, ...]]] = {
    "FixedQParamsObserver": (FixedQParamsObserver, ("scale", "zero_point")),
    "HistogramObserver": (HistogramObserver, ("bins",)),
    "MinMaxObserver": (MinMaxObserver, ()),
    "MovingAverageMinMaxObserver": (MovingAverageMinMaxObserver, ("averaging_constant",)),
    "MovingAveragePerChannelMinMaxObserver": (
        MovingAveragePerChannelMinMaxObserver,
        ("averaging_constant", "ch_axis"),
    ),
    "PerChannelMinMaxObserver": (PerChannelMinMaxObserver, ("ch_axis",)),
}

_DYNAMIC = PlaceholderObserver.with_args(dtype=torch.quint8, is_dynamic=True)


def is_torch_ao(obj: object) -> bool:
    """Whether `obj` is a class of torch.ao or an instance of one."""
    cls = obj if isinstance(obj, type) else type(obj)
    return cls.__module__.startswith("torch.ao")


def supported_observers() -> list[str]:
    """Names of the torch.ao observer classes that `convert_observer` takes, sorted."""
    return sorted(_OBSERVERS)


def unpack_qconfig(
    qconfig: object, where: str
) -> tuple[Callable[[], torch.nn.Module], Callable[[], torch.nn.Module]]:
    """Return activation and weight factory of a torch.ao QConfig, as the user gave them.

    Raises:
        JitQuantTypeError: not a torch.ao QConfig.
    """
    name = type(qconfig).__name__
    fields: Any = qconfig
    if name == "QConfigDynamic":  # its activation may be anything
        return _DYNAMIC, fields.weight
    if name != "QConfig":
        raise JitQuantTypeError(f"{where}: expected a QConfig, got torch.ao's {name}")
    return fields.activation, fields.weight


class TorchAoMapping(Protocol):
    """What a type checker sees of a torch.ao QConfigMapping."""

    object_type_qconfigs: Any

    def to_dict(self) -> dict[str, Any]:
        """The dictionary form."""


def is_mapping(config: object) -> bool:
    """Whether `config` is a torch.ao QConfigMapping."""
    return is_torch_ao(config) and type(config).__name__ == "QConfigMapping"


def mapping_dict(config: Any, base: tuple[Any, Any]) -> dict[str, Any]:
    """The dictionary form of a torch.ao QConfigMapping, without what it leaves empty.

    Some types are in every default mapping, with observers that tell torch.ao what it should know
    of them: that an output shares the qparams of its input (such rules are left out), that it has
    fixed qparams, that a weight stays float. The op table knows it, so `base` comes in their place.

    Args:
        config: the QConfigMapping.
        base: activation and weight.
    """
    form: dict[str, Any] = {key: value for key, value in config.to_dict().items() if value}
    special = default_types(config)
    lines = []
    for kind, qconfig in form.pop("object_type", ()):
        if kind in special and qconfig is not None:
            qconfig = _without_op_knowledge(qconfig, *base)
            if qconfig is None:
                continue
        lines.append((kind, qconfig))
    return {**form, "object_type": lines} if lines else form


def default_types(config: object) -> list[object]:
    """The types that every default mapping of torch.ao has rules for, in the model or not."""
    module: Any = sys.modules[type(config).__module__]
    return list(module.get_default_qconfig_mapping().object_type_qconfigs)


def _without_op_knowledge(qconfig: Any, activation: Any, weight: Any) -> Any:
    """`qconfig` with usable observers, see `mapping_dict`; None if it only says "as the input"."""
    if type(qconfig).__name__ != "QConfig":
        return qconfig
    name = type(make(qconfig.activation)).__name__
    if name == _REUSE:
        return None
    if name == "FixedQParamsObserver":
        qconfig = qconfig._replace(activation=activation)
    weight_observer: Any = make(qconfig.weight)
    if weight_observer.dtype != torch.qint8:
        qconfig = qconfig._replace(weight=weight)
    return qconfig


def make(factory: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """Call `factory`; torch.ao's warnings about its own arguments are not the user's business."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Please use quant_min and quant_max")
        return factory()


def convert_observer(observer: torch.nn.Module, where: str) -> ObserverFactory:
    """Return a factory of our observer with the arguments of this torch.ao observer.

    Raises:
        JitQuantValueError: a fake-quantize module, or arguments that our observer does not take.
        JitQuantTypeError: a class without a counterpart here.
    """
    source: Any = observer
    name = type(observer).__name__
    if "FakeQuant" in name:
        raise JitQuantValueError(
            f"{where}: {name} is for quantization-aware training, which jitquant does not do; "
            "pass an observer"
        )
    if name == "PlaceholderObserver" or getattr(source, "is_dynamic", False):
        return _placeholder(source, where)
    if getattr(source, "qscheme", None) == torch.per_channel_affine_float_qparams:
        return PlaceholderObserver.with_args(dtype=source.dtype)
    if name == _REUSE:
        raise JitQuantValueError(
            f"{where}: torch.ao's {name} says that an output has the qparams of the input, which "
            "jitquant's op table knows; leave such rules out. In place of the dict of a torch.ao "
            "QConfigMapping give the mapping itself"
        )
    if name not in _OBSERVERS:
        raise JitQuantTypeError(
            f"{where}: torch.ao's {name} is not supported, only "
            f"{', '.join(supported_observers())}. {FOR_FLOAT}"
        )
    cls, extra = _OBSERVERS[name]
    kwargs: dict[str, Any] = {"dtype": source.dtype, "qscheme": source.qscheme}
    for argument in extra:
        value = getattr(source, argument)
        kwargs[argument] = value.item() if isinstance(value, torch.Tensor) else value
    if cls is FixedQParamsObserver:
        kwargs.update(quant_min=source.quant_min, quant_max=source.quant_max)
    else:
        kwargs["eps"] = source.eps.item()
        if source.has_customized_qrange:  # already halved if reduce_range was given too
            kwargs.update(quant_min=source.quant_min, quant_max=source.quant_max)
        else:
            kwargs["reduce_range"] = source.reduce_range
    factory = cls.with_args(**kwargs)
    try:
        factory()
    except JitQuantError as error:
        raise type(error)(f"{where}: {error}") from error
    return factory


def _placeholder(source: Any, where: str) -> ObserverFactory:
    """For a placeholder, or an observer whose dynamic qparams take no calibration."""
    kwargs: dict[str, Any] = {"dtype": source.dtype, "is_dynamic": source.is_dynamic}
    if source.is_dynamic and source.dtype == torch.quint8:
        bounds = (source.quant_min, source.quant_max)
        if bounds not in ((None, None), (0, 255), (0, 127)):
            raise JitQuantValueError(
                f"{where}: dynamic kernels quantize to [0, 255] or [0, 127], got {list(bounds)}"
            )
        kwargs["reduce_range"] = bounds == (0, 127)
    factory = PlaceholderObserver.with_args(**kwargs)
    try:
        factory()
    except JitQuantError as error:
        raise type(error)(f"{where}: {error}") from error
    return factory
