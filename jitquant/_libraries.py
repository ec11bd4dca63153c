"""Which libraries besides torch a model's ops and classes come from."""

import re
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["libraries_of"]

_OF_TORCH = frozenset(
    """
    _c10d_functional _c10d_functional_autograd _dtensor _native _quantized _test aten c10d coor
    cuda debug_mode_ops debugprims export inductor inductor_prims mkl mkldnn mkldnn_prepacked
    onednn onnx prim prims profiler quantization quantized rngprims sparse static_runtime symm_mem
    xnnpack
    """.split()  # noqa: SIM905
)
"""Namespaces that `import torch` registers (2.14.1), and those of its classes."""


def libraries_of(module: torch._C.ScriptModule) -> tuple[str, ...]:
    """The namespaces of custom ops and classes, sorted: ("torchvision",) for torchvision::nms.

    Args:
        module: one with all calls inlined, as prepare_jit and convert_jit give it.
    """
    names = {
        name
        for method in module._method_names()
        for node in _nodes(module._get_method(method).graph)
        for name in _namespaces(node)
    }
    return tuple(sorted(names - _OF_TORCH))


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _namespaces(node: Any) -> list[str]:
    classes = [
        name
        for output in node.outputs()
        for name in re.findall(r"torch\.classes\.(\w+)\.", output.type().str())
    ]
    return [node.kind().split("::")[0], *classes]
