"""Checkpoints that a run continues from exactly: written atomically, at the boundaries of steps, with the state of the
random generators.

A checkpoint is that of a moment when nothing is half done: before a batch, before a validation, or at the end of an
epoch. Order and views of the images are functions of (seed, epoch, index), so that the number of the batch is all that
has to be known of the data.
"""

from __future__ import annotations

import glob
import os
import random
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, Literal

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from fastssl.data.base import EpochLoader

Moment = Literal["step", "validation", "epoch"]


class OutputError(OSError):
    """A file of the run cannot be written. The message, one line, says which, why, and what is kept."""


class Stopped(Exception):
    """Training was stopped by a signal, at the end of a step.

    Attributes:
        signal: its number; a shell expects the exit status 128 + that.
        checkpoint: what training continues from; None where no step was made.
        step: number of steps made.
    """

    def __init__(self, signal: int, checkpoint: Path | None, step: int) -> None:
        super().__init__(f"stopped at step {step}")
        self.signal, self.checkpoint, self.step = signal, checkpoint, step


# Random generators


def rng_state() -> dict[str, Any]:
    """State of the global generators of Python, NumPy, PyTorch and all CUDA devices, in tensors and numbers."""
    version, words, gauss = random.getstate()
    numbers: Any = np.random.get_state()
    name, keys, position, has_gauss, cached = numbers
    assert version == 3 and name == "MT19937"
    return {
        "python": [torch.tensor(words), gauss],
        "numpy": [torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Set the global generators to what :func:`rng_state` returned; CUDA devices that were not there keep theirs."""
    words, gauss = state["python"]
    random.setstate((3, tuple(words.tolist()), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device, generator in enumerate(state["cuda"][:here]):
        torch.cuda.set_rng_state(generator, device)


# Files


class _Sink:
    """A file whose first failure is kept instead of raised: PyTorch's writer does not survive an exception."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.error = file, None

    file: BinaryIO
    error: BaseException | None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self.file.write(data)
            except BaseException as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        pass


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint completely, or leave the one before it as it was.

    It is written to a hidden file beside, which takes its name once the disk has it. What a killed process left of
    such a file goes with the next checkpoint. Checkpoints are read with `weights_only`: they run no code.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`.

        Raises:
            OutputError: if the file cannot be written, for instance on a full disk.
        """
        path = Path(path)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
                left.unlink(missing_ok=True)
            with open(part, "wb") as file:
                sink = _Sink(file)
                torch.save(checkpoint, sink)  # type: ignore[arg-type]  # a file as far as it is used
                if sink.error is not None:
                    raise sink.error
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException as error:
            part.unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            kept = f"the one before it is whole: --resume {path}" if path.exists() else "there was none before it"
            raise OutputError(f"cannot write the checkpoint {path}: {error.strerror or error}; {kept}") from error
        _sync_folder(path.parent)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint; `weights_only` unless told otherwise."""
        return torch.load(path, map_location=map_location, weights_only=weights_only is not False)


def _sync_folder(folder: Path) -> None:
    """Have the disk know of a renamed file, where the system can be told."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems
        pass
    finally:
        os.close(descriptor)


# Policy


class RunCheckpoint(Checkpoint):
    """Keep `last.ckpt` in the run's folder, and continue exactly from it.

    It is written at the end of each epoch, after so many steps and minutes, on SIGTERM and on
    Ctrl-C: then the step under way is finished, and :class:`Stopped` raised. A second Ctrl-C stops at once, and keeps
    the last checkpoint. An exception between two steps, such as of a loader, leaves a checkpoint too (where one
    process trains); one in the middle of a step does not, since what it leaves behind is half done.

    A continued run makes the steps that the run without a stop would have made, bit for bit on one device. The
    generators of every process are kept; with another number of processes they start anew, and training continues
    where it was, but not bit for bit.

    Args:
        folder: of the run.
        every: optimizer steps between two checkpoints; 0 for none by steps.
        minutes: between two checkpoints; 0 for none by time.

    Raises:
        ValueError: if a number is negative.
    """

    def __init__(self, folder: str | Path, every: int = 0, minutes: float = 10.0) -> None:
        for name, value in (("every", every), ("minutes", minutes)):
            if not value >= 0:
                raise ValueError(f"RunCheckpoint: {name} must be at least 0, got {value}")
        self.folder = Path(folder)
        self.every, self.minutes = every, minutes
        self._saved_step, self._saved_at = 0, time.monotonic()
        self._validation_pending = False  # of the checkpoint
        self._signal = 0
        self._handlers: dict[int, Any] = {}
        self._started = False
        self._moment: Moment | None = None
        self._before_validation: dict[str, Any] | None = None
        self._resumed: dict[str, Any] | None = None

    @property
    def path(self) -> Path:
        """The checkpoint."""
        return self.folder / "last.ckpt"

    # When

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_step, self._saved_at, self._started = trainer.global_step, time.monotonic(), True
        self._listen()
        if self._resumed is not None:
            self._validation_pending = self._resumed["moment"] == "validation"
            if not trainer.strategy.broadcast(self.path.exists()):  # continued in another folder
                self._saved_step = -1
            self._continue_epoch(trainer, self._resumed)
            if self._resumed["moment"] != "step":
                self._restore_generators(trainer, self._resumed)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save_and_stop(trainer, None)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._resumed is not None:
            if self._resumed["moment"] == "step":
                self._restore_generators(trainer, self._resumed)
            # The step that metrics are logged with; Lightning is off by one after some of the restarts.
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
            self._resumed = None
        self._save_and_stop(trainer, "step")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._trains(trainer):
            self._before_validation = rng_state()
            self._save_and_stop(trainer, "validation")

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        # Of several processes each may have another number of these batches: they finish the validation first.
        if self._signal and trainer.world_size == 1 and self._trains(trainer):
            self._save_and_stop(trainer, "validation")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer, "epoch")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save_and_stop(trainer, None)
        self._stop_listening()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop_listening()
        if isinstance(exception, (Stopped, OutputError)) or trainer.world_size > 1 or not self._trains(trainer):
            return
        progress = trainer.fit_loop.epoch_loop.batch_progress.total
        counts = {progress.ready, progress.started, progress.processed, progress.completed}  # type: ignore[attr-defined]
        if len(counts) > 1:  # in the middle of a step
            return
        epoch = trainer.fit_loop.epoch_progress.current
        ended = epoch.processed == epoch.ready  # type: ignore[attr-defined]
        try:
            self._save(trainer, "validation" if trainer.validating else "epoch" if ended else "step")
        except OutputError as error:
            rank_zero_warn(str(error))  # what stopped the training matters more

    def _trains(self, trainer: L.Trainer) -> bool:
        return self._started and trainer.state.fn == "fit" and not trainer.sanity_checking

    def _save_and_stop(self, trainer: L.Trainer, moment: Moment | None) -> None:
        """Save at this moment if it is due or a signal has come; with the latter stop, once all that is done is saved.

        Args:
            trainer: with all its processes at the same place.
            moment: None where nothing can be saved.
        """
        stop, due = self._signal, False
        if trainer.is_global_zero:
            due = bool(self.minutes) and time.monotonic() - self._saved_at >= 60 * self.minutes
        if trainer.world_size > 1:  # Lightning makes processes wait for each other in each step anyway
            flags = torch.tensor([stop, due], device=trainer.strategy.root_device)
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
            stop, due = flags.tolist()
        due |= bool(self.every) and trainer.global_step - self._saved_step >= self.every
        due |= self._validation_pending  # it has been made since
        if moment is not None and (due or stop):
            self._save(trainer, moment)
        if stop and self._saved_step == trainer.global_step:
            raise Stopped(stop, self.path if trainer.global_step else None, trainer.global_step)

    # What

    def _save(self, trainer: L.Trainer, moment: Moment) -> None:
        if self._saved_step == trainer.global_step and not (self._validation_pending and moment != "validation"):
            return
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        if done % trainer.accumulate_grad_batches and not self._epoch_is_complete(trainer, moment):
            return  # the gradients so far would be lost
        self._moment, failure = moment, None
        try:
            trainer.save_checkpoint(self.path, weights_only=False)
        except OutputError as error:
            failure = error
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where the processes wait that write nothing
        finally:
            self._moment = None
        message = trainer.strategy.broadcast(None if failure is None else str(failure))
        if message is not None:
            raise failure or OutputError(message)
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        self._validation_pending = moment == "validation"

    @staticmethod
    def _epoch_is_complete(trainer: L.Trainer, moment: Moment) -> bool:
        progress = trainer.fit_loop.epoch_loop.batch_progress
        # Before a batch, `is_last_batch` is that of this one.
        last = progress.is_last_batch and moment != "step"
        return last or progress.current.completed >= trainer.num_training_batches

    def state_dict(self) -> dict[str, Any]:
        """State of the generators of all processes, and what has to be known to continue."""
        state = self._before_validation if self._moment == "validation" else rng_state()
        generators = [state]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            generators = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(generators, state)
        return {"generators": generators, "moment": self._moment or "epoch"}

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["callbacks"][self.state_key]["batches_per_epoch"] = trainer.num_training_batches
        if self._moment is not None:
            complete = self._epoch_is_complete(trainer, self._moment)
            write_progress(checkpoint["loops"]["fit_loop"], complete, self._moment == "validation")

    # Continuing

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts."""
        self._resumed = state_dict

    @staticmethod
    def _continue_epoch(trainer: L.Trainer, resumed: dict[str, Any]) -> None:
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        before, now = resumed["batches_per_epoch"], trainer.num_training_batches
        if progress.completed and before != now:
            done = int(progress.completed * now / before) // trainer.accumulate_grad_batches
            progress.reset()
            progress.increment_by(done * trainer.accumulate_grad_batches)
            rank_zero_warn(
                f"an epoch has {now} batches now and had {before}: training continues at batch {progress.completed}, "
                "but not as it would have without a stop"
            )
        if isinstance(loader := trainer.train_dataloader, EpochLoader):
            loader.start_at(trainer.fit_loop.epoch_progress.current.processed, progress.completed)  # type: ignore[attr-defined]

    @staticmethod
    def _restore_generators(trainer: L.Trainer, resumed: dict[str, Any]) -> None:
        if len(resumed["generators"]) == trainer.world_size:
            set_rng_state(resumed["generators"][trainer.global_rank])
        else:
            rank_zero_warn(
                f"{trainer.world_size} processes continue what {len(resumed['generators'])} began: "
                "the random generators start anew"
            )

    # Signals

    def _listen(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in ((signal.SIGINT, self._on_interrupt), (signal.SIGTERM, self._on_terminate)):
            self._handlers[number] = signal.signal(number, handler)

    def _stop_listening(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._signal:
            raise KeyboardInterrupt
        self._signal = number
        # Not print: the signal may have come in the middle of another one.
        os.write(2, b"\nfinishing this step, then saving; Ctrl-C again stops at once\n")

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self._signal = self._signal or number


def write_progress(loops: dict[str, Any], complete: bool, validation_pending: bool) -> None:
    """Rewrite Lightning's counters of a checkpoint to those of a moment when nothing is under way.

    Saved from within a hook they say that a batch or an epoch is half done, and Lightning then skips or repeats a part
    of it, depending on the hook.

    Args:
        loops: state of the fit loop, changed in place.
        complete: whether all batches of the epoch are done.
        validation_pending: whether the validation that follows the last batch is still to be made, from its beginning.
    """
    counts = ("ready", "started", "processed", "completed")
    batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
    next_epoch = complete and not validation_pending
    batches["is_last_batch"] = complete and validation_pending
    for scope in ("total", "current"):
        done = 0 if next_epoch and scope == "current" else batches[scope]["completed"]
        batches[scope] = dict.fromkeys(counts, done)
        done = epochs[scope]["completed"]
        if next_epoch:
            epochs[scope] = dict.fromkeys(counts, done + 1)
        else:
            epochs[scope] = {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}
    if validation_pending:
        loops["epoch_loop.val_loop.batch_progress"] = {
            "total": {"ready": 1, "started": 1, "processed": 0, "completed": 0},
            "current": dict.fromkeys(counts, 0),
            "is_last_batch": False,
        }
