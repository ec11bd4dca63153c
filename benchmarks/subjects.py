"""The float models that benchmarks quantize, and the images that they run on."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.macs import macs_by_module

OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": False},
}
PIXELS = {"inception_v3": 299}
CALIBRATION_IMAGES = 8
EVALUATION_IMAGES = 8

Images = list[Tensor]


@dataclass(frozen=True)
class Subject:
    """A model of torchvision with random weights.

    Attributes:
        name: torchvision's name.
        module: in eval mode.
        traced: the same as TorchScript.
        calibration, evaluation: random images, (batch, 3, pixels, pixels) each.
        macs: multiply-accumulates of convolutions and linear layers, for one batch.
        int8_mb: size of int8 weights and float biases, in MB (10^6 bytes).
    """

    name: str
    module: nn.Module
    traced: torch.jit.ScriptModule
    calibration: Images
    evaluation: Images
    macs: int
    int8_mb: float


def make_subject(name: str, batch: int = 1, pixels: int | None = None) -> Subject:
    """The same weights and images each time.

    Args:
        name: torchvision's name.
        batch: images that go through the model at a time.
        pixels: height and width of the images; by default what the model is made for.
    """
    import torchvision  # takes seconds

    torch.manual_seed(0)
    size = pixels or PIXELS.get(name, 224)
    module = torchvision.models.get_model(name, weights=None, **OPTIONS.get(name, {}))
    with torch.no_grad():
        for _ in range(4):  # gives BatchNorm statistics that are not trivial
            module.train()(torch.randn(8, 3, size, size))
        module.eval()
        traced = torch.jit.trace(module, torch.randn(batch, 3, size, size), check_trace=False)
    evaluation = random_images(EVALUATION_IMAGES, batch, size)
    macs = macs_by_module(module, evaluation[0])
    return Subject(
        name=name,
        module=module,
        traced=traced,
        calibration=random_images(CALIBRATION_IMAGES, batch, size),
        evaluation=evaluation,
        macs=sum(sum(of) for of in macs.values()),
        int8_mb=sum(int8_bytes(part) for part in module.modules()) / 1e6,
    )


def random_images(count: int, batch: int, pixels: int) -> Images:
    """At least `count` images, in batches."""
    return [torch.randn(batch, 3, pixels, pixels) for _ in range(max(count // batch, 1))]


def int8_bytes(module: nn.Module) -> int:
    """Of a layer's int8 weight and float bias, which it has once BatchNorm is folded into it."""
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return 0
    return module.weight.numel() + 4 * module.weight.shape[0]
