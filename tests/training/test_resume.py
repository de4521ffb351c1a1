"""A run continued from any of its checkpoints makes the steps of the run without a stop, bit for bit."""

import io
import random

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("timm")
import lightning as L
from training_runs import make_data, same_state, same_weights, train

from fastssl.data import Photos, TensorImages
from fastssl.methods.checkpoint import rng_state, set_rng_state

# 4 batches per epoch. Trainer's options, and the checkpoints that are written and continued from.
RUNS = {
    "simclr": ({}, ["1-step", "3-step", "4-validation", "4-epoch"]),
    "dino": ({"name": "dino"}, ["2-step", "4-validation"]),
    "instdisc": ({"name": "instdisc"}, ["3-step"]),
    "moco": ({"name": "moco"}, ["3-step", "4-validation"]),
    "mocov3": ({"name": "mocov3"}, ["3-step"]),
    "nnclr": ({"name": "nnclr"}, ["3-step"]),
    "supcon": ({"name": "supcon"}, ["3-step"]),
    "accumulated": ({"accumulate_grad_batches": 3}, ["1-step", "2-validation"]),
    "validated within epochs": ({"val_check_interval": 2}, ["2-validation", "6-step"]),
    "by steps": ({"max_epochs": -1, "max_steps": 6}, ["4-epoch", "6-epoch"]),
    "bfloat16": ({"precision": "bf16-mixed"}, ["3-step"]),
}


@pytest.mark.parametrize(("options", "checkpoints"), RUNS.values(), ids=RUNS)
def test_a_run_continued_from_any_step_equals_the_run_without_a_stop(options, checkpoints, tmp_path):
    whole, trainer, record = train(tmp_path, keep=True, **options)
    written = {path.stem for path in tmp_path.glob("*-*.ckpt")}
    assert set(checkpoints) <= written, written
    for name in checkpoints:
        part, continued, rest = train(tmp_path / "part", tmp_path / f"{name}.ckpt", **options)
        assert len(rest.steps) < len(record.steps) and rest.ends_like(record), name
        assert continued.global_step == trainer.global_step
        assert same_weights(part, whole) and same_state(continued, trainer), name


def test_the_generators_are_what_makes_it_exact(tmp_path):
    """Without them dropout differs: the tests above would not notice if it drew nothing."""
    whole, _, _ = train(tmp_path, keep=True, max_epochs=1)
    checkpoint = torch.load(tmp_path / "2-step.ckpt", weights_only=True)
    checkpoint["callbacks"]["RunCheckpoint"]["generators"] = [rng_state()]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    part, _, _ = train(tmp_path / "part", tmp_path / "other.ckpt", max_epochs=1)
    assert not same_weights(part, whole)


class Watched(TensorImages):
    """Notes every batch that is read in this process, and fails at one."""

    in_memory = False  # so that loader processes read it, where there are any

    def __init__(self, images, fails_at=None):
        super().__init__(images.images, images.labels)
        self.read, self.fails_at = [], fails_at

    def __getitems__(self, indices):
        self.read.append(list(indices))
        if len(self.read) == self.fails_at:
            raise RuntimeError("broken")
        return super().__getitems__(indices)


class WatchedPhotos(Photos):
    fails_at = None

    def setup(self, stage=None):
        if not hasattr(self, "train"):
            super().setup(stage)
            self.train = Watched(self.train, self.fails_at)


def test_no_image_before_the_stop_is_read_again(tmp_path):
    def run(folder, resume=None, workers=0):
        data = make_data(WatchedPhotos, num_workers=workers)
        model, _, record = train(folder, resume, keep=True, limit_val_batches=0, data=data)
        return model, record, data.train.read

    whole, record, read = run(tmp_path)
    assert read == [step[2] for step in record.steps]
    for name in ("2-step", "4-epoch", "6-step"):
        part, rest, read = run(tmp_path / "part", tmp_path / f"{name}.ckpt")
        assert read == [step[2] for step in rest.steps]
        assert rest.ends_like(record) and same_weights(part, whole)
    part, rest, _ = run(tmp_path / "part", tmp_path / "6-step.ckpt", workers=2)
    assert len(rest.steps) == 2 and rest.ends_like(record) and same_weights(part, whole)


@pytest.mark.parametrize("moment", ["between steps", "in a step", "in a validation"])
def test_an_exception_leaves_a_checkpoint_unless_a_step_is_half_done(moment, tmp_path):
    class Broken(L.Callback):
        def on_before_optimizer_step(self, trainer, *_):
            if moment == "in a step" and trainer.global_step == 2:
                raise RuntimeError("broken")

        def on_validation_batch_start(self, *_):
            if moment == "in a validation":
                raise RuntimeError("broken")

    whole, _, _ = train(tmp_path / "whole", every=0, max_epochs=1)
    data = make_data(WatchedPhotos)
    data.fails_at = 3 if moment == "between steps" else None
    with pytest.raises(RuntimeError, match="broken"):
        train(tmp_path, every=0, callbacks=[Broken()], max_epochs=1, data=data)
    path = tmp_path / "last.ckpt"
    assert path.exists() == (moment != "in a step")
    if path.exists():
        part, _, _ = train(tmp_path / "part", path, max_epochs=1)
        assert same_weights(part, whole)


def test_another_number_of_batches_continues_at_the_same_place(tmp_path):
    train(tmp_path, keep=True, max_epochs=1)
    with pytest.warns(UserWarning, match="an epoch has 9 batches now and had 4: training continues at batch 4"):
        _, _, record = train(tmp_path / "part", tmp_path / "2-step.ckpt", max_epochs=1, data=make_data(batch_size=8))
    assert [step[1] for step in record.steps] == list(range(4, 9))


def test_generators_come_back():
    def draw():
        return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()

    random.gauss(0, 1), np.random.randn()  # each has a second number waiting now
    file = io.BytesIO()
    torch.save(rng_state(), file)
    first = draw()
    set_rng_state(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert draw() == first
