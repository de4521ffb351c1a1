"""SimCLR: Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations",
ICML 2020 (arXiv 2002.05709), in the words of its Algorithm 1."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastssl.augment import SimCLRTransform
from fastssl.losses import NTXentLoss
from fastssl.methods.base import SelfSupervised, Step
from fastssl.models.heads import ProjectionHead


class SimCLR(SelfSupervised):
    """Two views of each image attract, all other images of the batch repel.

    Args:
        temperature: tau of NT-Xent.
        hidden_dim: width of the projection head; 0 takes that of the representation, as the paper does.
        out_dim: width of the projection z.
        head_layers: linear layers of the projection head.
        head_final_norm: whether a BatchNorm follows the last of them.
        min_scale: smallest area of a crop as a share of the image.
        strength: of the colour distortion, 1 in the paper, 0.5 on small images.
        blur: probability of a Gaussian blur, 0.5 in the paper, 0 on small images.
        **kwargs: of :class:`fastssl.methods.base.SelfSupervised`.

    Raises:
        ValueError: if a number is out of range or the backbone is unknown.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        hidden_dim: int = 0,
        out_dim: int = 128,
        head_layers: int = 2,
        head_final_norm: bool = False,
        min_scale: float = 0.08,
        strength: float = 1.0,
        blur: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        self.projection = ProjectionHead(
            self.num_features, hidden_dim or self.num_features, out_dim, head_layers, head_final_norm
        )
        # for all k in {1, ..., N}: draw two augmentation functions, x~_{2k-1} = t(x_k), x~_{2k} = t'(x_k)
        self.transform = SimCLRTransform(
            self.eval_transform.size, cj_strength=strength, min_scale=min_scale, gaussian_blur=blur
        )
        # With more than one process the negatives come from all of them; with one this changes nothing.
        self.criterion = NTXentLoss(temperature, gather_distributed=torch.distributed.is_available())

    @property
    def projector(self) -> nn.Module:
        return self.projection

    def step(self, x0: Tensor, x1: Tensor) -> Step:  # type: ignore[override]  # two views
        """One step of Algorithm 1 on N images."""
        h = self.represent(torch.cat([x0, x1]))  # representation f [2N, num_features]
        z = self.projection(h)  # projection g [2N, out_dim]
        z0, z1 = z.chunk(2)
        loss = self.criterion(z0, z1)  # mean of l(2k-1, 2k) + l(2k, 2k-1) over the batch

        # InfoNCE bounds the mutual information of two views: I >= log(candidates) - loss, in nats.
        candidates = 2 * len(z0) * self.trainer.world_size - 1
        return Step(loss, h, z, {"mi_bound": math.log(candidates) - loss})
