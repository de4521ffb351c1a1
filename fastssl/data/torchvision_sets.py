"""`cifar10`, `cifar100` and `stl10`, from the files that torchvision reads too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torchvision.datasets
from torch import Tensor
from torch.utils.data import Dataset

from fastssl.data.base import ImageData
from fastssl.data.download import Archive, find_or_fetch
from fastssl.data.images import Batch, TensorImages


class CIFAR10(ImageData):
    """CIFAR-10, Krizhevsky 2009: 50 000 images of 32 x 32 pixels for training, 10 000 for testing, 10 classes.

    They are held in memory. The files are pickles, which could do anything: they are read only where their MD5 is the
    published one.

    Args:
        root: the folder that holds cifar-10-batches-py or cifar-100-python, as torchvision has it.
        batch_size: images per step and process.
        download: whether the files are fetched where they are missing, with a line in the log about it.
        num_workers: loader processes; the images are in memory, so that none are needed.
        seed: key of the order of the training images, which is a function of (seed, epoch) alone.

    Raises:
        ValueError: from the constructor for a number out of range; from ``setup`` if files are missing or damaged.
        OSError: from ``setup`` if there is no such folder, or it cannot be downloaded.
    """

    _torchvision: ClassVar[type[torchvision.datasets.CIFAR10]] = torchvision.datasets.CIFAR10

    def __init__(
        self, root: str, batch_size: int = 128, download: bool = False, num_workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.root, self.download = Path(root).expanduser(), download

    def setup(self, stage: str | None = None) -> None:
        """Read the images, once; fetch them before, if that was asked for."""
        if hasattr(self, "train"):
            return
        name, published = type(self).__name__, self._torchvision
        archive = Archive(published.url, published.tgz_md5, published.base_folder)
        folder = find_or_fetch(name, archive, self.root, download=self.download)
        try:
            train, test = (published(str(folder.parent), train=half) for half in (True, False))
        except RuntimeError:
            files = [file for file, _ in (*published.train_list, *published.test_list)] + [published.meta["filename"]]
            raise ValueError(
                f"{name}: {folder} must hold {', '.join(files)} with the published MD5, one of them is missing or "
                "damaged; remove the folder to download it again"
            ) from None
        self.class_names = list(train.classes)
        self.train, self.test = (
            TensorImages(torch.from_numpy(half.data).permute(0, 3, 1, 2), torch.tensor(half.targets))
            for half in (train, test)
        )


class CIFAR100(CIFAR10):
    """CIFAR-100, Krizhevsky 2009: see :class:`CIFAR10`; 100 classes, in cifar-100-python."""

    _torchvision = torchvision.datasets.CIFAR100


class STL10(ImageData):
    """STL-10, Coates, Ng, Lee 2011: images of 96 x 96 pixels, 10 classes.

    Training sees the 100 000 images without a label together with the 5 000 with one; k-NN and linear probes are fitted
    on those 5 000 and tested on 8 000. The files are mapped into memory, not read into it.

    Args:
        root: the folder that holds stl10_binary, as torchvision has it.
        unlabeled: whether the images without a label are trained on too.
        batch_size: images per step and process.
        download: whether the files are fetched where they are missing, with a line in the log about it.
        num_workers: loader processes; the images need none.
        seed: key of the order of the training images, which is a function of (seed, epoch) alone.

    Raises:
        ValueError: from the constructor for a number out of range; from ``setup`` if files are damaged.
        OSError: from ``setup`` if files are missing, or cannot be downloaded.
    """

    def __init__(
        self,
        root: str,
        unlabeled: bool = True,
        batch_size: int = 128,
        download: bool = False,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.root, self.unlabeled, self.download = Path(root).expanduser(), unlabeled, download

    def setup(self, stage: str | None = None) -> None:
        """Map the files, once; fetch them before, if that was asked for."""
        if hasattr(self, "train"):
            return
        published = torchvision.datasets.STL10
        archive = Archive(published.url, published.tgz_md5, published.base_folder)
        folder = find_or_fetch("STL10", archive, self.root, download=self.download)
        names = folder / published.class_names_file
        needed = ["train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", *["unlabeled_X.bin"] * self.unlabeled]
        missing = [path.name for path in (names, *map(folder.joinpath, needed)) if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"STL10: {folder} lacks {', '.join(missing)}")
        self.class_names = names.read_text().split()
        labelled, test = (
            TensorImages(self._images(folder / f"{half}_X.bin"), self._labels(folder, half))
            for half in ("train", "test")
        )
        if self.unlabeled:
            images = self._images(folder / "unlabeled_X.bin")
            self.bank = labelled
            self.train = Joined([labelled, TensorImages(images, torch.full((len(images),), -1))])
        else:
            self.train = labelled
        self.test = test

    @staticmethod
    def _images(path: Path) -> Tensor:
        """uint8 [N, 3, 96, 96]; each channel is stored column by column."""
        each, length = 3 * 96 * 96, path.stat().st_size
        if not length or length % each:
            raise ValueError(f"STL10: the length of {path} must be a multiple of {each} bytes, it is {length}")
        whole = torch.from_file(str(path), shared=False, size=length, dtype=torch.uint8)
        return whole.view(-1, 3, 96, 96).transpose(2, 3)

    def _labels(self, folder: Path, half: str) -> Tensor:
        """int64 [N], from 0 on."""
        path, images = folder / f"{half}_y.bin", (folder / f"{half}_X.bin").stat().st_size // (3 * 96 * 96)
        labels = np.fromfile(path, np.uint8)
        if len(labels) != images or not ((labels >= 1) & (labels <= len(self.class_names))).all():
            raise ValueError(
                f"STL10: {path} must hold {images} labels from 1 to {len(self.class_names)}, one per image, "
                f"it has {len(labels)}"
            )
        return torch.from_numpy(labels).long() - 1


class Joined(Dataset[Batch]):
    """Sets of images of one size, one after the other as one set.

    Args:
        parts: the sets, in memory.
    """

    in_memory = True

    def __init__(self, parts: Sequence[TensorImages]) -> None:
        self.parts = list(parts)
        self._ends = torch.tensor([len(part) for part in self.parts]).cumsum(0)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Batch:
        """The image at `index` as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch."""
        index = torch.as_tensor(indices)
        part_of = torch.bucketize(index, self._ends, right=True)
        image = torch.empty(len(index), *self.parts[0].images.shape[1:], dtype=torch.uint8)
        label = torch.empty(len(index), dtype=torch.int64)
        for number, part in enumerate(self.parts):
            here = (part_of == number).nonzero()[:, 0]
            if len(here):
                batch = part.__getitems__(index[here] - (self._ends[number] - len(part)))  # type: ignore[arg-type]
                image[here], label[here] = batch.image, batch.label  # type: ignore[assignment]  # a stack
        return Batch(image, label, index)
