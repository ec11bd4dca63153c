"""Backends: what each quantized engine of torch can do, as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from jitquant import _C
from jitquant._table import table
from jitquant.errors import JitQuantTypeError, JitQuantValueError
from jitquant.observers import Observer

__all__ = ["BACKENDS", "Backend", "Capabilities", "OpAbility", "activation_bits_of", "get_backend"]

_FLOAT16 = (torch.float16, 5)
"""As observers have it, and as scripted ones do: the code of the dtype."""

_TABLES = (torch.quint8, 13, torch.quint4x2, 16)
"""Of tables of embeddings, which every engine runs alike."""

_AFFINE = {False: ("symmetric",), True: ("symmetric", "affine")}


@dataclass(frozen=True)
class OpAbility:
    """How an engine runs one float op.

    Attributes:
        op: the float op, such as "aten::conv2d"; ".Scalar" means that its second operand is a
            number.
        int8_op: what runs in its place; "" if it stays float.
        fused_relu: the same with a relu behind it; "" if there is no such op.
        per_channel: whether its weight can have qparams for each output channel; None without a
            weight.
        fixed_qparams: scale and zero point of its output where these are known; else None.
        reason: why it stays float, or another remark.
    """

    op: str
    int8_op: str
    fused_relu: str = ""
    per_channel: bool | None = None
    fixed_qparams: tuple[float, int] | None = None
    reason: str = ""


@dataclass(frozen=True)
class Backend:
    """What one engine can do.

    Attributes:
        name: as in `torch.backends.quantized.engine`.
        activation_dtypes, weight_dtypes: of the quantized values.
        activation_schemes, weight_schemes: "symmetric" (zero point in the middle of the range),
            "affine" (any zero point). Activations are quantized per tensor.
        weight_axis: the axis of per-channel weights: their output channels.
        activation_bits: what `get_default_qconfig` takes.
        sums_in_16_bits: whether kernels of it, on CPUs without VNNI and for depthwise convolutions
            on every CPU, sum pairs of products in saturating 16 bits. convert_jit then enlarges
            weight scales where 8-bit activations could overflow.
        float16_weights: whether it has linear layers with weights of float16.
        fuses_layers: whether it has layers that take along the sum or activation behind them.
            Models with such ops run only while this engine is set.
        ops: every op that can be int8.
    """

    name: str
    activation_dtypes: tuple[torch.dtype, ...]
    weight_dtypes: tuple[torch.dtype, ...]
    activation_schemes: tuple[str, ...]
    weight_schemes: tuple[str, ...]
    weight_axis: int
    activation_bits: tuple[int, ...]
    sums_in_16_bits: bool
    float16_weights: bool
    fuses_layers: bool
    ops: tuple[OpAbility, ...]

    def capabilities(self) -> "Capabilities":
        """All of it as two tables: print the result."""
        return Capabilities(self)

    def check_observers(self, activation: Observer, weight: Observer, where: str) -> None:
        """Raise unless this engine can run what the observers choose.

        Args:
            activation, weight: new observers of a qconfig.
            where: what the errors call that.

        Raises:
            JitQuantValueError: says what was asked for, and what the engine takes instead.
        """
        if weight.dtype in (*_FLOAT16, *_TABLES):
            self.check_weight_observer(weight, where)
            return
        for observer, taken, part in (
            (activation, self.activation_dtypes, "activations"),
            (weight, self.weight_dtypes, "weights"),
        ):
            if observer.dtype not in taken:
                raise JitQuantValueError(
                    f"{where}: the engine {self.name} takes {_join(taken)} {part} only, and the "
                    f"observer gives {_join((observer.dtype,))}."
                )
        self.check_weight_observer(weight, where)

    def check_weight_observer(self, weight: Any, where: str) -> None:
        """The part of `check_observers` in which engines differ.

        Args:
            weight: an observer, scripted or not.
            where: what the errors call its qconfig.

        Raises:
            JitQuantValueError: see `check_observers`.
        """
        if weight.dtype in _FLOAT16:
            if not self.float16_weights:
                raise JitQuantValueError(
                    f"{where}: the engine {self.name} has no weights of float16, only "
                    f"{' and '.join(b.name for b in BACKENDS.values() if b.float16_weights)} do. "
                    "Use default_dynamic_qconfig, or set another engine."
                )
            return
        if weight.dtype in _TABLES:
            return
        if weight.ch_axis not in (-1, self.weight_axis):
            raise JitQuantValueError(
                f"{where}: the weight observer has ch_axis={weight.ch_axis}, and the engine "
                f"{self.name} takes qparams for each output channel only, which is axis "
                f"{self.weight_axis}, also for transposed convolutions: they run as convolutions."
            )
        known_zero_point = getattr(weight, "zero_point", None)
        is_affine = (
            not weight.symmetric if known_zero_point is None else bool(known_zero_point.any())
        )
        if is_affine and "affine" not in self.weight_schemes:
            raise JitQuantValueError(
                f"{where}: the engine {self.name} takes symmetric weights only, and the weight "
                "observer is affine. Use qscheme=torch.per_channel_symmetric or "
                "torch.per_tensor_symmetric, or another engine."
            )


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do; prints as two tables."""

    backend: Backend

    def __str__(self) -> str:
        of = self.backend
        overflow = "enlarged where 16-bit sums could overflow" if of.sums_in_16_bits else "as given"
        general = [
            ("activations", f"{_join(of.activation_dtypes)}, per tensor"),
            ("activation schemes", ", ".join(of.activation_schemes)),
            ("activation bits", ", ".join(map(str, of.activation_bits))),
            ("weights", _join(of.weight_dtypes)),
            ("weight schemes", ", ".join(of.weight_schemes)),
            ("weight scales", overflow),
            ("weights of float16", _yes(of.float16_weights)),
            ("layers with the op behind", _yes(of.fuses_layers)),
        ]
        rows = [
            (op.op, op.int8_op, op.fused_relu, _yes(op.per_channel), _fixed(op), op.reason)
            for op in of.ops
        ]
        headers = ("op", "int8 op", "with relu", "per channel", "fixed qparams", "remark")
        return f"{table(('engine', of.name), general)}\n\n{table(headers, rows)}"


