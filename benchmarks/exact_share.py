"""How many outputs of `debug="exact"` have the int8 model's bits, over whole models and engines.

    python benchmarks/exact_share.py
    python benchmarks/exact_share.py resnet18 --engines fbgemm --images 10 --json exact_share.json

torchvision's models have random weights and BatchNorm statistics, EfficientNet-Lite0 those of
ImageNet. Each is calibrated on 8 random images; then the int8 model and the one that spells it out
run on others, with one thread. "worst" is the largest difference, in percent of the largest
absolute output: what a step that is off in one layer becomes behind all others.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parent.parent))  # runs from any folder

import jitquant
from benchmarks.report import markdown, print_environment, silence_warnings, write_json
from benchmarks.subjects import make_subject
from tutorials import efficientnet_lite0_demo as demo

LITE = "efficientnet_lite0"
MODELS = (
    *("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "googlenet"),
    *("shufflenet_v2_x1_0", LITE),
)
ENGINES = ("fbgemm", "x86", "onednn", "qnnpack")
CALIBRATION_IMAGES = 8


@dataclass
class Result:
    """What was measured of one model and engine.

    Attributes:
        outputs: how many numbers were compared, of all images together.
        equal: how many of them have equal bits.
        worst: largest absolute difference, as a share of the largest absolute output.
    """

    model: str
    engine: str
    images: int
    pixels: int
    outputs: int
    equal: int
    worst: float


def random_images(count: int, pixels: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 3, pixels, pixels, generator=generator) for _ in range(count)]


def trace(name: str, pixels: int) -> torch.jit.ScriptModule:
    if name == LITE:
        return demo.trace_model(random_images(1, pixels, 0)[0])
    return make_subject(name, pixels=pixels).traced


def measure(
    name: str, model: torch.jit.ScriptModule, engine: str, images: int, pixels: int
) -> Result:
    torch.backends.quantized.engine = engine
    prepared = jitquant.prepare_jit(model, {"": jitquant.get_default_qconfig(engine)})
    jitquant.calibrate(prepared, random_images(CALIBRATION_IMAGES, pixels, 1), progress=False)
    int8 = jitquant.convert_jit(prepared)
    exact = jitquant.convert_jit(prepared, debug="exact")
    with torch.no_grad():
        pairs = [(int8(image), exact(image)) for image in random_images(images, pixels, 2)]
    theirs, ours = (torch.cat(side) for side in zip(*pairs, strict=True))
    worst = float((ours - theirs).abs().max() / theirs.abs().max())
    equal = int((ours == theirs).sum())
    return Result(name, engine, images, pixels, theirs.numel(), equal, worst)


def table(results: list[Result]) -> str:
    rows = [
        [
            *(result.model, result.engine, f"{result.equal:,} of {result.outputs:,}"),
            f"{100 * result.equal / result.outputs:.2f}",
            f"{100 * result.worst:.2f}",
        ]
        for result in results
    ]
    return markdown(["model", "engine", "equal bits", "%", "worst (%)"], rows, left=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help=", ".join(MODELS))
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.models) - set(MODELS))
    if unknown:
        parser.error(f"unknown models {', '.join(unknown)}, known are {', '.join(MODELS)}")
    silence_warnings()
    torch.set_num_threads(1)
    results: list[Result] = []
    for name in arguments.models or MODELS:
        model = trace(name, arguments.pixels)
        for engine in arguments.engines:
            results.append(measure(name, model, engine, arguments.images, arguments.pixels))
    print(table(results))
    print_environment()
    if arguments.json:
        write_json(arguments.json, results)


if __name__ == "__main__":
    main()
