"""What a training run shows: images per second, what remains of the time, and lines where there is no terminal."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar

from fastssl.data.base import Batch
from fastssl.methods.checkpoint import RunCheckpoint


def training_callbacks(
    folder: str | Path, *, checkpoint_every: int = 0, checkpoint_minutes: float = 10.0, terminal: bool = False
) -> tuple[Throughput, RunCheckpoint, list[L.Callback]]:
    """The callbacks of a run. Give its trainer `plugins=[AtomicCheckpointIO()]` too.

    Args:
        folder: of the run. Only process 0 has to know it, and may set `folder` of the second until training begins.
        checkpoint_every: steps between two checkpoints, 0 for none by steps.
        checkpoint_minutes: minutes between two checkpoints, 0 for none by time.
        terminal: whether a progress bar can be drawn.

    Returns:
        What measures the speed, what writes checkpoints, and a list with these and all the others.
    """
    throughput, checkpoint = Throughput(), RunCheckpoint(folder, checkpoint_every, checkpoint_minutes)
    progress = ProgressBar(throughput) if terminal else ProgressLines(throughput)
    return throughput, checkpoint, [throughput, progress, checkpoint]


class Throughput(L.Callback):
    """Log `images/s` over the epoch so far: images (not views) of all processes; evaluation does not count.

    Attributes:
        rate: images per second over the whole training so far, parts before a stop included.
        remaining: seconds to the end of the training, evaluations included, at the speed since this process has begun;
            None before the second step, and where the training has no end.
    """

    def __init__(self) -> None:
        self._images = self._total_images = 0
        self._seconds = self._total_seconds = 0.0
        self._since: float | None = None
        self._first: tuple[int, float] | None = None  # step and time at the end of the first batch, which warms up
        self.remaining: float | None = None

    @property
    def rate(self) -> float:
        seconds = self._seconds + self._total_seconds
        return (self._images + self._total_images) / seconds if seconds else 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = time.perf_counter()  # an epoch that is continued has no start

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

        step, end = trainer.global_step, trainer.estimated_stepping_batches
        if self._first is None:
            self._first = step, now
        elif step > self._first[0] and math.isfinite(end):
            self.remaining = (end - step) * (now - self._first[1]) / (step - self._first[0])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """What `rate` needs in a continued run."""
        return {"images": self._images + self._total_images, "seconds": self._seconds + self._total_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from there."""
        self._total_images, self._total_seconds = state_dict["images"], state_dict["seconds"]


def duration(seconds: float) -> str:
    """A span of time for people: 0:42, 3:05, 2:03:04, 3 d 04:05."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02}:{minute:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


class ProgressBar(RichProgressBar):
    """Lightning's bar of each epoch, with the remaining time of the whole training."""

    def __init__(self, throughput: Throughput) -> None:
        super().__init__(leave=True)
        self._throughput = throughput

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Metrics of the bar, `eta` at the end."""
        items: dict[str, Any] = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        if self._throughput.remaining is not None:
            items["eta"] = duration(self._throughput.remaining)
        return items


class ProgressLines(L.Callback):
    """Print a line per epoch, and in a long one another every minute: a progress bar for logs and pipes."""

    def __init__(self, throughput: Throughput, every_seconds: float = 60.0) -> None:
        self._throughput, self._every = throughput, every_seconds
        self._evaluated = False
        self._printed = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if time.monotonic() - self._printed >= self._every:
            batch, batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready, trainer.num_training_batches
            self._print(trainer, f", batch {batch}/{batches}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._print(trainer, "")
        self._evaluated = False

    def _print(self, trainer: L.Trainer, place: str) -> None:
        self._printed = time.monotonic()
        if not trainer.is_global_zero:
            return
        epochs = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        stale = () if self._evaluated else ("knn", "probe")  # still those of an earlier epoch
        values = [f"{k} {float(v):.4g}" for k, v in trainer.progress_bar_metrics.items() if k not in stale]
        if self._throughput.remaining:
            values.append(f"eta {duration(self._throughput.remaining)}")
        print(f"epoch {trainer.current_epoch + 1}{epochs}{place}: {' '.join(values)}", flush=True)
