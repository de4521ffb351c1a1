"""Supervised training of the same encoder with the same budget: the line above the self-supervised methods."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.augment.presets import SimCLRViewTransform
from fastssl.data.base import Batch
from fastssl.methods.base import SelfSupervised, Step


class Supervised(SelfSupervised):
    """Cross-entropy of a linear classifier on one random view of each image, that of SimCLR.

    Chen et al. 2020 ("A Simple Framework for Contrastive Learning", table 1) train supervised encoders with the same
    augmentation to compare. Images whose label is unknown have no part in the loss.

    Args:
        label_smoothing: share of each target that is spread over all classes, in [0, 1].
        min_scale: smallest area of a crop as a share of the image.
        strength: of the colour distortion.
        blur: probability of a Gaussian blur.
        **kwargs: of :class:`fastssl.methods.base.SelfSupervised`; `num_classes` must be at least 2.

    Raises:
        ValueError: if a number is out of range or the backbone is unknown.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        min_scale: float = 0.08,
        strength: float = 1.0,
        blur: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        num_classes: int = self.hparams["num_classes"]
        if num_classes < 2:
            raise ValueError(f"Supervised: num_classes must be at least 2, got {num_classes}: it needs labelled images")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"Supervised: label_smoothing must be in [0, 1], got {label_smoothing}")
        self.save_hyperparameters()
        self.head = nn.Linear(self.num_features, num_classes)
        self.transform = SimCLRViewTransform(
            self.eval_transform.size, cj_strength=strength, min_scale=min_scale, gaussian_blur=blur
        )

    def targets(self, batch: Batch) -> tuple[Tensor, ...]:
        return (batch.label,)

    def step(self, x: Tensor, label: Tensor) -> Step:  # type: ignore[override]  # one view, and labels
        """Cross-entropy of N images, label int64 [N], -1 where it is unknown."""
        h = self.represent(x)
        logits = self.head(h)
        smoothing: float = self.hparams["label_smoothing"]
        loss = F.cross_entropy(logits, label, ignore_index=-1, reduction="sum", label_smoothing=smoothing)
        known = (label >= 0).sum().clamp(min=1)  # a batch without labels gives 0 and no NaN
        return Step(loss / known, h, h, {"accuracy": (logits.argmax(1) == label).sum() / known})
