"""What every reader of images hands on: uint8 batches with label and index, and a DataModule around them.

A reader of a new data set subclasses :class:`ImageData`, sets ``train``, ``test`` and ``class_names`` in ``setup``
and inherits the loaders. Augmentation is no business of a reader: it happens on the batch, on its device.
"""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from fastssl.data.images import Batch, TensorImages

__all__ = ["Batch", "ImageData", "TensorImages"]


def _already_a_batch(batch: Batch) -> Batch:
    return batch


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
        """Number of classes."""
        return len(self.class_names)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches, all of the same size: an incomplete last one is dropped."""
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        images = len(self.train) // world  # type: ignore[arg-type]  # Dataset promises no length, ours has one
        if images < self.batch_size:
            raise ValueError(
                f"{type(self).__name__}: batch_size must be at most {images}, the number of training images per "
                f"process, got {self.batch_size}"
            )
        # Used for one process too: unlike RandomSampler its order depends on (seed, epoch) only, hidden state apart.
        # Lightning calls set_epoch.
        order: DistributedSampler[Batch] = DistributedSampler(
            self.train, world, rank, shuffle=True, seed=self.seed, drop_last=True
        )
        return self._loader(self.train, sampler=order, drop_last=True)

    def bank_dataloader(self) -> DataLoader[Batch]:
        """The training images once, in order: what k-NN and linear probes are fitted on."""
        return self._loader(self.train)

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test images once, in order."""
        return self._loader(self.test)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """What the evaluation during training needs: bank and test images, in this order."""
        return [self.bank_dataloader(), self.test_dataloader()]

    def _loader(self, images: Dataset[Batch], **kwargs) -> DataLoader[Batch]:
        workers = 0 if getattr(images, "in_memory", False) else self.num_workers
        return DataLoader(
            images,
            batch_size=self.batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_already_a_batch,  # type: ignore[arg-type]  # what __getitems__ returns
            **kwargs,
        )
