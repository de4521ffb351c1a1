"""Pictures in files as a data set: whole, of different sizes, and what happens where one cannot be read."""

from __future__ import annotations

import hashlib
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastssl.data.decode import UnreadableImage, decode_image, read_image
from fastssl.data.images import Batch, ImageList

OnError = Literal["raise", "skip"]
Labels = Literal["auto", "none"]


def check_choice(name: str, argument: str, value: Any, choices: Any) -> None:
    """Raise ValueError unless `value` is one of the words of a Literal."""
    if value not in get_args(choices):
        words = " or ".join(f'"{word}"' for word in get_args(choices))
        raise ValueError(f"{name}: {argument} must be {words}, got {value!r}")


def check_options(name: str, size: int | None, on_error: OnError, test_share: float) -> None:
    """Raise ValueError where an option that all readers of pictures have makes no sense."""
    if size is not None and size < 1:
        raise ValueError(f"{name}: size must be at least 1, got {size}")
    check_choice(name, "on_error", on_error, OnError)
    if not 0 < test_share < 1:
        raise ValueError(f"{name}: test_share must be between 0 and 1, got {test_share}")


def held_out(keys: Sequence[str], share: float) -> list[bool]:
    """Which pictures are kept from training, to test on: about a `share`, by a hash of each key alone.

    Pictures that are added later move none of the others, and the choice is the same on every machine. Where none is
    chosen, that with the smallest hash is.

    Args:
        keys: what identifies each picture, such as its path below a folder.
        share: between 0 and 1.
    """
    hashes = [int.from_bytes(hashlib.sha256(os.fsencode(key)).digest()[:6], "big") for key in keys]
    bound = max(share * 2**48, min(hashes, default=0) + 1)
    return [value < bound for value in hashes]


class Source(Protocol):
    """Where pictures come from, by number."""

    in_memory: bool

    def __len__(self) -> int: ...

    def path(self, number: int) -> Path:
        """Of the picture's file; for one inside of something else, a name that leads there."""

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


class Encoded(ABC):
    """Pictures that are part of something else, decoded when they are asked for; subclasses fetch their bytes.

    Args:
        size: see :func:`fastssl.data.decode.read_image`; `cap` likewise.
    """

    in_memory = False

    def __init__(self, size: int | None = None, cap: bool = False) -> None:
        self.size, self.cap = size, cap

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def path(self, number: int) -> Path:
        """A name of the picture: where it is, and there which."""

    @abstractmethod
    def data(self, number: int) -> bytes:
        """The picture as in a file; raises OSError or ValueError where it cannot be had."""

    def read(self, number: int) -> Tensor:
        """uint8 [3, H, W], a view of memory [H, W, 3]; raises :class:`UnreadableImage`."""
        try:
            return decode_image(self.data(number), self.size, cap=self.cap)
        except (OSError, ValueError) as error:
            raise UnreadableImage(f"cannot read {self.path(number)}: {error}") from None


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
        self, source: Source, labels: Sequence[int] | np.ndarray, on_error: OnError = "raise", name: str = "Pictures"
    ) -> None:
        check_choice(name, "on_error", on_error, OnError)
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
