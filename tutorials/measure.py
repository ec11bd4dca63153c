"""What the tutorials and benchmarks measure, each in one way."""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from tutorials.timing import Model


def silence_torch_deprecations() -> None:
    """Hide that torch deprecates TorchScript and quantized tensors, which is what this is about."""
    warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated")
    with warnings.catch_warnings():
        # torch gives this one once per process, so here it is given where nobody sees it.
        warnings.filterwarnings("ignore", message=r"torch\.quantize_per_tensor")
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)


def run_all(model: Model, images: Sequence[torch.Tensor]) -> torch.Tensor:
    """The outputs for all images, each run alone: (images, classes)."""
    with torch.no_grad():
        return torch.cat([model(image) for image in images])


def sqnr_db(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Signal to quantization noise in dB: 20 log10(||reference|| / ||reference - other||).

    inf if both are equal, NaN if the reference is zero, which says nothing about the other.
    """
    signal, noise = reference.norm().item(), (reference - other).norm().item()
    if signal == 0:
        return math.nan
    return math.inf if noise == 0 else 20 * math.log10(signal / noise)


def file_mb(path: Path) -> float:
    """Size in MB (10^6 bytes)."""
    return path.stat().st_size / 1e6


def op_counts(model: torch.jit.ScriptModule) -> Counter[str]:
    """How often each op is in the model's forward, inner blocks included, prim ops left out."""
    counts: Counter[str] = Counter()
    graph = model.inlined_graph  # owns the blocks
    blocks = [graph.block()]
    while blocks:
        for node in blocks.pop().nodes():
            blocks.extend(node.blocks())
            if not node.kind().startswith("prim::"):
                counts[node.kind()] += 1
    return counts
