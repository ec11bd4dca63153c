"""A converted model is saved, loaded and run once before the user gets it."""

import io

import torch
from torch import Tensor

from jitquant import _C
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

    The values are random (zeros where they are not floating point), and a model may refuse them:
    it passes if a copy of the prepared model refuses them too. A model with arguments that are not
    tensors, or that calibration did not pass, is only saved and loaded.

    Raises:
        JitQuantError: the model cannot be loaded, or raises when it runs.
    """
    try:
        loaded = _reload(converted)
    except RuntimeError as error:
        raise JitQuantError(
            "the converted model cannot be saved and loaded: "
            f"{str(error).strip().splitlines()[0]}\nYour model was not changed."
        ) from error
    if any(seen.dtype < 0 for seen in inputs):
        return
    arguments = _arguments(inputs)
    with torch.no_grad():
        try:
            loaded(*arguments)
        except RuntimeError as error:
            if _runs(prepared, arguments):
                raise JitQuantError(
                    "the converted model cannot run on an input of the calibrated shape: "
                    f"{str(error).strip().splitlines()[-1]}\n"
                    "This is a defect of jitquant; your model was not changed. Please report it."
                ) from error


def _reload(model: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    file = io.BytesIO()
    torch.jit.save(model, file)
    file.seek(0)
    loaded: torch.jit.ScriptModule = torch.jit.load(file)
    return loaded


def _arguments(inputs: list[_C.InputSeen]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    arguments = []
    for seen in inputs:
        dtype: torch.dtype = _DTYPE_OF_CODE.empty(seen.dtype).dtype
        if dtype.is_floating_point:
            arguments.append(torch.rand(seen.shape, dtype=dtype, generator=generator))
        elif dtype in _QUANTIZED:
            arguments.append(torch.quantize_per_tensor(torch.zeros(seen.shape), 0.01, 0, dtype))
        else:
            arguments.append(torch.zeros(seen.shape, dtype=dtype))
    return arguments


def _runs(prepared: torch.jit.ScriptModule, arguments: list[Tensor]) -> bool:
    try:
        _reload(prepared)(*arguments)
    except RuntimeError:
        return False
    return True
