"""SupCon: Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu, Krishnan, "Supervised Contrastive Learning",
NeurIPS 2020 (arXiv 2004.11362), section 3.2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastssl.augment import SimCLRTransform
from fastssl.data.base import Batch
from fastssl.losses import SupConLoss
from fastssl.methods.base import SelfSupervised, Step
from fastssl.models.heads import ProjectionHead


class SupCon(SelfSupervised):
    """Views of all images of a class attract, those of other classes repel.

    Args:
        temperature: tau, 0.1 in the paper.
        hidden_dim: width of the projection head; 0 takes that of the representation, as the paper does.
        out_dim: width of the projection z.
        min_scale: smallest area of a crop as a share of the image.
        strength: of the colour distortion, 1 in the paper, 0.5 on small images.
        blur: probability of a Gaussian blur.
        **kwargs: of :class:`fastssl.methods.base.SelfSupervised`.

    Raises:
        ValueError: if a number is out of range or the backbone is unknown.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        hidden_dim: int = 0,
        out_dim: int = 128,
        min_scale: float = 0.08,
        strength: float = 1.0,
        blur: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        self.projection = ProjectionHead(self.num_features, hidden_dim or self.num_features, out_dim)
        self.transform = SimCLRTransform(
            self.eval_transform.size, cj_strength=strength, min_scale=min_scale, gaussian_blur=blur
        )
        # With more than one process the others' rows and labels count too; with one this changes nothing.
        self.criterion = SupConLoss(temperature, gather_distributed=torch.distributed.is_available())

    @property
    def projector(self) -> nn.Module:
        return self.projection

    def targets(self, batch: Batch) -> tuple[Tensor, ...]:
        """The labels. An image without one (-1) is a class of its own: its other view is its positive."""
        return (torch.where(batch.label >= 0, batch.label, -1 - batch.index),)

    def step(self, x0: Tensor, x1: Tensor, labels: Tensor) -> Step:  # type: ignore[override]  # two views and labels
        """L_out over the 2N views of a batch."""
        h = self.represent(torch.cat([x0, x1]))
        z = self.projection(h)
        loss = self.criterion(torch.stack(z.chunk(2), 1), labels)
        return Step(loss, h, z)
