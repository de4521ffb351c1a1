"""kill -9 in the middle of a step and of a checkpoint: the continued run ends with the bits of one without a stop."""

import csv
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import commands
import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")
pytest.importorskip("tensorboard")

from fastssl.cli import main

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")

# 14 batches an epoch, a few milliseconds each; dropout and DropPath draw random numbers in each.
_OPTIONS = [
    "--model.backbone=test_vit",
    '--model.backbone_args={"embed_dim": 32, "depth": 2, "num_heads": 2, "drop_path_rate": 0.3, "proj_drop_rate": 0.2}',
    *("--model.size=32", "--data.size=32", "--data.per_picture=6", "--data.batch_size=8", "--trainer.max_epochs=3"),
    *("--trainer.check_val_every_n_epoch=1", "--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu"),
    "--checkpoint_every=3",
]
_DINO = ["--model.out_dim=64", "--model.local_size=16", "--model.local_crops=2", "--model.freeze_last_layer=1"]


@pytest.fixture
def start(tmp_path):
    """Starts `fastssl fit` in tmp_path; what still runs at the end is killed."""
    processes = []

    def begin(method, *options):
        process = commands.Command(
            "fit", *arguments(method), *options, cwd=tmp_path, stderr=subprocess.STDOUT, threads=1
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def arguments(method):
    return [method, *_OPTIONS, *(_DINO if method == "dino" else [])]


def train_without_a_stop(method, out):
    """In this process, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main(["fit", *arguments(method), f"--out={out}"]) == 0
    finally:
        torch.set_num_threads(threads)


def wait_for(process, condition):
    end = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, "it never came so far"
        time.sleep(0.001)


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait(60)


def steps(path):
    """Steps in the rows with a loss."""
    with open(path, newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["loss"]]


def contents(path):
    checkpoint = torch.load(path, weights_only=True)
    optimizer = checkpoint["optimizer_states"][0]["state"]
    moments = {f"{p}.{name}": value for p, state in optimizer.items() for name, value in state.items()}
    return checkpoint["state_dict"] | moments


@pytest.mark.parametrize("method", ["simclr", "dino"])
def test_killed_runs_end_with_the_bits_of_one_that_was_not(method, tmp_path, start):
    train_without_a_stop(method, tmp_path / "whole")
    expected = contents(tmp_path / "whole" / "last.ckpt")
    out = tmp_path / "run"
    rows, last, chance = out / "metrics.csv", out / "last.ckpt", random.Random(time.time_ns())

    # In the first epoch, wherever the process happens to be some steps after a checkpoint.
    process = start(method, "--out=run")
    wait_for(process, lambda: last.exists() and len(steps(rows)) >= 7)
    time.sleep(chance.uniform(0, 0.05))
    kill(process)
    step = torch.load(last, weights_only=True)["global_step"]
    assert step % 3 == 0 and step >= 3
    before = steps(rows)

    process = start(method, "--resume=run/last.ckpt")
    if method == "simclr":  # killed again, while a checkpoint is written
        wait_for(process, lambda: list(out.glob(".last.ckpt.*.part")))
        kill(process)
        assert torch.load(last, weights_only=True)["global_step"] >= step
    else:  # or asked to stop, as by a cluster
        wait_for(process, lambda: len(steps(rows)) > len(before))
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=600)
        assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in printed, printed
        assert f"continue with: fastssl fit {method} --resume run/last.ckpt" in printed
        made = torch.load(last, weights_only=True)["global_step"]
        assert steps(rows) == list(range(made))  # the step under way is not lost
    assert steps(rows)[:step] == list(range(step))
    discarded = [number for path in out.glob("discarded-*.csv") for number in steps(path)]
    assert set(before) <= {*steps(rows), *discarded}

    process = start(method, "--resume=run/last.ckpt")
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and "epoch 3/3" in printed, printed
    assert not list(out.glob(".last.ckpt.*"))
    assert steps(rows) == steps(tmp_path / "whole" / "metrics.csv")  # each once
    found = contents(last)
    assert found.keys() == expected.keys()
    assert not [name for name, value in expected.items() if not torch.equal(found[name], value)]


def test_a_full_disk_is_one_line_and_a_nonzero_status(tmp_path):
    """A limit on the size of files stands for it; a real one is in test_files.py."""
    done = commands.run("fit", *arguments("simclr"), "--out=run", cwd=tmp_path, file_size=100_000)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
    path = Path("run") / "last.ckpt"
    assert f"fastssl fit simclr: cannot write the checkpoint {path}: File too large" in done.stderr
    assert not list((tmp_path / "run").glob("*.ckpt")) and not list((tmp_path / "run").glob(".last*"))
