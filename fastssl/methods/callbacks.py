"""What a training run shows: images per second, and one line per epoch where there is no terminal to draw on."""

from __future__ import annotations

import time
from typing import Any

import lightning as L

from fastssl.data.base import Batch


class Throughput(L.Callback):
    """Log `images/s` over the epoch so far: images (not views) of all processes; evaluation does not count.

    Attributes:
        rate: images per second over the whole training so far.
    """

    def __init__(self) -> None:
        self._images = self._total_images = 0
        self._seconds = self._total_seconds = 0.0
        self._since: float | None = None

    @property
    def rate(self) -> float:
        seconds = self._seconds + self._total_seconds
        return (self._images + self._total_images) / seconds if seconds else 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._total_images += self._images
        self._total_seconds += self._seconds
        self._images, self._seconds, self._since = 0, 0.0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        # From the end of one step to the end of the next, so that waiting for data counts.
        now = time.perf_counter()
        if self._since is not None:
            self._seconds += now - self._since
        self._since = now
        self._images += len(batch.image) * trainer.world_size
        pl_module.log("images/s", self._images / max(self._seconds, 1e-9), prog_bar=True, rank_zero_only=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = time.perf_counter()


class EpochLines(L.Callback):
    """Print one line per epoch: a progress bar for logs and pipes."""

    def __init__(self) -> None:
        self._evaluated = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            stale = () if self._evaluated else ("knn", "probe")  # still those of an earlier epoch
            values = " ".join(f"{k} {float(v):.4g}" for k, v in trainer.progress_bar_metrics.items() if k not in stale)
            print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: {values}", flush=True)
        self._evaluated = False
