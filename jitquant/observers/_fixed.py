"""Observers without statistics: of known qparams, and of shapes alone."""

import math

import torch
from torch import Tensor

from jitquant.errors import JitQuantTypeError, JitQuantValueError
from jitquant.observers._base import (
    _PER_TENSOR,
    FLOAT32_EPS,
    Observer,
    _is_int,
    _is_real,
)

_PLACEHOLDER_DTYPES = (torch.float32, torch.float16, torch.quint8, torch.quint4x2)


class FixedQParamsObserver(Observer):
    """Known qparams, whatever the data: for outputs of known range, such as sigmoid's.

    Args:
        scale: positive and finite.
        zero_point: in [quant_min, quant_max].
        others: see `Observer`. qscheme is per_tensor_affine or per_tensor_symmetric.

    Raises:
        JitQuantTypeError, JitQuantValueError: see `Observer`.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        scale: float,
        zero_point: int,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        quant_min: int | None = None,
        quant_max: int | None = None,
    ) -> None:
        super().__init__(
            dtype, qscheme, False, quant_min, quant_max, FLOAT32_EPS, -1, qschemes=_PER_TENSOR
        )
        name = type(self).__name__
        if not _is_real(scale):
            raise JitQuantTypeError(f"{name}: scale must be a float, got {scale!r}")
        if not 0 < scale < math.inf:
            raise JitQuantValueError(f"{name}: scale must be positive and finite, got {scale!r}")
        if not _is_int(zero_point):
            raise JitQuantTypeError(f"{name}: zero_point must be an int, got {zero_point!r}")
        if not self.quant_min <= zero_point <= self.quant_max:
            raise JitQuantValueError(
                f"{name}: zero_point must be in [{self.quant_min}, {self.quant_max}], "
                f"got {zero_point}"
            )
        self.register_buffer("scale", torch.tensor([scale], dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor([zero_point], dtype=torch.int64))

    def _observe(self, x: Tensor) -> None:
        _low, _high, nan, inf = torch.ops.jitquant.min_max(x)
        self._is_finite(nan, inf)

    def _statistics(self) -> list[Tensor]:
        nothing: list[Tensor] = []
        return nothing

    def _merge_statistics(self, other: list[Tensor], calls: int) -> None:
        pass

    @torch.jit.export
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return the given scale (1,) float32 and zero_point (1,) int64, also without data."""
        return self.scale, self.zero_point

    @torch.jit.export
    def reset(self) -> None:
        """Forget everything seen; the qparams stay."""
        self._forget()

    def extra_repr(self) -> str:
        return f"scale={self.scale.item()}, zero_point={self.zero_point.item()}"


class ShapeRecorder(Observer):
    """Records calls, shapes and dtypes of a value that has no qparams; reads no values.

    Its `dtype` is float32, and `saw_nan` and `saw_inf` stay False.
    """

    def __init__(self) -> None:
        super().__init__(
            torch.quint8,
            torch.per_tensor_affine,
            False,
            None,
            None,
            FLOAT32_EPS,
            -1,
            qschemes=_PER_TENSOR,
        )
        self.dtype = torch.float32

    def _observe(self, x: Tensor) -> None:
        pass

    def _statistics(self) -> list[Tensor]:
        nothing: list[Tensor] = []
        return nothing

    def _merge_statistics(self, other: list[Tensor], calls: int) -> None:
        pass

    @torch.jit.export
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Raise RuntimeError: there are no statistics."""
        raise RuntimeError("this observer has no qparams: it records shapes only")

    @torch.jit.export
    def reset(self) -> None:
        """Forget everything seen."""
        self._forget()


class NoopObserver(ShapeRecorder):
    """A value that stays float, by torch.ao's name; it keeps the record, and no statistics."""


class PlaceholderObserver(ShapeRecorder):
    """Stands for values whose qparams are not static; it keeps the record only.

    As the activation of a `QConfig` with `is_dynamic=True` it asks for dynamic quantization: ops
    quantize what they read when they run. As weight, with float16, it asks for weights in that;
    with quint8 or quint4x2 for packed tables of embeddings, each row in its own range.

    Args:
        dtype: torch.quint8 for activations that are quantized or rows of bytes, torch.quint4x2 for
            rows of 4 bits, torch.float16, or torch.float32.
        is_dynamic: whether it asks for dynamic quantization.
        reduce_range: 7 bits instead of 8; for quint8.

    Raises:
        JitQuantTypeError: an argument of the wrong type.
        JitQuantValueError: another dtype, or arguments that do not go together.
    """

    def __init__(
        self,
        dtype: torch.dtype = torch.float32,
        is_dynamic: bool = False,
        reduce_range: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not isinstance(dtype, torch.dtype):
            raise JitQuantTypeError(f"{name}: dtype must be a torch.dtype, got {dtype!r}")
        if dtype not in _PLACEHOLDER_DTYPES:
            known = ", ".join(map(str, _PLACEHOLDER_DTYPES))
            raise JitQuantValueError(f"{name}: dtype must be one of {known}, got {dtype}")
        for argument, value in (("is_dynamic", is_dynamic), ("reduce_range", reduce_range)):
            if not isinstance(value, bool):
                raise JitQuantTypeError(f"{name}: {argument} must be a bool, got {value!r}")
        if reduce_range and not (is_dynamic and dtype == torch.quint8):
            raise JitQuantValueError(f"{name}: reduce_range is for dynamic quint8 only")
        self.dtype = dtype
        self.is_dynamic = is_dynamic
        self.reduce_range = reduce_range
