"""Line after line through the tasks of ``fastssl eval``: features once, then what is measured on them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fastssl.data.base import ImageData
from fastssl.evaluate.cache import FeatureCache
from fastssl.evaluate.features import Both, Features
from fastssl.evaluate.lines import LINES, TRAINABLE
from fastssl.evaluate.tasks import (
    WITHOUT_LABELS,
    Measured,
    Options,
    make_maps,
    measure_features,
    measure_few_labels,
    measure_training,
)
from fastssl.models.encoder import Encoder


class Comparison:
    """Measures lines on the same images with the same tasks, and prints what takes long.

    Args:
        data: after ``setup``.
        cache: of features.
        tasks: names from :data:`fastssl.evaluate.tasks.TASKS`.
        on: "h", "z" or both: of the encoder that the comparison is about.
        options: of the tasks.
        seed: of all that is random.
        device: where features are measured; encoders are where they are.

    Attributes:
        features: of that encoder, h of "bank" and "test".
        maps: of its test images, see :func:`fastssl.evaluate.tasks.make_maps`.
        values: {line: {"h" or "z": {name: number}}}, what tables show.
        details: {line: {"h" or "z": {task: what else there is to say}}}.
    """

    def __init__(
        self,
        data: ImageData,
        cache: FeatureCache,
        tasks: Collection[str],
        on: Sequence[str] = ("h",),
        options: Options | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.data, self.cache, self.tasks, self.on, self.seed, self.device = data, cache, tasks, on, seed, device
        self.options = options or Options()
        self.features: dict[str, Features] = {}
        self.maps: dict[str, np.ndarray] = {}
        self.values: dict[str, dict[str, dict[str, float]]] = {}
        self.details: dict[str, dict[str, dict[str, Any]]] = {}

    @property
    def measures(self) -> bool:
        """Whether there are tasks that give numbers."""
        return bool(set(self.tasks) - set(WITHOUT_LABELS))

    def add(self, line: str, encoder: Encoder | None, *, subject: bool = False, measured: bool = True) -> None:
        """Measure a line.

        Args:
            line: a name from LINES.
            encoder: None: the pixels.
            subject: whether it is what the comparison is about: features and maps are kept, and z is measured too.
            measured: whether numbers are wanted.

        Raises:
            ValueError: if numbers are wanted and no training or no test image has a label.
        """
        name = LINES[line]
        with _announced(f"{name}: features"):
            bank, test = (
                self._features(encoder, batches)
                for batches in (self.data.bank_dataloader(), self.data.test_dataloader())
            )
        if subject:
            self.features = {"bank": bank.h, "test": test.h}
            if set(self.tasks) & set(WITHOUT_LABELS):
                with _announced(f"{name}: maps"):
                    self.maps = make_maps(test, self.on, self.tasks, self.options.map, self.seed)
        if not (measured and self.measures):
            return
        for half, features in (("training", bank.h), ("test", test.h)):
            if not len(features.known().x):
                raise ValueError(f"no {half} image of {type(self.data).__name__} has a label; a map needs none")
        for space in self.on if subject else ["h"]:
            with _announced(f"{name}: measures on {space}"):
                found = self._measure(bank, test, space)
            if space == "h" and line in TRAINABLE and encoder is not None:
                found.add(
                    measure_training(encoder, bank, self.data, self.tasks, self.options, self.seed, _progress_of(name))
                )
            self.values.setdefault(line, {})[space] = found.values
            self.details.setdefault(line, {})[space] = found.details

    def _features(self, encoder: Encoder | None, batches: Any) -> Both:
        if encoder is not None:
            return self.cache.both(encoder, batches)
        x = self.cache.pixels(batches)
        return Both(x, None, x.label)

    def _measure(self, bank: Both, test: Both, space: str) -> Measured:
        train, queries = (bank.h, test.h) if space == "h" else (bank.z, test.z)
        assert train is not None and queries is not None  # asked for where there is a projection
        train, queries = (Features(*(part.to(self.device) for part in half)) for half in (train, queries))
        found = measure_features(train, queries, self.data.num_classes, self.tasks, self.options, self.seed)
        if "semi" in self.tasks:
            found.add(measure_few_labels(train, queries, self.data.num_classes, self.options, self.seed))
        return found


@contextmanager
def _announced(what: str) -> Iterator[None]:
    """Say what takes long, and how long it took."""
    start = time.perf_counter()
    print(f"{what} ...", end="", flush=True)
    try:
        yield
    except BaseException:
        print(flush=True)
        raise
    print(f" {time.perf_counter() - start:.1f} s", flush=True)


def _progress_of(line: str) -> Callable[[str, int, int, float], None]:
    def progress(name: str, epoch: int, epochs: int, loss: float) -> None:
        if sys.stdout.isatty() or epoch == epochs:
            end = "\n" if epoch == epochs else "\r"
            print(f"{line}: {name}, epoch {epoch}/{epochs}, loss {loss:.3f}", end=end, flush=True)

    return progress
