"""The TorchScript quantizers that benchmarks compare: two steps, with calibration between them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

import jitquant
from benchmarks.subjects import Subject
from tutorials.measure import run_all


@dataclass(frozen=True)
class Quantizer:
    """The two graph steps of a quantizer."""

    prepare: Callable[[torch.jit.ScriptModule], torch.jit.ScriptModule]
    convert: Callable[[torch.jit.ScriptModule], torch.jit.ScriptModule]

    def quantized(self, subject: Subject) -> torch.jit.ScriptModule:
        """The traced model of a subject in int8, with calibration in between."""
        prepared = self.prepare(subject.traced)
        run_all(prepared, subject.calibration)
        return self.convert(prepared)


def ours(engine: str = "x86") -> Quantizer:
    qconfig_dict = {"": jitquant.get_default_qconfig(engine)}
    return Quantizer(
        lambda model: jitquant.prepare_jit(model, qconfig_dict),
        lambda model: jitquant.convert_jit(model),
    )


def torch_ao(engine: str = "x86") -> Quantizer:
    from torch.ao.quantization import get_default_qconfig
    from torch.ao.quantization.quantize_jit import convert_jit, prepare_jit

    qconfig_dict = {"": get_default_qconfig(engine)}
    return Quantizer(
        lambda model: prepare_jit(model, qconfig_dict), lambda model: convert_jit(model)
    )
