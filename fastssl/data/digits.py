"""`digits`: the handwritten digits that scikit-learn carries in its wheel; nothing is downloaded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.data.base import ImageData
from fastssl.data.images import TensorImages

_TRAIN = 1437  # of 1797 images; the file goes from writer to writer, so that the last fifth is mostly by other hands


def load_digits(size: int = 32) -> tuple[Tensor, Tensor]:
    """All 1797 digits: the test part of "Optical Recognition of Handwritten Digits", Alpaydin and Kaynak 1998 (UCI).

    Args:
        size: side in pixels to which the 8 x 8 pixels are enlarged, bicubically.

    Returns:
        Images, uint8 [1797, 3, size, size] with three equal channels, bright on dark; and labels, int64 [1797].

    Raises:
        ValueError: if `size` is below 8.
    """
    if size < 8:
        raise ValueError(f"digits: size must be at least 8, that of the originals, got {size}")
    import sklearn.datasets

    pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).view(-1, 1, 8, 8).float() * (255 / 16)  # from 17 levels
    if size > 8:
        images = F.interpolate(images, (size, size), mode="bicubic")
    images = images.round().clamp(0, 255).to(torch.uint8)
    return images.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(labels).long()


class Digits(ImageData):
    """scikit-learn's handwritten digits: 1437 for training, the last 360, mostly by other writers, for testing.

    Args:
        batch_size: images per step and process.
        size: side in pixels to which they are enlarged from 8.
        num_workers: loader processes; the images are in memory, so that none are needed.
        seed: key of the order of the training images, which is a function of (seed, epoch) alone.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(self, batch_size: int = 128, size: int = 32, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__(batch_size, num_workers, seed)
        if size < 8:
            raise ValueError(f"Digits: size must be at least 8, that of the originals, got {size}")
        self.size = size
        self.class_names = [str(digit) for digit in range(10)]

    def setup(self, stage: str | None = None) -> None:
        """Read the digits, once."""
        if not hasattr(self, "train"):
            images, labels = load_digits(self.size)
            self.train = TensorImages(images[:_TRAIN], labels[:_TRAIN])
            self.test = TensorImages(images[_TRAIN:], labels[_TRAIN:])
