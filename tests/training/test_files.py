"""A checkpoint is written whole or not at all; metrics.csv continues with its run."""

import csv
import os
import signal
import subprocess

import pytest
import torch

pytest.importorskip("resource")  # POSIX
pytest.importorskip("lightning")
pytest.importorskip("tensorboard")
import resource

from training_runs import same_weights, train

from fastssl.methods import checkpoint
from fastssl.methods.checkpoint import AtomicCheckpointIO, OutputError
from fastssl.methods.logs import MetricsFile, make_loggers


def content(megabytes, value=0.0):
    return {"weights": torch.full((megabytes * 2**18,), value), "step": 3}


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("only root mounts a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small_files():
    """No file may grow over 2 MB: writing more fails as on a full disk, without being root."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def check_that_the_old_one_stays(folder, reason):
    io, path = AtomicCheckpointIO(), folder / "last.ckpt"
    with pytest.raises(OutputError, match=f"cannot write the checkpoint {path}: {reason}; there was none before it"):
        io.save_checkpoint(content(4), path)
    assert list(folder.iterdir()) == []
    io.save_checkpoint(content(1), path)
    with pytest.raises(OutputError, match=f"{reason}; the one before it is whole: --resume {path}"):
        io.save_checkpoint(content(4, value=1.0), path)
    assert list(folder.iterdir()) == [path]
    assert io.load_checkpoint(path)["weights"].equal(content(1)["weights"])


def test_a_full_disk_leaves_the_checkpoint_before(small_disk):
    check_that_the_old_one_stays(small_disk, "No space left on device")


def test_a_file_that_grows_too_large_leaves_the_checkpoint_before(tmp_path, small_files):
    check_that_the_old_one_stays(tmp_path, "File too large")


def test_a_run_on_a_full_disk_continues_once_there_is_room(small_disk, tmp_path):
    whole, _, record = train(tmp_path / "whole", max_epochs=1, limit_val_batches=0)
    size = (tmp_path / "whole" / "last.ckpt").stat().st_size
    filler = small_disk / "filler"

    class Fill:
        def __init__(self):
            import lightning as L

            class Callback(L.Callback):
                def on_train_batch_end(self, trainer, *_):
                    if trainer.global_step == 3:
                        filler.write_bytes(bytes(3 * 2**20 - 2 * size))  # room for the checkpoint that is there

            self.callback = Callback()

    with pytest.raises(OutputError, match="No space left on device; the one before it is whole"):
        train(small_disk, max_epochs=1, limit_val_batches=0, callbacks=[Fill().callback])
    filler.unlink()
    part, _, rest = train(small_disk, small_disk / "last.ckpt", max_epochs=1, limit_val_batches=0)
    assert len(rest.steps) == 2 and rest.ends_like(record) and same_weights(part, whole)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(5, "Input/output error"), RuntimeError])
def test_an_interrupted_write_leaves_nothing(error, tmp_path, monkeypatch):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint(content(1), path)

    def fail(*_):
        raise error

    monkeypatch.setattr(checkpoint.os, "fsync", fail)
    with pytest.raises(OutputError if isinstance(error, OSError) else error):
        io.save_checkpoint(content(1, value=1.0), path)
    assert list(tmp_path.iterdir()) == [path]
    assert io.load_checkpoint(path)["weights"].sum() == 0


def test_what_a_killed_process_left_goes_with_the_next_checkpoint(tmp_path):
    for name in (".last.ckpt.123.part", ".other.ckpt.123.part"):
        (tmp_path / name).write_bytes(b"half")
    AtomicCheckpointIO().save_checkpoint(content(1), tmp_path / "last.ckpt")
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", ".other.ckpt.123.part"}


def test_a_checkpoint_runs_no_code(tmp_path):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"code": Code()}, tmp_path / "last.ckpt")
    with pytest.raises(Exception, match="weights_only"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt", weights_only=None)
    assert not (tmp_path / "made").exists()


# metrics.csv


def rows_of(path):
    with open(path, newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def test_rows_are_there_as_soon_as_they_are_logged_and_columns_come_later(tmp_path):
    log = MetricsFile(tmp_path)
    log.log_metrics({"loss": torch.tensor(2.0), "epoch": 0}, step=0)
    assert rows_of(log.path) == [{"epoch": "0", "step": "0", "loss": "2.0"}]
    log.log_metrics({"knn": 0.5, "epoch": 0}, step=0)
    log.log_metrics({"loss": 1.5, "epoch": 1}, step=1)
    assert log.path.read_text().splitlines() == ["epoch,step,loss,knn", "0,0,2.0,", "0,0,,0.5", "1,1,1.5,"]


def logged(folder, steps, resumed_from=None, step=0):
    loggers = make_loggers(folder, resumed_from, step)
    for number in steps:
        for logger in loggers:
            logger.log_metrics({"loss": 10.0 * number, "epoch": 0}, step=number)
    for logger in loggers:
        logger.finalize("success")


def test_a_continued_run_has_each_step_once_and_loses_no_row(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    logged(run, range(7))
    with open(run / "metrics.csv", "a") as file:
        file.write("0,7,7")  # the process was killed in the middle of a line
    logged(run, range(5, 9), run / "last.ckpt", step=5)
    assert [int(row["step"]) for row in rows_of(run / "metrics.csv")] == list(range(9))
    assert [int(row["step"]) for row in rows_of(run / "discarded-1.csv")] == [5, 6]
    logged(run, range(8, 9), run / "last.ckpt", step=8)
    assert [int(row["step"]) for row in rows_of(run / "discarded-2.csv")] == [8]

    (tmp_path / "new").mkdir()
    # In another folder: the rows so far come along, and the old folder stays as it is.
    logged(tmp_path / "new", [3], run / "last.ckpt", step=3)
    assert [int(row["step"]) for row in rows_of(tmp_path / "new" / "metrics.csv")] == [0, 1, 2, 3]
    assert [int(row["step"]) for row in rows_of(run / "metrics.csv")] == list(range(9))
    assert not list((tmp_path / "new").glob("discarded*"))


def test_tensorboard_shows_each_step_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged(tmp_path, range(7))
    logged(tmp_path, range(5, 9), tmp_path / "last.ckpt", step=5)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(step, 10.0 * step) for step in range(9)]


def test_a_full_disk_is_named_for_logs_too(small_disk):
    log = MetricsFile(small_disk)
    log.log_metrics({"loss": 1.0}, step=0)
    (small_disk / "filler").write_bytes(bytes(3 * 2**20 - 4096))
    with pytest.raises(OutputError, match=r"cannot write .*metrics.csv: No space left on device"):
        for step in range(10_000):
            log.log_metrics({"loss": 1.0}, step=step)
    assert rows_of(log.path)[0] == {"step": "0", "loss": "1.0"}
