"""`webdataset`: shards of tar files, read by position, so that every order and every continuation is exact."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

import numpy as np

from fastssl.data.base import ImageData
from fastssl.data.cache import cache_folder
from fastssl.data.decode import UnreadableImage
from fastssl.data.pictures import Labels, OnError, Pictures, check_choice, check_options, held_out
from fastssl.data.shards import Shard, ShardPictures, expand, index

_log = logging.getLogger(__name__)


class WebDataset(ImageData):
    """Shards as WebDataset writes them: tar files whose members are a sample where their names agree up to the dot.

    A picture is the member with the ending jpg, jpeg, png or webp, its label the whole number in .cls, or that at
    "label" in .json, or none; samples without a picture are left out. The package webdataset streams shards, in an
    order that depends on how many processes read; here the headers are read once, and then any picture by itself: the
    order is a function of (seed, epoch), and a run that was stopped goes on exactly where it was. Pictures are read in
    random order: keep shards on a disk that is fast at that.

    Args:
        train: files to train on: names with braces ("train-{000..127}.tar"), wildcards, or a list of them.
        test: files to test on; None keeps about a share of `test_share` of the samples from training, by a hash of the
            name of shard and sample.
        size: a picture is decoded at 1/2, 1/4 or 1/8 as long as its short side stays at least so long; None: whole.
        batch_size: images per step and process.
        num_workers: processes that decode.
        seed: key of the order of the training images.
        cap: whether a short side still longer than `size` is resized to it.
        cache_dir: folder of what was found in the headers; None takes fastssl in the user's cache folder.
        on_error: a picture, label or shard that cannot be read: "skip" names it in a warning, lists it in `unreadable`
            and goes on without it; "raise" names it and ends.
        labels: "none" leaves the labels out.
        test_share: share of the pictures to test on, where there are no files for that.

    Raises:
        ValueError: if an option is out of range, or files are not on this machine.
        FileNotFoundError: from ``setup``, if a file is missing, or there is no picture to train or to test on.
        UnreadableImage: for what cannot be read, with "raise".
    """

    def __init__(
        self,
        train: str | list[str],
        test: str | list[str] | None = None,
        size: int | None = 448,
        batch_size: int = 128,
        num_workers: int = 2,
        seed: int = 0,
        cap: bool = False,
        cache_dir: str | None = None,
        on_error: OnError = "skip",
        labels: Labels = "auto",
        test_share: float = 0.1,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        check_options("WebDataset", size, on_error, test_share)
        check_choice("WebDataset", "labels", labels, Labels)
        self.train_files, self.test_files, self.size, self.cap = train, test, size, cap
        self.cache_dir, self.on_error, self.labels = cache_folder(cache_dir), on_error, labels
        self.test_share = test_share
        self._broken: list[Path] = []

    @property
    def unreadable(self) -> list[Path]:
        """What could not be read so far and was left out: shards, and members of shards."""
        return [*self._broken, *super().unreadable]

    def setup(self, stage: str | None = None) -> None:
        """Find what lies where in the shards; once."""
        if hasattr(self, "train"):
            return
        paths = expand("train", self.train_files)
        tested = None if self.test_files is None else expand("test", self.test_files)
        _log.info("finding the pictures in %d tar files", len(paths) + len(tested or ()))
        shards = self._index(paths)
        chosen = np.zeros(sum(len(shard.labels) for shard in shards), bool)
        if tested is None:
            keys = [
                f"{path.name}/{os.fsdecode(key)}"
                for path, shard in zip(paths, shards, strict=True)
                for key in shard.keys
            ]
            chosen = np.array(held_out(keys, self.test_share), bool)
            test = self._pictures(paths, shards, chosen, "test")
        else:
            test = self._pictures(tested, self._index(tested), None, "test")
        train = self._pictures(paths, shards, ~chosen, "train")
        most = max(int(train.labels.max()), int(test.labels.max()))
        self.class_names = [str(number) for number in range(most + 1)]
        self.train, self.test = train, test

    def _index(self, paths: list[Path]) -> list[Shard]:
        shards = []
        for path in paths:
            try:
                shard = index(path, self.cache_dir)
                broken = [(path / name if name else path, reason) for name, reason in shard.broken.tolist()]
            except UnreadableImage as error:
                shard, broken = Shard.of(), [(path, str(error))]
            shards.append(shard)
            for where, reason in broken:
                message = f"WebDataset: cannot read {where}: {reason}"
                if self.on_error == "raise":
                    raise UnreadableImage(message)
                warnings.warn(f"{message}; left out", stacklevel=2)
                self._broken.append(where)
        return shards

    def _pictures(self, paths: list[Path], shards: list[Shard], chosen: np.ndarray | None, half: str) -> Pictures:
        source = ShardPictures(paths, shards, chosen, self.size, self.cap)
        if not len(source):
            raise FileNotFoundError(
                f"WebDataset: no picture (jpg, jpeg, png, webp) to {half} in {len(paths)} tar files"
            )
        labels = np.concatenate([shard.labels for shard in shards])
        labels = labels if chosen is None else labels[chosen]
        return Pictures(
            source, labels if self.labels == "auto" else np.full(len(source), -1), self.on_error, "WebDataset"
        )
