"""`Folder`: one's own pictures, a folder per class, decoded when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from fastssl.data.base import Batch, ImageData

_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


def read_square(path: Path, size: int) -> Tensor:
    """The picture's central square, scaled to uint8 [3, size, size].

    Raises:
        ValueError: naming the file, if it is no picture that Pillow can read.
    """
    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (size, size))  # a large JPEG is decoded at a fraction of its size
            square = ImageOps.fit(
                ImageOps.exif_transpose(picture).convert("RGB"), (size, size), Image.Resampling.BICUBIC
            )
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"Folder: cannot read {path}: {error}") from None
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


class FolderImages(Dataset[Batch]):
    """Pictures in files.

    Args:
        files: one path per picture.
        labels: class of each.
        size: side in pixels of the squares handed on.
    """

    def __init__(self, files: Sequence[Path], labels: Sequence[int], size: int) -> None:
        self.files, self.labels, self.size = list(files), list(labels), size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Batch:
        """The picture at `index` as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch."""
        images = torch.stack([read_square(self.files[i], self.size) for i in indices])
        return Batch(images, torch.tensor([self.labels[i] for i in indices]), torch.as_tensor(indices))


class Folder(ImageData):
    """Pictures under ``root/train/<class>/`` and ``root/test/<class>/`` (or ``val``), at any depth below the class.

    Args:
        root: the folder that holds both.
        size: side in pixels of the central squares from which views are cropped.
        batch_size: images per step and process.
        num_workers: processes that decode.
        seed: key of the order of the training images.

    Raises:
        FileNotFoundError: if a folder is missing or holds no picture.
        ValueError: if a number is out of range, or a test class is not among the training classes.
    """

    def __init__(self, root: str, size: int = 256, batch_size: int = 128, num_workers: int = 2, seed: int = 0) -> None:
        super().__init__(batch_size, num_workers, seed)
        if size < 1:
            raise ValueError(f"Folder: size must be at least 1, got {size}")
        self.root, self.size = Path(root).expanduser(), size

    def setup(self, stage: str) -> None:
        """List the files of both halves."""
        test = next((name for name in ("test", "val") if (self.root / name).is_dir()), None)
        if not (self.root / "train").is_dir() or test is None:
            raise FileNotFoundError(
                f"Folder: root must hold the folders train and test (or val) with a folder per class, got {self.root}"
            )
        self.class_names = self._classes(self.root / "train")
        unknown = sorted(set(self._classes(self.root / test)) - set(self.class_names))
        if unknown:
            raise ValueError(f"Folder: {self.root / test} has classes that {self.root / 'train'} lacks: {unknown[:5]}")
        self.train = self._images(self.root / "train")
        self.test = self._images(self.root / test)

    @staticmethod
    def _classes(folder: Path) -> list[str]:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))

    def _images(self, folder: Path) -> FolderImages:
        files: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(self.class_names):
            here = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in _ENDINGS)
            files += here
            labels += [label] * len(here)
        if not files:
            raise FileNotFoundError(
                f"Folder: no picture ({', '.join(sorted(_ENDINGS))}) in the class folders of {folder}"
            )
        return FolderImages(files, labels, self.size)
