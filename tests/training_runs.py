"""Tiny training runs that tests/training compares with each other; in a module that other processes can import."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import warnings

import lightning as L
import torch

from fastssl.data import Photos
from fastssl.methods import DINO, METHODS, SimCLR, Supervised
from fastssl.methods.checkpoint import AtomicCheckpointIO, OutputError, RunCheckpoint, Stopped

# Its dropout and DropPath draw from PyTorch's generator in every step.
BACKBONE = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "drop_path_rate": 0.3, "proj_drop_rate": 0.2}


def silence():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for message in ("does not have many workers", "logging interval", "LeafSpec", "tensorboard", "exists and is not"):
        warnings.filterwarnings("ignore", message=f".*{message}")


def make_method(name="simclr", seed=0, **change):
    torch.manual_seed(seed)
    options = dict(backbone="test_vit", backbone_args=BACKBONE, size=32, lr=2e-3, warmup_epochs=1, num_classes=19)
    if name == "dino":
        options |= dict(out_dim=64, hidden_dim=32, bottleneck_dim=16, local_crops=2, local_size=16,
                        final_weight_decay=0.4, warmup_teacher_epochs=2, teacher_temperature=0.07)  # fmt: skip
        return DINO(**(options | change))
    if name in ("instdisc", "moco", "mocov3", "nnclr", "supcon"):
        heads = {"moco": dict(queue_size=40, key_momentum=0.9), "mocov3": dict(hidden_dim=16, solarize=0.0),
                 "nnclr": dict(queue_size=40, predictor_dim=16), "supcon": {}, "instdisc": {}}[name]  # fmt: skip
        return METHODS[name].load()(**(options | dict(out_dim=8) | heads | change))
    if name == "supervised":
        return Supervised(**(options | change))
    return SimCLR(**(options | dict(strength=0.5, blur=0.0) | change))


def make_data(cls=Photos, **options):
    """76 training images, 4 batches."""
    return cls(**(dict(batch_size=16, per_picture=4) | options))


class Record(L.Callback):
    """What every step saw and gave: epoch, number of the batch, images, loss, and the step of its log; evaluations."""

    def __init__(self):
        self.steps, self.evaluations, self.epochs = [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        logged = trainer.fit_loop.epoch_loop._batches_that_stepped
        loss = float(trainer.callback_metrics["loss"])
        self.steps.append((trainer.current_epoch, batch_idx, batch.index.tolist(), loss, logged))

    def on_validation_end(self, trainer, *_):
        logged = trainer.fit_loop.epoch_loop._batches_that_stepped
        self.evaluations.append((trainer.global_step, float(trainer.callback_metrics["knn"]), logged))

    def on_train_epoch_end(self, trainer, *_):
        self.epochs.append((trainer.current_epoch, trainer.global_step))

    def ends_like(self, whole):
        """Whether this is the end of another record."""
        pairs = ((self.steps, whole.steps), (self.evaluations, whole.evaluations), (self.epochs, whole.epochs))
        return all(part == all_of_it[len(all_of_it) - len(part) :] for part, all_of_it in pairs)


class KeepAll(AtomicCheckpointIO):
    """Every checkpoint of a run, under the step and the moment of each."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        super().save_checkpoint(checkpoint, path)
        moment = checkpoint["callbacks"]["RunCheckpoint"]["moment"]
        shutil.copy(path, path.parent / f"{checkpoint['global_step']}-{moment}.ckpt")


def train(folder, resume=None, *, name="simclr", every=1, keep=False, data=None, callbacks=(), method=None, **trainer):
    """Train, or continue from a checkpoint with other weights and generators in the beginning.

    Returns:
        The method, its trainer and the record.
    """
    silence()
    model = method or make_method(name, seed=0 if resume is None else 123)
    record = Record()
    options = dict(
        max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[record, *callbacks, RunCheckpoint(folder, every)],
        plugins=[KeepAll() if keep else AtomicCheckpointIO()],
    )  # fmt: skip
    run = L.Trainer(**(options | trainer))
    run.fit(model, datamodule=data or make_data(), ckpt_path=resume, weights_only=True if resume else None)
    return model, run, record


def same_weights(a, b):
    """Whether two modules hold the same bits."""
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same_state(a, b):
    """Whether the optimizers of two trainers hold the same bits."""
    a, b = (run.optimizers[0].state_dict() for run in (a, b))
    return a["param_groups"] == b["param_groups"] and all(
        torch.equal(value, b["state"][p][name]) for p, state in a["state"].items() for name, value in state.items()
    )


# What the processes of test_processes.py run


def make_share_method(name):
    """Without dropout, which differs between processes, and without BatchNorm.

    With SGD, whose steps are linear in the gradient, and without clipping.
    """
    change = {"simclr": {"head_layers": 1}, "dino": {"clip_grad": 0.0, "freeze_last_layer": 0}}.get(name, {})
    kept = BACKBONE | {"drop_path_rate": 0.0, "proj_drop_rate": 0.0}
    return make_method(name, optimizer="sgd", backbone_args=kept, **({"lr": 0.05} | change))


def train_share(rank, world_size, folder, name, batch_size, **options):
    """Weights after training on this process's share of every batch, and the accuracy that it saw."""
    os.environ["LOCAL_RANK"] = str(rank)  # tells Lightning that the processes are there already
    strategy = {"strategy": "ddp", "devices": world_size} if world_size > 1 else {}
    data = make_data(batch_size=batch_size // world_size)
    options = dict(every=0, max_epochs=2, data=data) | strategy | options
    model, run, _ = train(folder, method=make_share_method(name), **options)
    weights = {key: value.double().tolist() for key, value in model.state_dict().items()}
    return weights, float(run.callback_metrics["knn"])


def resume_share(rank, world_size, folder):
    """Whether a run of several processes, each with its own dropout, is continued bit for bit."""
    os.environ["LOCAL_RANK"] = str(rank)
    options = dict(keep=True, max_epochs=1, strategy="ddp", devices=world_size)
    whole, _, record = train(folder / "whole", data=make_data(batch_size=8), **options)
    results = []
    for name in ("2-step", "4-validation"):
        part, _, rest = train(
            folder / "part", folder / "whole" / f"{name}.ckpt", data=make_data(batch_size=8), **options
        )
        results.append(rest.ends_like(record) and same_weights(part, whole))
    return results


def stop_share(rank, world_size, folder):
    """Where each process stops when only the last of them gets a signal."""
    os.environ["LOCAL_RANK"] = str(rank)

    class Signal(L.Callback):
        def on_before_optimizer_step(self, trainer, *_):
            if trainer.global_step == 1 and rank == world_size - 1:
                os.kill(os.getpid(), signal.SIGTERM)

    try:
        train(folder, every=0, data=make_data(batch_size=8), callbacks=[Signal()], strategy="ddp", devices=world_size)
    except Stopped as stop:
        return stop.signal, stop.step, stop.checkpoint.exists()


def fail_share(rank, world_size, folder):
    """What each process raises where the first cannot write."""
    os.environ["LOCAL_RANK"] = str(rank)
    (folder / "last.ckpt").mkdir(parents=True, exist_ok=True)  # nothing takes the place of a folder
    try:
        train(folder, data=make_data(batch_size=8), strategy="ddp", devices=world_size)
    except OutputError as error:
        return str(error)
