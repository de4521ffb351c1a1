"""NNCLR: Dwibedi, Aytar, Tompson, Sermanet, Zisserman, "With a Little Help from My Friends: Nearest-Neighbor
Contrastive Learning of Visual Representations", ICCV 2021 (arXiv 2104.14548), section 3.2."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl import backends, ops  # noqa: F401 - ops registers the operators
from fastssl.augment import SimCLRTransform
from fastssl.functional import info_nce
from fastssl.losses import MemoryBank
from fastssl.methods.base import SelfSupervised, Step
from fastssl.models.heads import ProjectionHead
from fastssl.ops import checks


class NNCLR(SelfSupervised):
    """The nearest neighbour of a view, among earlier images, and the prediction of the other view attract.

    Args:
        temperature: tau, 0.1 in the paper.
        queue_size: embeddings of earlier batches among which neighbours are looked for, 98304 in the paper.
        hidden_dim: width of the projection head; 0 takes that of the representation.
        out_dim: width of the projection z, 256 in the paper.
        head_layers: linear layers of the projection head, 3 in the paper.
        predictor_dim: width of the predictor's hidden layer, 4096 in the paper.
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
        queue_size: int = 98304,
        hidden_dim: int = 0,
        out_dim: int = 256,
        head_layers: int = 3,
        predictor_dim: int = 4096,
        min_scale: float = 0.08,
        strength: float = 1.0,
        blur: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        checks.check_temperature("NNCLR", "temperature", temperature)
        checks.check_count("NNCLR", "queue_size", queue_size, minimum=1)
        self.projection = ProjectionHead(
            self.num_features, hidden_dim or self.num_features, out_dim, head_layers, final_norm=True
        )
        self.predictor = ProjectionHead(out_dim, predictor_dim, out_dim)
        self.queue = MemoryBank((queue_size, out_dim), gather_distributed=torch.distributed.is_available())
        self.transform = SimCLRTransform(
            self.eval_transform.size, cj_strength=strength, min_scale=min_scale, gaussian_blur=blur
        )

    @property
    def projector(self) -> nn.Module:
        return self.projection

    def step(self, x0: Tensor, x1: Tensor) -> Step:  # type: ignore[override]  # two views
        """The loss of the pseudocode (appendix A): ``L(nn0, p1) / 2 + L(nn1, p0) / 2``."""
        h = self.represent(torch.cat([x0, x1]))
        z = self.projection(h)
        p0, p1 = self.predictor(z).chunk(2)
        z0, z1 = z.detach().chunk(2)
        nn0, nn1 = self.neighbors(torch.cat([z0, z1])).to(p0.dtype).chunk(2)
        tau: float = self.hparams["temperature"]
        loss = (info_nce(nn0, p1, temperature=tau) + info_nce(nn1, p0, temperature=tau)) / 2
        self.queue.enqueue(z0)
        return Step(loss, h, z, {"mi_bound": math.log(len(p0)) - loss})

    @torch.no_grad()
    def neighbors(self, z: Tensor) -> Tensor:
        """The most similar row of the queue for each embedding [B, out_dim]; no matrix [B, queue_size] is stored."""
        bank = self.queue.rows()
        rows = F.normalize(z.to(bank.dtype), dim=1)
        nearest = torch.ops.fastssl.nearest_neighbors(
            rows, bank, count=1, exclude_self=False, row_offset=0, backend=backends.forced()
        )
        return bank[nearest[:, 0]]
