"""Pictures in files as a data set: whole, of different sizes, and what happens where one cannot be read."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastssl.data.decode import UnreadableImage, read_image
from fastssl.data.images import Batch, ImageList

OnError = Literal["raise", "skip"]


class Source(Protocol):
    """Where pictures come from, by number."""

    in_memory: bool

    def __len__(self) -> int: ...

    def path(self, number: int) -> Path:
        """Of the picture's file."""

    def read(self, number: int) -> Tensor:
        """uint8 [3, H, W]; raises :class:`UnreadableImage`."""


class Files:
    """Pictures decoded when they are asked for.

    Args:
        files: one path per picture.
        size: see :func:`fastssl.data.decode.read_image`; `cap` likewise.
    """

    in_memory = False

    def __init__(self, files: Sequence[str | Path], size: int | None = None, cap: bool = False) -> None:
        # One array: of a million Python objects, loader processes would get copies as they count references.
        self._paths = np.array([os.fsencode(file) for file in files])
        self.size, self.cap = size, cap

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, number: int) -> Path:
        """Of the picture's file."""
        return Path(os.fsdecode(bytes(self._paths[number])))

    def read(self, number: int) -> Tensor:
        """uint8 [3, H, W], a view of memory [H, W, 3]; raises :class:`UnreadableImage`."""
        return read_image(self.path(number), self.size, cap=self.cap)


class Pictures(Dataset[Batch]):
    """Whole pictures of different sizes, in batches whose `image` is an :class:`ImageList`.

    The images of a batch may be views of a cache: do not write to them.

    Args:
        source: of the pixels.
        labels: class of each picture, -1 where it is unknown.
        on_error: what to do with a picture that cannot be read: "raise", or "skip": name it in one warning and take the
            next picture that can be read, so that batches keep their size.
        name: how messages begin.

    Raises:
        UnreadableImage: from a batch, with "raise", naming the file.
        ValueError: if `on_error` is another word; from a batch, if no picture at all can be read.
    """

    def __init__(
        self, source: Source, labels: Sequence[int], on_error: OnError = "raise", name: str = "Pictures"
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f'{name}: on_error must be "raise" or "skip", got {on_error!r}')
        if len(labels) != len(source):
            raise ValueError(f"{name}: labels must be {len(source)} for as many pictures, got {len(labels)}")
        self.source, self.on_error, self.name = source, on_error, name
        self.labels = torch.as_tensor(labels, dtype=torch.int64)
        # Shared, so that what one loader process has found and named, the others and this one know.
        self._unreadable = torch.zeros(len(source), dtype=torch.bool).share_memory_()

    @property
    def in_memory(self) -> bool:
        """Whether reading costs next to nothing."""
        return self.source.in_memory

    @property
    def unreadable(self) -> list[Path]:
        """The files that could not be read so far and were skipped."""
        return [self.source.path(number) for number in self._unreadable.nonzero()[:, 0].tolist()]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Batch:
        """The picture at `index` as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch; `index` and `label` are those of the pictures that are really in it."""
        images, used = zip(*(self._read(int(number)) for number in indices), strict=True)
        index = torch.tensor(used)
        return Batch(ImageList(images), self.labels[index], index)

    def _read(self, number: int) -> tuple[Tensor, int]:
        """The picture with this number or the next readable one, and its number."""
        for candidate in (*range(number, len(self)), *range(number)):
            if self._unreadable[candidate]:
                continue
            try:
                return self.source.read(candidate), candidate
            except UnreadableImage as error:
                if self.on_error == "raise":
                    raise UnreadableImage(f"{self.name}: {error}") from None
                self._unreadable[candidate] = True
                warnings.warn(f"{self.name}: {error}; another picture takes its place", stacklevel=2)
        raise ValueError(f"{self.name}: none of the {len(self)} pictures can be read")
