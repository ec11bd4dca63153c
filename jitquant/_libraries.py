"""Which libraries besides torch a model's ops and classes come from."""

import torch

from jitquant import _C

__all__ = ["libraries_of"]

_OF_TORCH = frozenset(
    """
    _c10d_functional _c10d_functional_autograd _dtensor _native _quantized _test aten c10d coor
    cuda debug_mode_ops debugprims export inductor inductor_prims mkl mkldnn mkldnn_prepacked
    onednn onnx prim prims profiler quantization quantized rnn rngprims sparse static_runtime
    symm_mem xnnpack
    """.split()  # noqa: SIM905
)
"""Namespaces that `import torch` registers (2.14.1), and those of its classes."""


def libraries_of(module: torch._C.ScriptModule) -> tuple[str, ...]:
    """The namespaces of custom ops and classes, sorted: ("torchvision",) for torchvision::nms.

    Args:
        module: one with all calls inlined, as prepare_jit and convert_jit give it.
    """
    return tuple(sorted(_C.namespaces_of(module) - _OF_TORCH))
