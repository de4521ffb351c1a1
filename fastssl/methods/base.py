"""What every method shares: encoder, optimizer, schedule, and evaluation while it trains.

A method adds its views, heads and loss; see simclr.py for how little that is.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.augment import EvalTransform
from fastssl.data.base import Batch
from fastssl.evaluate.features import Features
from fastssl.evaluate.knn import knn_accuracy
from fastssl.models.backbones import Stem, create_backbone

OptimizerName = Literal["adamw", "sgd"]


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters into those that decay and those that do not: norms and biases, all with one axis."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Factor of the learning rate at `step` of `total`: linear to 1 over `warmup` steps, then a half cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class SelfSupervised(L.LightningModule):
    """Encoder, optimizer, schedule and online evaluation; subclasses define ``training_step``.

    Args:
        backbone: timm name of the encoder.
        backbone_args: passed to timm.create_model, for instance {"drop_path_rate": 0.1}.
        stem: "timm" as it is, "small" for a ResNet on images of about 32 pixels.
        size: side in pixels of the images that the encoder sees.
        optimizer: "adamw" or "sgd" (with momentum and Nesterov's step).
        lr: highest learning rate, reached after the warm-up.
        weight_decay: of all parameters but norms and biases.
        momentum: of SGD.
        warmup_epochs: of linear warm-up; a cosine to zero follows.
        num_classes: for the online probe; 0 where there are no labels.
        probe_lr: learning rate of the online linear probe, trained on detached representations.
        knn_k: neighbours of the k-NN accuracy during training.
        knn_temperature: of its weights.
        seed: key of the random views.

    Raises:
        ValueError: if a number is out of range or the backbone is unknown.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        backbone_args: dict[str, Any] | None = None,
        stem: Stem = "timm",
        size: int = 224,
        optimizer: OptimizerName = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        momentum: float = 0.9,
        warmup_epochs: float = 1.0,
        num_classes: int = 0,
        probe_lr: float = 1e-2,
        knn_k: int = 20,
        knn_temperature: float = 0.07,
        seed: int = 0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        for argument, value, least in (
            ("lr", lr, 0),
            ("weight_decay", weight_decay, 0),
            ("momentum", momentum, 0),
            ("warmup_epochs", warmup_epochs, 0),
            ("num_classes", num_classes, 0),
            ("probe_lr", probe_lr, 0),
            ("knn_k", knn_k, 1),
        ):
            if not value >= least:
                raise ValueError(f"{name}: {argument} must be at least {least}, got {value}")
        if optimizer not in ("adamw", "sgd"):
            raise ValueError(f'{name}: optimizer must be "adamw" or "sgd", got {optimizer!r}')
        self.save_hyperparameters()
        # The convolutions of a CPU and of tensor cores want channels last; a transformer does not mind.
        self.backbone = create_backbone(backbone, stem, backbone_args).to(memory_format=torch.channels_last)
        self.num_features: int = self.backbone.num_features  # type: ignore[assignment]  # timm's, not a tensor
        self.probe = nn.Linear(self.num_features, num_classes) if num_classes else None
        self.eval_transform = EvalTransform(size)
        self._evaluated: tuple[list[tuple[Tensor, ...]], ...] = ([], [])

    def forward(self, x: Tensor) -> Tensor:
        """Representation h [B, num_features] of normalised images [B, C, H, W]."""
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        return self.backbone(x.contiguous(memory_format=torch.channels_last))

    # Training

    def probe_loss(self, h: Tensor, label: Tensor) -> Tensor:
        """Loss of the online probe, which does not reach the encoder. Add it to the loss of the method.

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

    def configure_optimizers(self) -> Any:
        """Optimizer without decay of norms and biases, and the schedule per step."""
        h: Any = self.hparams
        method = nn.ModuleList(module for name, module in self.named_children() if name != "probe")
        groups = [group for group in parameter_groups(method, h.weight_decay) if group["params"]]
        if self.probe is not None:
            groups.append({"params": list(self.probe.parameters()), "weight_decay": 0.0, "lr": h.probe_lr})
        optimizer: torch.optim.Optimizer
        if h.optimizer == "adamw":
            optimizer = torch.optim.AdamW(groups, lr=h.lr)
        else:
            optimizer = torch.optim.SGD(groups, lr=h.lr, momentum=h.momentum, nesterov=h.momentum > 0)
        total = self.trainer.estimated_stepping_batches
        if not math.isfinite(total):
            raise ValueError("trainer: max_epochs or max_steps must be given, since the schedule ends there")
        epochs = self.trainer.max_epochs if self.trainer.max_epochs and self.trainer.max_epochs > 0 else 0
        warmup = min(int(total), round(h.warmup_epochs * total / epochs)) if epochs else 0
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, int(total)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # Evaluation during training: k-NN on the bank, and the online probe, both on the test images

    def validation_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> None:
        """Collect representations: the first loader is the bank, the second the test images."""
        h = self(self.eval_transform(batch.image, channels="first")).float()
        self._evaluated[dataloader_idx].append((h, batch.label, batch.index))

    def on_validation_epoch_end(self) -> None:
        """Log `knn` and `probe`, accuracies in [0, 1] on the test images with a label."""
        collected = [self._gather(parts) for parts in self._evaluated if parts]
        for parts in self._evaluated:
            parts.clear()
        if len(collected) < 2 or self.trainer.sanity_checking or self.probe is None:
            return
        bank, test = collected
        if not len(bank.x) or not len(test.x):
            return
        h: Any = self.hparams
        self._log_accuracy("knn", knn_accuracy(bank, test, h.num_classes, h.knn_k, h.knn_temperature))
        correct = self.probe(test.x).argmax(1) == test.label
        self._log_accuracy("probe", correct.float().mean().item())

    def _log_accuracy(self, name: str, value: float) -> None:
        # Every process has gathered the same features; their mean is the value itself.
        self.log(name, value, prog_bar=True, sync_dist=True)

    def _gather(self, parts: list[tuple[Tensor, ...]]) -> Features:
        """Labelled features of all processes, each image once."""
        h, label, index = (torch.cat(part) for part in zip(*parts, strict=True))
        if self.trainer.world_size > 1:
            h, label, index = (x.flatten(0, 1) for x in self.all_gather((h, label, index)))
        # Samplers repeat images so that each process has as many, readers in the place of unreadable ones.
        order = index.argsort(stable=True)
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = index[order][1:] != index[order][:-1]
        h, label = h[order][first], label[order][first]
        known = label >= 0
        return Features(h[known], label[known])
