"""What every method shares: encoder, optimizer, schedules, and evaluation while it trains.

A method adds its views, heads and loss; see simclr.py for how little that is, and dino.py for one with a teacher.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_args

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl._version import __version__
from fastssl.augment import EvalTransform
from fastssl.configs import nearest
from fastssl.data.base import Batch
from fastssl.evaluate.features import Features
from fastssl.evaluate.knn import knn_accuracy
from fastssl.methods import METHODS
from fastssl.methods.optim import OptimizerName, cosine, create_optimizer, parameter_groups, warmup_cosine
from fastssl.models.backbones import Stem, create_backbone, is_model, sized_args
from fastssl.models.encoder import Architecture, Encoder, represent


class Step(NamedTuple):
    """What a method makes of the views of a batch.

    Attributes:
        loss: of the method, [].
        h: representations of one or more views, [views * N, num_features], a view after the other: what the online
            probe learns from.
        z: what the loss compares, [M, D]: whether it collapses is logged.
        metrics: other values to log, [] each.
        logits: of the teacher, [M, K], where there are such: their entropy is logged.
    """

    loss: Tensor
    h: Tensor
    z: Tensor
    metrics: dict[str, Tensor] = {}  # noqa: RUF012  # nobody writes to it
    logits: Tensor | None = None


class SelfSupervised(L.LightningModule):
    """Encoder, optimizer, schedules and online evaluation; subclasses set ``transform`` and define ``step``.

    Args:
        backbone: timm name of the encoder.
        backbone_args: passed to timm.create_model, for instance {"drop_path_rate": 0.1}.
        stem: "timm" as it is, "small" for a ResNet on images of about 32 pixels.
        size: side in pixels of the images that the encoder sees.
        optimizer: "adamw", "sgd" or "lars".
        lr: highest learning rate, reached after the warm-up.
        lr_batch_size: images per step that `lr` is meant for: with more or fewer it grows and shrinks in proportion,
            as papers do it with 256. 0: `lr` as it is.
        final_lr: learning rate at the end, as a share of the highest.
        weight_decay: of all parameters but norms and biases.
        final_weight_decay: at the end, reached along a cosine; None: the same all the time.
        betas: of AdamW.
        momentum: of SGD and LARS.
        nesterov: whether SGD makes Nesterov's step.
        warmup_epochs: of linear warm-up; a cosine follows.
        num_classes: for the online probe; 0 where there are no labels.
        probe_lr: learning rate of the online linear probe, trained on detached representations.
        knn_k: neighbours of the k-NN accuracy during training.
        knn_temperature: of its weights.
        compile: whether the step is compiled by torch.compile; the first steps take minutes then.
        seed: key of the random views.

    Raises:
        ValueError: if a number is out of range or the backbone is unknown.
    """

    transform: nn.Module

    def __init__(
        self,
        backbone: str = "resnet18",
        backbone_args: dict[str, Any] | None = None,
        stem: Stem = "timm",
        size: int = 224,
        optimizer: OptimizerName = "adamw",
        lr: float = 1e-3,
        lr_batch_size: int = 0,
        final_lr: float = 0.0,
        weight_decay: float = 0.05,
        final_weight_decay: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.9,
        nesterov: bool = True,
        warmup_epochs: float = 1.0,
        num_classes: int = 0,
        probe_lr: float = 1e-2,
        knn_k: int = 20,
        knn_temperature: float = 0.07,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        for argument, value, least in (
            ("size", size, 1),
            ("lr", lr, 0),
            ("lr_batch_size", lr_batch_size, 0),
            ("final_lr", final_lr, 0),
            ("weight_decay", weight_decay, 0),
            ("final_weight_decay", final_weight_decay or 0, 0),
            ("momentum", momentum, 0),
            ("warmup_epochs", warmup_epochs, 0),
            ("num_classes", num_classes, 0),
            ("probe_lr", probe_lr, 0),
            ("knn_k", knn_k, 1),
        ):
            if not value >= least:
                raise ValueError(f"{name}: {argument} must be at least {least}, got {value}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"{name}: betas must be in [0, 1), got {betas}")
        if optimizer not in get_args(OptimizerName):
            words = " or ".join(f'"{word}"' for word in get_args(OptimizerName))
            raise ValueError(f"{name}: optimizer must be {words}, got {optimizer!r}")
        self.save_hyperparameters()
        kwargs = sized_args(backbone, size, backbone_args) if is_model(backbone) else {}  # else the next line says so
        self.architecture = Architecture(backbone, stem, kwargs)
        # The convolutions of a CPU and of tensor cores want channels last; a transformer does not mind.
        self.backbone = create_backbone(*self.architecture).to(memory_format=torch.channels_last)
        self.num_features: int = self.backbone.num_features  # type: ignore[assignment]  # timm's, not a tensor
        self.probe = nn.Linear(self.num_features, num_classes) if num_classes else None
        self.eval_transform = EvalTransform(size)
        self._compiled: Any = None
        self._evaluated: tuple[list[tuple[Tensor, ...]], ...] = ([], [])

    # What a method defines

    def step(self, *views: Tensor) -> Step:
        """The method on the views of a batch, each float [N, C, H, W], normalised."""
        raise NotImplementedError

    def targets(self, batch: Batch) -> tuple[Tensor, ...]:
        """What ``step`` gets besides the views: labels, where a method learns from them."""
        return ()

    @property
    def evaluated(self) -> nn.Module:
        """The backbone whose representations count: a method's teacher, where it has one."""
        return self.backbone

    @property
    def projector(self) -> nn.Module | None:
        """What makes z of h."""
        return None

    # What it gets

    def forward(self, x: Tensor) -> Tensor:
        """Representation h [B, num_features] of normalised images [B, C, H, W]."""
        return represent(self.evaluated, x)

    def represent(self, x: Tensor) -> Tensor:
        """h of the trained backbone, for normalised images [B, C, H, W]."""
        return represent(self.backbone, x)

    def encoder(self) -> Encoder:
        """The encoder that counts, for evaluation, export and pictures; it shares its modules with the method."""
        method, size = type(self).__name__, self.hparams["size"]
        label = f"{method} {self.architecture.name}"
        return Encoder(self.evaluated, self.architecture, size, self.projector, label, method)

    # Training

    @property
    def progress(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        return min(1.0, self.global_step / max(1, self._total_steps()))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Views, the method's step, and what is logged."""
        seed: int = self.hparams["seed"]
        # A function of the key alone: of no worker, process or batch.
        views = self.transform(
            batch.image, channels="first", seed=seed, epoch=self.current_epoch, index=batch.index, dtype=torch.float32
        )
        step = self.step if self._compiled is None else self._compiled
        result: Step = step(*([views] if isinstance(views, Tensor) else views), *self.targets(batch))
        self.log("loss", result.loss.detach(), prog_bar=True)
        for name, value in result.metrics.items():
            self.log(name, value.detach())
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a connector
        if self.trainer.global_step % every == 0:
            self._log_collapse(result)
            self._log_schedules()
        return result.loss + self.probe_loss(result.h, batch.label.repeat(len(result.h) // len(batch.label)))

    @torch.no_grad()
    def _log_collapse(self, result: Step) -> None:
        """Log whether all images are mapped to the same place (z_std of 0) or spread over the sphere (1).

        z_std: standard deviation of the normalised z over the batch, mean over dimensions, times sqrt(D); Chen and He
        2021 (arXiv 2011.10566), section 4.1. teacher_entropy: of the teacher's mean assignment, as a share of log K.
        """
        z = F.normalize(result.z.detach().float(), dim=1)
        if len(z) > 1:
            self.log("z_std", z.std(0).mean() * z.shape[1] ** 0.5)

    def _log_schedules(self) -> None:
        """Log what changes along a schedule: the learning rate, and the weight decay where it does."""
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        if self.hparams["final_weight_decay"] is not None:
            self.log("weight_decay", self._weight_decay())

    def probe_loss(self, h: Tensor, label: Tensor) -> Tensor:
        """Loss of the online probe, which does not reach the encoder.

        Args:
            h: representations [B, num_features].
            label: int64 [B], -1 where unknown.
        """
        if self.probe is None:
            return h.new_zeros(())
        logits = self.probe(h.detach())
        known = label >= 0
        # A sum over known labels, divided by at least one: a batch without labels gives 0 and no NaN.
        loss = F.cross_entropy(logits, label, ignore_index=-1, reduction="sum") / known.sum().clamp(min=1)
        self.log("probe_loss", loss.detach())
        return loss

    def on_fit_start(self) -> None:
        """Compile the step, where asked for; it is the last thing before training, after all that wraps modules."""
        if self.hparams["compile"]:
            self._compiled = torch.compile(self.step)

    def configure_optimizers(self) -> Any:
        """Optimizer without decay of norms and biases, and the schedule per step."""
        h: Any = self.hparams
        method = nn.ModuleList(module for name, module in self.named_children() if name != "probe")
        lr = self._scaled_lr()
        groups = [group for group in parameter_groups(method, h.weight_decay) if group["params"]]
        if self.probe is not None:
            groups.append({"params": list(self.probe.parameters()), "weight_decay": 0.0, "lr": h.probe_lr})
        optimizer = create_optimizer(h.optimizer, groups, lr, h.momentum, h.nesterov, tuple(h.betas))
        total = self._total_steps()
        epochs = self.trainer.max_epochs if self.trainer.max_epochs and self.trainer.max_epochs > 0 else 0
        warmup = min(total, round(h.warmup_epochs * total / epochs)) if epochs else 0
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, warmup, total, h.final_lr)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _total_steps(self) -> int:
        total = self.trainer.estimated_stepping_batches
        if not math.isfinite(total):
            raise ValueError("trainer: max_epochs or max_steps must be given, since the schedule ends there")
        return int(total)

    def _scaled_lr(self) -> float:
        h: Any = self.hparams
        if not h.lr_batch_size:
            return h.lr
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning's, untyped
        loader = self.trainer.train_dataloader
        per_process = data.batch_size if data is not None else loader.batch_size  # type: ignore[union-attr]
        images = per_process * self.trainer.world_size * self.trainer.accumulate_grad_batches
        return h.lr * images / h.lr_batch_size

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """A step of the optimizer with the weight decay of the moment, then what follows it in a method."""
        if self.hparams["final_weight_decay"] is not None:  # of the group that decays, see configure_optimizers
            optimizer.param_groups[0]["weight_decay"] = self._weight_decay()
        progress = self.progress
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.after_optimizer_step(progress)

    def _weight_decay(self) -> float:
        h: Any = self.hparams
        return cosine(h.weight_decay, h.final_weight_decay, self.progress)

    def after_optimizer_step(self, progress: float) -> None:
        """Where a method moves its momentum encoder; `progress` in [0, 1] is that of the step just made."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which method it is, so that :func:`load` needs no more than the file."""
        name = next((name for name, method in METHODS.items() if method.name == type(self).__name__), "")
        checkpoint["fastssl"] = {"method": name, "version": __version__}

    # Evaluation during training: k-NN on the bank, and the online probe, both on the test images

    def validation_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> None:
        """Collect representations: the first loader is the bank, the second the test images."""
        h = self(self.eval_transform(batch.image, channels="first")).float()
        self._evaluated[dataloader_idx].append((h, batch.label, batch.index))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log `knn` and `probe`, accuracies in [0, 1] on the test images with a label, and `h_rank`.

        h_rank: effective rank of the representations of the test images, at most num_features: exp of the entropy of
        their normalised singular values. Garrido et al. 2023 (arXiv 2210.02885), equation 1.
        """
        collected = [self._gather(parts) for parts in self._evaluated if parts]
        for parts in self._evaluated:
            parts.clear()
        if len(collected) < 2 or self.trainer.sanity_checking:
            return
        bank, test = collected
        self._log_result("h_rank", effective_rank(test.x), prog_bar=False)
        bank, test = (Features(*(value[part.label >= 0] for value in part)) for part in (bank, test))
        if self.probe is None or not len(bank.x) or not len(test.x):
            return
        h: Any = self.hparams
        self._log_result("knn", knn_accuracy(bank, test, h.num_classes, h.knn_k, h.knn_temperature))
        correct = self.probe(test.x).argmax(1) == test.label
        self._log_result("probe", correct.float().mean().item())

    on_test_epoch_end = on_validation_epoch_end

    def _log_result(self, name: str, value: float, prog_bar: bool = True) -> None:
        # Every process has gathered the same features; their mean is the value itself.
        self.log(name, value, prog_bar=prog_bar, sync_dist=True)

    def _gather(self, parts: list[tuple[Tensor, ...]]) -> Features:
        """Features of all processes, each image once."""
        h, label, index = (torch.cat(part) for part in zip(*parts, strict=True))
        if self.trainer.world_size > 1:
            h, label, index = (x.flatten(0, 1) for x in self.all_gather((h, label, index)))
        # Samplers repeat images so that each process has as many, readers in the place of unreadable ones.
        order = index.argsort(stable=True)
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = index[order][1:] != index[order][:-1]
        return Features(h[order][first], label[order][first])


def effective_rank(x: Tensor, most: int = 4096) -> float:
    """exp of the entropy of the singular values' shares; x float [N, D], of which at most `most` rows are taken."""
    rows = x[:: -(-len(x) // most)].float()
    values = torch.linalg.svdvals(rows)
    if not values.isfinite().all():
        return math.nan
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny) + 1e-7
    return (-(shares * shares.log()).sum()).exp().item()


def load(path: str | Path) -> SelfSupervised:
    """A method with the weights of a checkpoint, on the CPU, in evaluation mode.

    Args:
        path: of a checkpoint of ``fastssl fit``, or of the folder of a run, whose last.ckpt is taken.

    Raises:
        ValueError: on one line, if there is no such file, or it is damaged or of another kind.
    """
    file = Path(path) / "last.ckpt" if Path(path).is_dir() else Path(path)

    def refuse(reason: str) -> NoReturn:
        raise ValueError(f"{str(file)!r} {reason}") from None

    if not file.is_file():
        refuse("is no checkpoint: there is no such file")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, depending on where the file is broken
        refuse(f"is no checkpoint that PyTorch can read ({type(error).__name__}); it may be cut off")
    needed = ("state_dict", "hyper_parameters", "fastssl")
    lacking = [key for key in needed if key not in checkpoint] if isinstance(checkpoint, dict) else needed
    if lacking:
        refuse(f"is no checkpoint of fastssl fit: it lacks {', '.join(lacking)}")
    name = checkpoint["fastssl"].get("method", "")
    if name not in METHODS:
        refuse(f"is of the method {name!r}, which this version of fastssl lacks; {nearest(name, list(METHODS))}")
    try:
        model = METHODS[name].load()(**checkpoint["hyper_parameters"])
        model.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, TypeError, ValueError) as error:
        refuse(f"does not fit {METHODS[name].name} in this version: {' '.join(str(error).split())[:200]}")
    return model.eval()
