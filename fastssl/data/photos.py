"""`photos`: windows of the real pictures that scikit-image and scikit-learn carry in their wheels.

Nothing is downloaded. The class of a window is the picture that it comes from, so a representation is good here when
it knows the material (grass, gravel, a retina, type on a page) from parts it has never seen: the windows for training
and those for testing come from disjoint halves of every picture.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastssl.data.base import ImageData
from fastssl.data.images import TensorImages

# (package, folder inside it, file names)
_SOURCES = (
    (
        "skimage",
        "data",
        (
            *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coffee.png", "coins.png"),
            *("grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png"),
            *("page.png", "retina.jpg", "rocket.jpg", "text.png"),
        ),
    ),
    ("sklearn", "datasets/images", ("china.jpg", "flower.jpg")),
)

Half = Literal["train", "test"]


@lru_cache(maxsize=1)
def find_photos() -> dict[str, Path]:
    """Files of the pictures on this machine, by name, in a fixed order.

    Looks only into the installed scikit-image and scikit-learn; a picture that this version of them does not carry is
    left out with a warning.

    Raises:
        FileNotFoundError: if fewer than two pictures are found, since there is nothing to tell apart then.
    """
    found: dict[str, Path] = {}
    missing: list[str] = []
    for package, folder, files in _SOURCES:
        spec = find_spec(package)
        root = Path(spec.origin).parent / folder if spec and spec.origin else None
        for file in files:
            if root is not None and (root / file).is_file():
                found[Path(file).stem] = root / file
            else:
                missing.append(f"{package}/{folder}/{file}")
    if len(found) < 2:
        raise FileNotFoundError(
            f"photos: the pictures in scikit-image and scikit-learn must be on disk, found {len(found)} of "
            f'{len(found) + len(missing)}; pip install "fastssl[train]"'
        )
    if missing:
        warnings.warn(f"photos: left out, not in the installed packages: {', '.join(missing)}", stacklevel=2)
    return found


def half_of(picture: np.ndarray, half: Half) -> np.ndarray:
    """The first ("train") or second ("test") half of a picture [H, W, ...], cut across its longer side."""
    axis = 0 if picture.shape[0] > picture.shape[1] else 1
    middle = picture.shape[axis] // 2
    first, second = slice(None, middle), slice(middle, None)
    cut = first if half == "train" else second
    return picture[cut] if axis == 0 else picture[:, cut]


def windows(picture: np.ndarray, size: int, stride: int) -> np.ndarray:
    """All windows of a picture [H, W, ...] at multiples of `stride`, row by row: [N, size, size, ...]."""
    grid = np.lib.stride_tricks.sliding_window_view(picture, (size, size), axis=(0, 1))[::stride, ::stride]
    grid = np.moveaxis(grid, (-2, -1), (2, 3))  # [rows, columns, size, size, ...]
    return grid.reshape(-1, *grid.shape[2:])


def load_photos(half: Half, size: int = 64, stride: int = 32, per_picture: int | None = None) -> tuple[Tensor, Tensor]:
    """Windows from one half of every picture.

    Args:
        half: "train" or "test"; no pixel is in both.
        size: side of a window in pixels.
        stride: distance between neighbouring windows in pixels.
        per_picture: at most so many windows of one picture, evenly spread over it; None takes all.

    Returns:
        Images, uint8 [N, 3, size, size], grey pictures with three equal channels; and labels, int64 [N], the
        position of the picture in :func:`find_photos`.

    Raises:
        ValueError: if `half` is another word, a number is below 1, or a window does not fit into half a picture.
    """
    if half not in ("train", "test"):
        raise ValueError(f'photos: half must be "train" or "test", got {half!r}')
    for name, value in (("size", size), ("stride", stride), ("per_picture", per_picture)):
        if value is not None and value < 1:
            raise ValueError(f"photos: {name} must be at least 1, got {value}")
    images, labels = [], []
    for label, (picture, path) in enumerate(find_photos().items()):
        with Image.open(path) as file:
            part = half_of(np.asarray(file.convert("RGB")), half)
        if min(part.shape[:2]) < size:
            raise ValueError(
                f"photos: size must be at most {min(part.shape[:2])}, since half of '{picture}' is "
                f"{part.shape[1]} x {part.shape[0]} pixels, got {size}"
            )
        crops = windows(part, size, stride)
        if per_picture is not None and len(crops) > per_picture:
            crops = crops[np.linspace(0, len(crops) - 1, per_picture).round().astype(int)]
        images.append(torch.from_numpy(np.ascontiguousarray(np.moveaxis(crops, -1, 1))))
        labels.append(torch.full((len(crops),), label, dtype=torch.int64))
    return torch.cat(images), torch.cat(labels)


class Photos(ImageData):
    """Windows of the pictures that scikit-image and scikit-learn ship, labelled with their picture.

    Args:
        batch_size: images per step and process.
        size: side of a window in pixels.
        stride: distance between neighbouring windows in pixels.
        per_picture: at most so many windows of one picture, evenly spread over it; None takes all.
        num_workers: loader processes; the images are in memory, so that none are needed.
        seed: key of the order of the training images, which is a function of (seed, epoch) alone.

    Raises:
        ValueError: from the constructor or ``setup`` for numbers out of range, see :func:`load_photos`.
    """

    def __init__(
        self,
        batch_size: int = 128,
        size: int = 64,
        stride: int = 32,
        per_picture: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.size, self.stride, self.per_picture = size, stride, per_picture
        self.class_names = list(find_photos())

    def setup(self, stage: str | None = None) -> None:
        """Read the pictures, once."""
        if not hasattr(self, "train"):
            options = (self.size, self.stride, self.per_picture)
            self.train = TensorImages(*load_photos("train", *options))
            self.test = TensorImages(*load_photos("test", *options))
