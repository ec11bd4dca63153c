"""What all observers share: construction, the record of calls, and the formula for qparams."""

import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._jit_internal import is_scripting

from jitquant.errors import JitQuantTypeError, JitQuantValueError

FLOAT32_EPS = torch.finfo(torch.float32).eps

_FULL_RANGE = {torch.quint8: (0, 255), torch.qint8: (-128, 127)}
_REDUCED_RANGE = {torch.quint8: (0, 127), torch.qint8: (-64, 63)}
_PER_TENSOR = (torch.per_tensor_affine, torch.per_tensor_symmetric)
_PER_CHANNEL = (torch.per_channel_affine, torch.per_channel_symmetric)


# A dtype is an int in TorchScript only.
_DTYPE_CODE = torch.jit.CompilationUnit("def dtype_code(x: Tensor) -> int:\n    return x.dtype\n")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _argument_names(cls: type) -> list[str]:
    return [name for name in inspect.signature(cls).parameters]


@dataclass(frozen=True)
class ObserverFactory:
    """Builds observers of one class with fixed arguments: `cls(**kwargs)`, new at each call.

    Attributes:
        cls: the observer class.
        kwargs: the arguments as (name, value) pairs, sorted by name, so that a factory is hashable
            and equal to any other with the same class and arguments.

    Raises:
        JitQuantTypeError: an argument that the class does not have.
    """

    cls: "type[Observer]"
    kwargs: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        known = _argument_names(self.cls)
        for name, _ in self.kwargs:
            if name not in known:
                raise JitQuantTypeError(
                    f"{self.cls.__name__} has no argument {name!r}, it has: {', '.join(known)}"
                )

    def __call__(self) -> "Observer":
        """Return a new observer."""
        return self.cls(**dict(self.kwargs))

    def with_args(self, *args: Any, **kwargs: Any) -> "ObserverFactory":
        """Return a factory with these arguments added to (or in place of) this one's.

        Raises:
            JitQuantTypeError: see above; more arguments than the class has, or one given twice.
        """
        names = _argument_names(self.cls)
        if len(args) > len(names):
            raise JitQuantTypeError(
                f"{self.cls.__name__} has {len(names)} arguments, got {len(args)}: "
                f"{', '.join(names)}"
            )
        given = dict(zip(names, args, strict=False))
        twice = [name for name in given if name in kwargs]
        if twice:
            raise JitQuantTypeError(f"{self.cls.__name__} got the argument {twice[0]!r} twice")
        merged = {**dict(self.kwargs), **given, **kwargs}
        return ObserverFactory(self.cls, tuple(sorted(merged.items())))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.kwargs)
        return f"{self.cls.__name__}.with_args({arguments})"


