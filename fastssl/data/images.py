"""Images of different sizes as one value, and what a batch of them is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info


class ImageList(list[Tensor]):
    """Images of different sizes, each uint8 [C, H, W]: a list that travels as one block of memory.

    Between processes, into pinned memory and to a device goes one tensor with the pixels of all of them, each image
    stored as [H, W, C]; what arrives is a list of views of it. An image that already lies so is not copied.
    """

    @classmethod
    def unpack(cls, pixels: Tensor, sizes: Iterable[tuple[int, int, int]]) -> ImageList:
        """Views of images that lie one after the other.

        Args:
            pixels: uint8 [sum of C H W].
            sizes: C, H, W of each image.
        """
        sizes = list(sizes)
        parts = pixels.split([channels * height * width for channels, height, width in sizes])
        return cls(
            part.view(height, width, channels).permute(2, 0, 1)
            for part, (channels, height, width) in zip(parts, sizes, strict=True)
        )

    @property
    def sizes(self) -> list[tuple[int, int, int]]:
        """C, H, W of each image."""
        return [tuple(image.shape) for image in self]  # type: ignore[misc]  # each has three

    @property
    def device(self) -> torch.device:
        """Of the images; the CPU where there are none."""
        return self[0].device if self else torch.device("cpu")

    def pack(self, *, pin: bool = False) -> Tensor:
        """The pixels of all images one after the other, uint8 [sum of C H W]; no copy where they lie so already.

        Args:
            pin: whether they have to lie in pinned memory.
        """
        parts = [image.permute(1, 2, 0).reshape(-1) for image in self]
        total = sum(len(part) for part in parts)
        if (whole := self._one_block(parts, total)) is not None:
            return whole.pin_memory() if pin else whole
        if pin:
            block = torch.empty(total, dtype=torch.uint8, pin_memory=True)
        elif get_worker_info() is not None:
            # Directly into the memory that the loader's process will see, as PyTorch's own collate function does.
            storage = torch.UntypedStorage._new_shared(total)
            block = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (total,), (1,))
        else:
            block = torch.empty(total, dtype=torch.uint8, device=self.device)
        return torch.cat(parts, out=block) if parts else block

    @staticmethod
    def _one_block(parts: list[Tensor], total: int) -> Tensor | None:
        # Not a part of more, such as a mapped file with all the images there are, which would travel with them.
        if not parts or parts[0].untyped_storage().nbytes() != total:
            return None
        storage, offset = parts[0].untyped_storage(), 0
        for part in parts:
            if part.untyped_storage().data_ptr() != storage.data_ptr() or part.storage_offset() != offset:
                return None
            offset += len(part)
        return parts[0].as_strided((total,), (1,), 0)

    def to(self, device: torch.device | str, non_blocking: bool | None = None) -> ImageList:
        """The images on `device`, moved in one copy, which from pinned memory is asynchronous unless told otherwise."""
        if self.device == torch.device(device):
            return self
        pixels = self.pack()
        if non_blocking is None:
            non_blocking = pixels.is_pinned()
        return self.unpack(pixels.to(device, non_blocking=non_blocking), self.sizes)

    def pin_memory(self) -> ImageList:
        """The images in pinned memory."""
        return self.unpack(self.pack(pin=True), self.sizes)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).unpack, (self.pack(), self.sizes)


Images = Tensor | list[Tensor]


class Batch(NamedTuple):
    """One batch of images.

    Attributes:
        image: uint8 [B, C, H, W], values 0 to 255; or, where sizes differ, a list of B images uint8 [C, H, W].
        label: int64 [B], class of each image, -1 where it is unknown.
        index: int64 [B], position of each image in its data set. Random views are keyed on it, so that they depend
            neither on the batch in which an image arrives nor on the number of processes.
    """

    image: Images
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # in the place of tuple.index, which nobody needs here


def move_images(image: Images, device: torch.device | str) -> Images:
    """A stack or list of images on `device`; from pinned memory asynchronously."""
    if isinstance(image, Tensor):
        return image.to(device, non_blocking=image.is_pinned())
    return (image if isinstance(image, ImageList) else ImageList(image)).to(device)


class TensorImages(Dataset[Batch]):
    """Images held in memory.

    Args:
        images: uint8 [N, C, H, W].
        labels: int64 [N].

    Raises:
        ValueError: if a dtype or shape differs from the above.
    """

    in_memory = True

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(
                f"TensorImages: images must be uint8 [N, C, H, W], got {images.dtype} {tuple(images.shape)}"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"TensorImages: labels must be int64 [{len(images)}] for {len(images)} images, "
                f"got {labels.dtype} {tuple(labels.shape)}"
            )
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        """The image at `index` as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch in one indexing operation; the loader calls this instead of stacking single images."""
        index = torch.as_tensor(indices)
        return Batch(self.images[index], self.labels[index], index)
