"""MTCNN's three networks, with the weights of facenet-pytorch, on real faces and non-faces."""

import importlib
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import jitquant
from tests.models import package_folder, reloaded

SIZES = {"PNet": 12, "RNet": 24, "ONet": 48}
"""Name of the network: height and width of its input, in pixels."""

WEIGHTED = ("aten::conv2d", "aten::linear")
CONVOLUTIONS_AND_LINEARS = {"PNet": 5, "RNet": 6, "ONet": 8}


@pytest.fixture
def mtcnn(monkeypatch: pytest.MonkeyPatch) -> Any:
    """facenet_pytorch.models.mtcnn, without the package's own __init__, which needs `requests`."""
    package = ModuleType("facenet_pytorch")
    package.__path__ = [str(package_folder("facenet_pytorch"))]
    monkeypatch.setitem(sys.modules, "facenet_pytorch", package)
    return importlib.import_module("facenet_pytorch.models.mtcnn")


def faces(size: int) -> tuple[Tensor, Tensor]:
    """(200, 3, size, size) in [-1, 1] as the networks want it, and (200,) whether it is a face."""
    gray = torch.from_numpy(np.load(package_folder("skimage") / "data" / "lfw_subset.npy"))
    images = (gray[:, None].float() * 255 - 127.5) / 128
    resized = functional.interpolate(images, size=(size, size), mode="bilinear")
    return resized.expand(-1, 3, -1, -1).contiguous(), torch.arange(200) < 100


def as_script(network: nn.Module, images: Tensor, way: str) -> torch.jit.ScriptModule:
    script: torch.jit.ScriptModule
    script = torch.jit.script(network) if way == "script" else torch.jit.trace(network, images[:1])
    return script


def face_probability(outputs: tuple[Tensor, ...]) -> Tensor:
    """(200,) from the networks' outputs: boxes, landmarks (ONet only), probabilities."""
    return outputs[-1].flatten(1)[:, 1]


@pytest.mark.parametrize("way", ["script", "trace"])
@pytest.mark.parametrize("name", SIZES)
def test_int8_tells_faces_from_non_faces(mtcnn: Any, name: str, way: str) -> None:
    images, is_face = faces(SIZES[name])
    network = getattr(mtcnn, name)().eval()
    prepared = jitquant.prepare_jit(
        as_script(network, images, way), {"": jitquant.get_default_qconfig()}
    )
    with torch.no_grad():
        for batch in images[::2].split(10):  # every other one: the rest is new to the int8 model
            prepared(batch)
        int8 = jitquant.convert_jit(prepared)
        expected, actual, again = network(images), int8(images), reloaded(int8)(images)

    assert all(torch.equal(*pair) for pair in zip(actual, again, strict=True))
    right = [int(((face_probability(x) > 0.5) == is_face).sum()) for x in (expected, actual)]
    # PNet is made to propose, and is right for 195 of them in float.
    assert right[0] == (195 if name == "PNet" else 200)
    assert right[1] >= right[0] - 2
    weighted = [op for op in jitquant.coverage(int8).int8 if op.op in WEIGHTED]
    assert len(weighted) == CONVOLUTIONS_AND_LINEARS[name]