def _yes(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"


def _fixed(op: OpAbility) -> str:
    return "" if op.fixed_qparams is None else "scale {:g}, zero point {}".format(*op.fixed_qparams)


def _join(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _ability(op: _C.SupportedOp, engine: _C.Engine) -> OpAbility:
    problem = engine.problem_of(op.op)
    if problem:
        return OpAbility(op.op, "", reason=problem)
    return OpAbility(
        op=op.op,
        int8_op=op.int8_op,
        fused_relu=op.relu_op,
        per_channel=True if op.role in ("weighted", "recurrent") else None,
        fixed_qparams=(op.fixed_scale, op.fixed_zero_point) if op.fixed_scale > 0 else None,
    )


def _transposed(conv: OpAbility) -> OpAbility:
    """Transposed convolutions have no int8 form of their own: rewrite_conv_transpose."""
    op = conv.op.replace("conv", "conv_transpose")
    reason = conv.reason or f"runs as {conv.op}"
    return OpAbility(op, conv.int8_op, conv.fused_relu, conv.per_channel, reason=reason)


def _backend(engine: _C.Engine) -> Backend:
    ops = [_ability(op, engine) for op in _C.supported_ops()]
    transposed = [_transposed(op) for op in ops if op.op.startswith("aten::conv")]
    return Backend(
        name=engine.name,
        activation_dtypes=(torch.quint8,),
        weight_dtypes=(torch.qint8,),
        activation_schemes=_AFFINE[True],
        weight_schemes=_AFFINE[engine.weight_zero_points],
        weight_axis=0,
        activation_bits=(7, 8),
        sums_in_16_bits=engine.sums_in_16_bits,
        float16_weights=engine.float16_weights,
        fuses_layers=engine.fuses_layers,
        ops=(*ops, *transposed),
    )


BACKENDS: Mapping[str, Backend] = {engine.name: _backend(engine) for engine in _C.engines()}
"""The backends that ship, by the names of their engines."""


def get_backend(name: str | None = None) -> Backend:
    """A backend by the name of its engine.

    Args:
        name: "x86", "fbgemm", "onednn" or "qnnpack"; None for the engine that is set in
            `torch.backends.quantized.engine`.

    Raises:
        JitQuantTypeError: name is no string.
        JitQuantValueError: an unknown backend, or one that this torch has no engine for.
    """
    if name is None:
        name = str(torch.backends.quantized.engine)
    if not isinstance(name, str):
        raise JitQuantTypeError(f"backend must be a string, got {name!r}")
    if name not in BACKENDS:
        raise JitQuantValueError(f"unknown backend {name!r}, known are: {', '.join(BACKENDS)}")
    engines = list(torch.backends.quantized.supported_engines)
    if name not in engines:
        raise JitQuantValueError(f"this torch has no engine {name!r}, it has: {', '.join(engines)}")
    return BACKENDS[name]


def activation_bits_of(observer: Any) -> int:
    """How many bits the integers of an observer need: 8 for [0, 255], 7 for [0, 127]."""
    bits: int = (observer.quant_max - observer.quant_min).bit_length()
    return bits
