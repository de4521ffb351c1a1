"""What every reader of images hands on: uint8 batches with label and index, and a DataModule around them.

A reader of a new data set subclasses :class:`ImageData`, sets ``train``, ``test`` and ``class_names`` in ``setup``
and inherits the loaders. Augmentation is no business of a reader: it happens on the batch, on its device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from fastssl.data.images import Batch, TensorImages

__all__ = ["Batch", "EpochLoader", "EpochOrder", "ImageData", "TensorImages"]


def _already_a_batch(batch: Batch) -> Batch:
    return batch


class EpochOrder(DistributedSampler[Batch]):
    """Order of the images of one process: a function of (seed, epoch), and of no generator that a run would carry on.

    Attributes:
        start: (epoch, image): where the next pass over that epoch begins. The images before it, which a continued run
            has seen already, are not read. It holds for one pass.
    """

    start = (0, 0)

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]  # indices, whatever the data set holds
        (epoch, image), self.start = self.start, (0, 0)
        return islice(super().__iter__(), image if epoch == self.epoch else 0, None)  # type: ignore[arg-type]


class EpochLoader(DataLoader[Batch]):
    """Batches of training images, from any batch of an epoch on."""

    def start_at(self, epoch: int, batch: int) -> None:
        """Let the next pass over `epoch` begin at `batch`. No image before it is read."""
        if isinstance(self.sampler, EpochOrder):  # Lightning puts another one in its place to overfit a few batches
            assert self.batch_size is not None
            self.sampler.start = epoch, batch * self.batch_size

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # PyTorch promises its own iterator
        # A generator, so that loader processes begin to read when the first batch is wanted. Lightning makes iterators
        # long before: when it counts the steps, knowing neither the epoch nor the batch where training continues.
        yield from super().__iter__()

    # Lightning takes a loader with these two for one that can begin in the middle of an epoch. There is nothing to
    # keep: (seed, epoch) give the order, and fastssl.methods.checkpoint.RunCheckpoint knows the batch.

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing."""


class ImageData(L.LightningDataModule):
    """Loaders over `train` and `test`, both sets of :class:`Batch` items that subclasses provide in ``setup``.

    Args:
        batch_size: images per step and process.
        num_workers: loader processes. Images that are already in memory need none, and get none.
        seed: key of the order of the training images, which is a function of (seed, epoch) alone.

    Raises:
        ValueError: if `batch_size` is below 1 or `num_workers` below 0.
    """

    train: Dataset[Batch]
    test: Dataset[Batch]
    class_names: Sequence[str]

    def __init__(self, batch_size: int = 128, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        name = type(self).__name__
        if batch_size < 1:
            raise ValueError(f"{name}: batch_size must be at least 1, got {batch_size}")
        if num_workers < 0:
            raise ValueError(f"{name}: num_workers must be at least 0, got {num_workers}")
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 where there are no labels; reads the data first where nothing else tells."""
        if not hasattr(self, "class_names"):
            self.setup("fit")
        return len(self.class_names)

    @property
    def unreadable(self) -> list[Path]:
        """Pictures that could not be read so far and were skipped, of all sets."""
        sets = {id(part): part for part in (getattr(self, name, None) for name in ("train", "bank", "test"))}
        return [path for part in sets.values() for path in getattr(part, "unreadable", [])]

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches, all of the same size: an incomplete last one is dropped."""
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        images = len(self.train) // world  # type: ignore[arg-type]  # Dataset promises no length, ours has one
        if images < self.batch_size:
            raise ValueError(
                f"{type(self).__name__}: batch_size must be at most {images}, the number of training images per "
                f"process, got {self.batch_size}"
            )
        # For one process too. Lightning calls set_epoch.
        order = EpochOrder(self.train, world, rank, shuffle=True, seed=self.seed, drop_last=True)
        return self._loader(self.train, EpochLoader, sampler=order, drop_last=True)

    def bank_dataloader(self) -> DataLoader[Batch]:
        """The labelled training images once, in order: what k-NN and linear probes are fitted on.

        Those of `bank` where a reader has such a set, because it trains on images without labels; else all of `train`.
        """
        return self._loader(getattr(self, "bank", self.train))

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test images once, in order."""
        return self._loader(self.test)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """What the evaluation during training needs: bank and test images, in this order."""
        return [self.bank_dataloader(), self.test_dataloader()]

    def _loader(self, images: Dataset[Batch], cls: type[DataLoader] = DataLoader, **kwargs) -> DataLoader[Batch]:
        workers = 0 if getattr(images, "in_memory", False) else self.num_workers
        return cls(
            images,
            batch_size=self.batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_already_a_batch,  # type: ignore[arg-type]  # what __getitems__ returns
            # Each pass draws a number for its loader processes; from PyTorch's generator, it would move dropout.
            generator=torch.Generator().manual_seed(self.seed),
            **kwargs,
        )