class Observer(nn.Module):
    """What all observers share: the record of calls, and the formula for qparams.

    A subclass defines, in code that torch.jit.script compiles (without `super().method()`):

    - `_observe(self, x: Tensor) -> None`, called with floating-point tensors that have elements;
    - `calculate_qparams(self) -> tuple[Tensor, Tensor]`, for which `_qparams` has the formula;
    - `reset(self) -> None`, which calls `_forget`;
    - to be merged, as in `merge_calibration` and `calibrate_distributed`: `_statistics(self) ->
      list[Tensor]`, and `_merge_statistics(self, other: list[Tensor], calls: int) -> None`, which
      adds the statistics of another observer that was called so often.

    Args:
        dtype: torch.quint8 or torch.qint8.
        qscheme: one of `qschemes`.
        reduce_range: 7 bits, [0, 127] or [-64, 63]. Not together with quant_min and quant_max.
        quant_min, quant_max: a range of your own; both or none, and 0 must be in it.
        eps: lowest scale.
        ch_axis: channel axis, -1 for per tensor.
        qschemes: the schemes that the subclass takes.

    Raises:
        JitQuantTypeError: an argument of the wrong type.
        JitQuantValueError: an argument out of range.
    """

    shapes: list[list[int]]
    seen_dtypes: list[int]

    def __init_subclass__(cls) -> None:
        """Give the class its bases' annotations, of which torch.jit.script reads the nearest only.

        The methods that jitquant calls are exported, so that torch.jit.script keeps them.
        """
        super().__init_subclass__()
        for name in ("calculate_qparams", "reset"):
            if name in cls.__dict__:
                torch.jit.export(cls.__dict__[name])
        own = inspect.get_annotations(cls)
        for base in cls.__mro__[1:]:
            if issubclass(base, Observer):
                own = {**inspect.get_annotations(base), **own}
        cls.__annotations__ = own

    def __init__(
        self,
        dtype: torch.dtype,
        qscheme: torch.qscheme,
        reduce_range: bool,
        quant_min: int | None,
        quant_max: int | None,
        eps: float,
        ch_axis: int,
        qschemes: tuple[torch.qscheme, ...],
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not isinstance(dtype, torch.dtype):
            raise JitQuantTypeError(f"{name}: dtype must be a torch.dtype, got {dtype!r}")
        if dtype not in _FULL_RANGE:
            raise JitQuantValueError(
                f"{name}: dtype must be torch.quint8 or torch.qint8, got {dtype}"
            )
        if not isinstance(qscheme, torch.qscheme):
            raise JitQuantTypeError(f"{name}: qscheme must be a torch.qscheme, got {qscheme!r}")
        if qscheme not in qschemes:
            allowed = " or ".join(str(scheme) for scheme in qschemes)
            raise JitQuantValueError(f"{name}: qscheme must be {allowed}, got {qscheme}")
        if not isinstance(reduce_range, bool):
            raise JitQuantTypeError(f"{name}: reduce_range must be a bool, got {reduce_range!r}")
        if not _is_real(eps):
            raise JitQuantTypeError(f"{name}: eps must be a float, got {eps!r}")
        if not 0 < eps < math.inf:
            raise JitQuantValueError(f"{name}: eps must be positive and finite, got {eps!r}")
        if not _is_int(ch_axis):
            raise JitQuantTypeError(f"{name}: ch_axis must be an int, got {ch_axis!r}")
        if qscheme in _PER_CHANNEL and ch_axis < 0:
            raise JitQuantValueError(f"{name}: ch_axis must be 0 or more, got {ch_axis}")

        symmetric = qscheme in (torch.per_tensor_symmetric, torch.per_channel_symmetric)
        if symmetric and reduce_range and dtype == torch.quint8:
            raise JitQuantValueError(
                f"{name}: reduce_range with quint8 and {qscheme} would put zero point 128 outside "
                "of [0, 127]; use quant_min=0, quant_max=127, or qint8"
            )

        self.dtype = dtype
        self.qscheme = qscheme
        self.quant_min, self.quant_max = self._quant_range(
            name, dtype, reduce_range, quant_min, quant_max
        )
        self.ch_axis = ch_axis
        self.eps = float(eps)
        self.symmetric = symmetric
        self.symmetric_zero_point = 0
        if dtype == torch.quint8:
            own_range = quant_min is not None
            self.symmetric_zero_point = (self.quant_min + self.quant_max) // 2 if own_range else 128

        self.calls = 0
        self.shapes = []
        self.seen_dtypes = []
        self.saw_nan = False
        self.saw_inf = False

    @staticmethod
    def _quant_range(
        name: str,
        dtype: torch.dtype,
        reduce_range: bool,
        quant_min: int | None,
        quant_max: int | None,
    ) -> tuple[int, int]:
        if quant_min is None and quant_max is None:
            return _REDUCED_RANGE[dtype] if reduce_range else _FULL_RANGE[dtype]
        if quant_min is None or quant_max is None:
            raise JitQuantValueError(
                f"{name}: give both quant_min and quant_max or none, "
                f"got quant_min={quant_min!r}, quant_max={quant_max!r}"
            )
        if not (_is_int(quant_min) and _is_int(quant_max)):
            raise JitQuantTypeError(
                f"{name}: quant_min and quant_max must be ints, got {quant_min!r}, {quant_max!r}"
            )
        if reduce_range:
            raise JitQuantValueError(
                f"{name}: reduce_range and quant_min, quant_max exclude each other, "
                f"got reduce_range=True and [{quant_min}, {quant_max}]"
            )
        lowest, highest = _FULL_RANGE[dtype]
        if not lowest <= quant_min < quant_max <= highest:
            raise JitQuantValueError(
                f"{name}: quant_min < quant_max must lie in [{lowest}, {highest}] for {dtype}, "
                f"got [{quant_min}, {quant_max}]"
            )
        if not quant_min <= 0 <= quant_max:
            raise JitQuantValueError(
                f"{name}: [quant_min, quant_max] must hold 0, got [{quant_min}, {quant_max}]"
            )
        return quant_min, quant_max

    @classmethod
    def with_args(cls, *args: Any, **kwargs: Any) -> ObserverFactory:
        """Return a factory that builds this observer with these arguments."""
        return ObserverFactory(cls).with_args(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Record `x` (any shape) and return `x` itself.

        A tensor that is nested or has no elements leaves no trace. One that is not floating point
        leaves only its dtype and shape. float16, bfloat16 and float64 values are observed as
        float32.
        """
        if self._accepts(x):
            self._observe(x)
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scale float32 and zero_point int64, (1,) or (C,); RuntimeError without data."""
        raise NotImplementedError("an observer class must define calculate_qparams")

    def reset(self) -> None:
        """Forget everything seen."""
        raise NotImplementedError("an observer class must define reset")

    @torch.jit.export
    def state(self) -> list[Tensor]:
        """Return what was seen, for `merge_state` of an observer of the same class."""
        record = [self.calls, int(self.saw_nan), int(self.saw_inf), len(self.seen_dtypes)]
        record = record + self.seen_dtypes
        for shape in self.shapes:
            record = record + [len(shape)] + shape  # noqa: RUF005
        return [torch.tensor(record, dtype=torch.int64)] + self._statistics()  # noqa: RUF005

    @torch.jit.export
    def merge_state(self, state: list[Tensor]) -> None:
        """Add what another observer saw, as if it had come after what this one saw.

        Args:
            state: `state()` of an observer of the same class and arguments.
        """
        record: list[int] = state[0].tolist()
        if record[0] > 0:
            self._merge_statistics(state[1:], record[0])
        self.calls += record[0]
        self.saw_nan = self.saw_nan or record[1] != 0
        self.saw_inf = self.saw_inf or record[2] != 0
        at = 4 + record[3]
        for code in record[4:at]:
            if code not in self.seen_dtypes:
                self.seen_dtypes = self.seen_dtypes + [code]  # noqa: RUF005
        while at < len(record):
            shape = record[at + 1 : at + 1 + record[at]]
            self._record_shape(shape)
            at += 1 + len(shape)

    def _statistics(self) -> list[Tensor]:
        raise NotImplementedError("an observer class must define _statistics to be merged")

    def _merge_statistics(self, other: list[Tensor], calls: int) -> None:
        raise NotImplementedError("an observer class must define _merge_statistics to be merged")

    def _accepts(self, x: Tensor) -> bool:
        if x.is_nested or x.numel() == 0:
            return False
        if not torch.ops.jitquant.is_recorded(x, self.shapes, self.seen_dtypes):
            self._record(x)
        if not x.is_floating_point():
            return False
        self.calls += 1
        return True

    def _record(self, x: Tensor) -> None:
        code: int = x.dtype if is_scripting() else _DTYPE_CODE.dtype_code(x)  # type: ignore[assignment]
        if code not in self.seen_dtypes:
            self.seen_dtypes = self.seen_dtypes + [code]  # noqa: RUF005
        self._record_shape(list(x.size()))

    def _record_shape(self, shape: list[int]) -> None:
        is_new_rank = True
        for known in self.shapes:
            is_new_rank = is_new_rank and len(known) != len(shape)
        if is_new_rank:
            self.shapes = self.shapes + [shape]  # noqa: RUF005

    def _observe(self, x: Tensor) -> None:
        raise NotImplementedError("an observer class must define _observe")

    def _is_finite(self, nan: bool, inf: bool) -> bool:
        """Whether a batch has neither; sets the flags otherwise."""
        self.saw_nan = self.saw_nan or nan
        self.saw_inf = self.saw_inf or inf
        return not (nan or inf)

    def _forget(self) -> None:
        shapes: list[list[int]] = []
        seen_dtypes: list[int] = []
        self.calls = 0
        self.shapes = shapes
        self.seen_dtypes = seen_dtypes
        self.saw_nan = False
        self.saw_inf = False

    def _no_data(self) -> str:
        if self.calls == 0:
            return "the observer saw no data: run sample inputs through the model"
        return "the observer saw only tensors with NaN or infinite values"

    def _qparams(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Scale (float32) and zero_point (int64) for float32 ranges [low, high], all of shape (N,).

        Formulas of torch.ao.quantization.observer.UniformQuantizationObserverBase, in float32:

        affine: the range is widened to hold 0,
            scale = max((high - low) / (quant_max - quant_min), eps)
            zero_point = clamp(quant_min - round(low / scale), quant_min, quant_max)
        symmetric:
            scale = max(max(-low, high) / ((quant_max - quant_min) / 2), eps)
            zero_point = 0 for qint8; for quint8 128, or the middle of quant_min, quant_max given

        One difference: a high - low beyond float32 gives the right scale instead of infinity.
        """
        low = torch.clamp(low, max=0.0)
        high = torch.clamp(high, min=0.0)
        steps = float(self.quant_max - self.quant_min)
        if self.symmetric:
            scale = torch.clamp(torch.maximum(-low, high) / (steps / 2), min=self.eps)
            return scale, torch.full_like(scale, self.symmetric_zero_point, dtype=torch.int64)
        span = high - low
        scale = torch.where(torch.isfinite(span), span / steps, high / steps - low / steps)
        scale = torch.clamp(scale, min=self.eps)
        zero_point = self.quant_min - torch.round(low / scale).to(torch.int64)
        return scale, torch.clamp(zero_point, self.quant_min, self.quant_max)


class _PerTensorObserver(Observer):
    """An observer with one running minimum and maximum, () float32, +inf and -inf at first."""

    min_val: Tensor
    max_val: Tensor

    def __init__(
        self,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = FLOAT32_EPS,
    ) -> None:
        super().__init__(
            dtype, qscheme, reduce_range, quant_min, quant_max, eps, -1, qschemes=_PER_TENSOR
        )
        self.register_buffer("min_val", torch.tensor(math.inf))
        self.register_buffer("max_val", torch.tensor(-math.inf))

    def _observe(self, x: Tensor) -> None:
        low, high, nan, inf = torch.ops.jitquant.min_max(x)
        if self._is_finite(nan, inf):
            self._update(low, high)

    def _update(self, low: Tensor, high: Tensor) -> None:
        self.min_val = torch.minimum(self.min_val, low)
        self.max_val = torch.maximum(self.max_val, high)

    def _statistics(self) -> list[Tensor]:
        return [self.min_val, self.max_val]

    def _merge_statistics(self, other: list[Tensor], calls: int) -> None:
        self.min_val = torch.minimum(self.min_val, other[0])
        self.max_val = torch.maximum(self.max_val, other[1])

    def _has_range(self) -> bool:
        return bool(self.min_val <= self.max_val)

    def _forget_range(self) -> None:
        self._forget()
        self.min_val = torch.full_like(self.min_val, math.inf)
        self.max_val = torch.full_like(self.max_val, -math.inf)

    def extra_repr(self) -> str:
        return f"min_val={self.min_val.item()}, max_val={self.max_val.item()}, calls={self.calls}"
