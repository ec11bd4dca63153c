"""A converted model is saved, loaded and run once before the user gets it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jitquant import _C, _batches
from jitquant._observed import ARGUMENT_RECORDER
from jitquant._save import saved_in_memory
from jitquant.errors import JitQuantError

_DTYPE_OF_CODE = torch.jit.CompilationUnit(
    "def empty(code: int) -> Tensor:\n    return torch.empty([0], dtype=code)\n"
)
_QUANTIZED = (torch.quint8, torch.qint8, torch.qint32)


def check(
    converted: torch.jit.ScriptModule,
    prepared: torch.jit.ScriptModule,
    inputs: list[_C.InputSeen],
) -> None:
    """Raise unless `converted`, saved and loaded, runs on inputs of the calibrated shapes.

    Arguments that are no tensors are those of the first call. Tensors are random (zeros where they
    are not floating point), and a model may refuse them: it passes if a copy of the prepared model
    refuses them too. A model whose forward did not run, or takes objects, is only saved and loaded.
    It then has the packed weights that were loaded: two copies of them would need more memory than
    anything else in convert_jit.

    Raises:
        JitQuantError: the model cannot be loaded, or raises when it runs.
    """
    try:
        with saved_in_memory(converted) as path:
            packed = _C.drop_packed(converted._c)
            loaded = torch.jit.load(path)
        _C.take_packed(loaded._c, converted._c, packed)
    except RuntimeError as error:
        raise JitQuantError(
            "the converted model cannot be saved and loaded: "
            f"{str(error).strip().splitlines()[0]}\nYour model was not changed."
        ) from error
    arguments = _arguments(prepared, inputs)
    if arguments is None:
        return
    with _batches.briefly():
        try:
            loaded(*arguments)
        except Exception as error:  # torch.jit.Error, RuntimeError, IndexError and others
            if _runs(prepared, _arguments(prepared, inputs) or []):
                raise JitQuantError(
                    "the converted model cannot run on an input of the calibrated shape: "
                    f"{str(error).strip().splitlines()[-1]}\n"
                    "This is a defect of jitquant; your model was not changed. Please report it."
                ) from error


def _arguments(prepared: torch.jit.ScriptModule, inputs: list[_C.InputSeen]) -> list[Any] | None:
    """New arguments for forward, since a model may write them; None if one was not seen."""
    generator = torch.Generator().manual_seed(0)
    module = prepared._c
    seen = None
    if module.hasattr(ARGUMENT_RECORDER):
        seen = module.getattr(ARGUMENT_RECORDER).getattr("seen")
    others = iter(seen or ())
    arguments: list[Any] = []
    types = [argument.type for argument in module._get_method("forward").schema.arguments[1:]]
    for kind, tensor in zip(types, inputs, strict=True):
        if not isinstance(kind, torch._C.TensorType):
            if seen is None:
                return None
            arguments.append(_filled(next(others), generator))
        elif tensor.dtype < 0:
            return None
        else:
            dtype = _DTYPE_OF_CODE.empty(tensor.dtype).dtype
            arguments.append(_tensor(tensor.shape, dtype, generator))
    return arguments


def _filled(value: Any, generator: torch.Generator) -> Any:
    """`value` with new tensors of the same shapes."""
    if isinstance(value, Tensor):
        return _tensor(value.shape, value.dtype, generator)
    if isinstance(value, (list, tuple)):
        return type(value)(_filled(element, generator) for element in value)
    if isinstance(value, dict):
        return {key: _filled(element, generator) for key, element in value.items()}
    return value


def _tensor(shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if dtype.is_floating_point:
        return torch.rand(shape, dtype=dtype, generator=generator)
    if dtype in _QUANTIZED:
        return torch.quantize_per_tensor(torch.zeros(shape), 0.01, 0, dtype)
    return torch.zeros(shape, dtype=dtype)


def _runs(prepared: torch.jit.ScriptModule, arguments: list[Any]) -> bool:
    try:
        with saved_in_memory(prepared) as path:
            copy = torch.jit.load(path)
        copy(*arguments)
    except Exception:
        return False
    return True
