"""`ViewLoader`: decode in loader processes, augment whole batches; for training loops of one's own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from fastssl.data.images import Batch, ImageList, Images, move_images


class Views(NamedTuple):
    """What a :class:`ViewLoader` yields.

    Attributes:
        views: what the transform made: of fastssl.augment's, a list with one tensor [B, C, h, w] per view.
        label: int64 [B], -1 where it is unknown; on the device of the views.
        index: int64 [B], position of each image in its data set; on the device of the views.
    """

    views: Any
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # in the place of tuple.index


class ViewLoader:
    """Batches of random views: decoded in loader processes, augmented a batch at a time.

    Iterating yields ``(views, label, index)``. Order and views are functions of (seed, epoch) and the position of an
    image in its data set: they depend neither on `num_workers` nor on the number of processes that train. Each pass
    over the loader is the next epoch, from 0 on; ``set_epoch`` says which one the next is, as after a checkpoint.

        loader = ViewLoader(torchvision.datasets.ImageFolder("images"), SimCLRTransform(224), 256, num_workers=8)
        for epoch in range(100):
            for (x0, x1), _, _ in loader:
                ...

    Args:
        dataset: of this package (`Pictures`, `TensorImages`, `ImageData.train`), or any with a length whose items are
            images or tuples (image, label, ...): Pillow images, uint8 tensors [C, H, W] or arrays [H, W, C] or [H, W].
            Leave random transforms out of it.
        transform: ``transform(images, seed=, epoch=, index=)``, such as those of `fastssl.augment`, called with a uint8
            stack [B, C, H, W] or a list of images [C, H, W] on `device`.
        batch_size: images per batch and process.
        shuffle: whether each epoch has its own random order.
        drop_last: whether an incomplete last batch is left out. Of several processes, each gets as many images.
        num_workers: processes that decode; 0 decodes in this one.
        seed: key of order and views.
        device: where views are made. Batches reach a CUDA device from pinned memory, in one asynchronous copy.
        prefetch: batches made ahead in a thread while the caller works on one: views where `device` is the CPU, else
            images in pinned memory. It doubles the speed of a caller that waits for a GPU as long as a batch takes, and
            slows one down that computes on the same processors. None: 1 where there is a CUDA device, else 0.
        rank: of this process among `world_size` that share the data; None takes those of torch.distributed.
        world_size: see `rank`.

    Raises:
        ValueError: if a number is out of range, or there are fewer images per process than a batch with `drop_last`.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        transform: Callable[..., Any],
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = True,
        num_workers: int = 0,
        seed: int = 0,
        device: torch.device | str = "cpu",
        prefetch: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if prefetch is None:
            prefetch = int(torch.cuda.is_available())
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
            ("prefetch", prefetch, 0),
        ):
            if value < least:
                raise ValueError(f"ViewLoader: {name} must be at least {least}, got {value}")
        self.dataset, self.transform, self.batch_size = dataset, transform, batch_size
        self.seed, self.device, self.prefetch, self.epoch = seed, torch.device(device), prefetch, 0
        if rank is None or world_size is None:
            group = torch.distributed.is_available() and torch.distributed.is_initialized()
            rank, world_size = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if group else (0, 1)
        images = _Images(dataset)
        most = len(images) // world_size
        if drop_last and most < batch_size:
            raise ValueError(
                f"ViewLoader: batch_size must be at most {most}, the number of images per process, got {batch_size}"
            )
        # For one process too: its order depends on (seed, epoch) and on no generator.
        self._order: DistributedSampler[Any] = DistributedSampler(
            images, world_size, rank, shuffle=shuffle, seed=seed, drop_last=drop_last
        )
        self._loader: DataLoader[Batch] = DataLoader(
            images,
            batch_size,
            sampler=self._order,
            drop_last=drop_last,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=self.device.type == "cuda",
            collate_fn=_as_it_is,  # type: ignore[arg-type]  # what __getitems__ returns
        )

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self._loader)

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass over the loader that of `epoch`."""
        if epoch < 0:
            raise ValueError(f"ViewLoader: epoch must be at least 0, got {epoch}")
        self.epoch = epoch

    def __iter__(self) -> Iterator[Views]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        self._order.set_epoch(epoch)
        # Work for a GPU is enqueued by the caller's thread, in the order of the caller's stream.
        here = self.device.type == "cpu"
        batches: Iterator[Any] = iter(self._loader)
        if here:
            batches = (self._augment(batch, epoch) for batch in batches)
        if self.prefetch:
            batches = _ahead(batches, self.prefetch)
        for batch in batches:
            yield batch if here else self._augment(batch, epoch)

    def _augment(self, batch: Batch, epoch: int) -> Views:
        label, index = (x.to(self.device, non_blocking=True) for x in (batch.label, batch.index))
        image = move_images(batch.image, self.device)
        return Views(self.transform(image, seed=self.seed, epoch=epoch, index=index), label, index)


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _ahead(items: Iterator[Any], count: int) -> Iterator[Any]:
    """The same items, up to `count` of them made ahead by a thread, which ends with the iteration."""
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue()
    room = threading.Semaphore(count)
    stopped = threading.Event()

    def produce() -> None:
        try:
            while True:
                room.acquire()
                if stopped.is_set():
                    return
                ready.put((True, next(items)))
        except BaseException as error:  # StopIteration too; raised again where the items are taken
            ready.put((False, error))

    thread = threading.Thread(target=produce, name="ViewLoader", daemon=True)
    thread.start()
    try:
        while True:
            fine, item = ready.get()
            if not fine:
                if isinstance(item, StopIteration):
                    return
                raise item
            room.release()
            yield item
            del item  # not kept alive while the next one is waited for
    finally:
        stopped.set()
        room.release()
        thread.join()


class _Images(Dataset[Batch]):
    """Any data set of images as one of batches."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        indices = [int(number) for number in indices]
        items = self.dataset.__getitems__(indices) if hasattr(self.dataset, "__getitems__") else None
        if isinstance(items, Batch):
            return items
        if items is None:
            items = [self.dataset[number] for number in indices]
        if items and isinstance(items[0], Batch):  # each a batch of one
            images = [image for item in items for image in item.image]
            label, index = (torch.cat([item[part] for item in items]) for part in (1, 2))
            return Batch(_together(images), label, index)
        images, labels = [], []
        for number, item in zip(indices, items, strict=True):
            image, *rest = item if isinstance(item, (tuple, list)) else (item,)
            images.append(_to_tensor(image, number))
            labels.append(int(rest[0]) if rest else -1)
        return Batch(_together(images), torch.tensor(labels), torch.tensor(indices))


def _to_tensor(image: Any, number: int) -> Tensor:
    """uint8 [C, H, W] of a tensor [C, H, W], an array [H, W, C] or [H, W], or a Pillow image."""
    if not isinstance(image, Tensor):
        if hasattr(image, "mode") and image.mode not in ("L", "RGB"):
            image = image.convert("RGB")
        image = torch.from_numpy(np.array(image))
        image = image[None] if image.ndim == 2 else image.permute(2, 0, 1) if image.ndim == 3 else image
    if image.dtype != torch.uint8 or image.ndim != 3:
        raise ValueError(
            "ViewLoader: images must be uint8, [C, H, W] as tensors and [H, W, C] as arrays, got "
            f"{image.dtype} {tuple(image.shape)} at {number}; leave transforms to the loader"
        )
    return image


def _together(images: list[Tensor]) -> Images:
    if len({image.shape for image in images}) == 1:
        return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
    return ImageList(images)
