"""What the tutorials and benchmarks measure, each in one way."""

import math
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

Model = Callable[[torch.Tensor], torch.Tensor]


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


def latency_ms(
    models: Mapping[str, Model], x: torch.Tensor, runs: int = 50, warmup: int = 10
) -> dict[str, float]:
    """The median time of one call, in ms, for each model.

    The models take turns, so that whatever else the machine does slows all of them alike. The
    first `warmup` turns, in which TorchScript still optimizes, do not count.
    """
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.no_grad():
        for turn in range(warmup + runs):
            for name, model in models.items():
                start = time.perf_counter()
                model(x)
                if turn >= warmup:
                    times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


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
