"""MoCo: He, Fan, Wu, Xie, Girshick, "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020
(arXiv 1911.05722), Algorithm 1, with the head and the views of version 2: Chen, Fan, Girshick, He, "Improved Baselines
with Momentum Contrastive Learning", 2020 (arXiv 2003.04297)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastssl.augment import MoCoTransform
from fastssl.functional import info_nce
from fastssl.losses import MemoryBank
from fastssl.methods.base import SelfSupervised, Step
from fastssl.models.encoder import represent
from fastssl.models.heads import ProjectionHead
from fastssl.models.momentum import momentum_copy, update_momentum
from fastssl.ops import checks


class MoCo(SelfSupervised):
    """A view of an image finds the other one, which a momentum encoder has encoded, among a queue of others.

    Args:
        temperature: tau of InfoNCE, 0.2 in version 2, 0.07 in version 1.
        queue_size: keys of earlier batches that are negatives, 65536 in the paper.
        key_momentum: m, with which the key encoder follows the query encoder.
        hidden_dim: width of the projection head; 0 takes that of the representation.
        out_dim: width of the projections q and k.
        head_layers: linear layers of the projection head; 1 is version 1.
        min_scale: smallest area of a crop as a share of the image.
        strength: of the colour distortion, 1 in the paper, 0.5 on small images.
        blur: probability of a Gaussian blur, 0.5 in the paper, 0 on small images.
        symmetric: whether each view is the query once; the published code has one query and one key.
        **kwargs: of :class:`fastssl.methods.base.SelfSupervised`.

    Raises:
        ValueError: if a number is out of range or the backbone is unknown.
    """

    def __init__(
        self,
        temperature: float = 0.2,
        queue_size: int = 65536,
        key_momentum: float = 0.999,
        hidden_dim: int = 0,
        out_dim: int = 128,
        head_layers: int = 2,
        min_scale: float = 0.2,
        strength: float = 1.0,
        blur: float = 0.5,
        symmetric: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        checks.check_range("MoCo", "key_momentum", key_momentum, maximum=1)
        checks.check_temperature("MoCo", "temperature", temperature)
        checks.check_count("MoCo", "queue_size", queue_size, minimum=1)
        self.projection = ProjectionHead(
            self.num_features, hidden_dim or self.num_features, out_dim, head_layers
        )  # of f_q; its encoder is self.backbone
        # f_k.params = f_q.params
        self.key_encoder = momentum_copy(nn.ModuleDict({"backbone": self.backbone, "projection": self.projection}))
        # queue: dictionary as a queue of K keys
        self.queue = MemoryBank((queue_size, out_dim), gather_distributed=torch.distributed.is_available())
        self.transform = MoCoTransform(
            self.eval_transform.size, cj_strength=strength, min_scale=min_scale, gaussian_blur=blur
        )

    @property
    def projector(self) -> nn.Module:
        return self.projection

    def step(self, x_q: Tensor, x_k: Tensor) -> Step:  # type: ignore[override]  # two views
        """One step of Algorithm 1 on N images."""
        h: Any = self.hparams
        views = [(x_q, x_k), (x_k, x_q)] if h.symmetric else [(x_q, x_k)]
        representations, queries, losses = [], [], []
        keys = [self._key(x) for _, x in views]
        negatives = self.queue.rows()
        for (x, _), k in zip(views, keys, strict=True):
            representations.append(self.represent(x))
            queries.append(self.projection(representations[-1]))  # queries: N x C
            # logits = cat([bmm(q, k), mm(q, queue)]), cross-entropy with labels 0
            losses.append(info_nce(queries[-1], k, negatives.to(queries[-1].dtype), temperature=h.temperature))
        for k in keys:  # enqueue(queue, k), dequeue(queue)
            self.queue.enqueue(k)
        loss = torch.stack(losses).mean()
        # InfoNCE bounds the mutual information of two views: I >= log(candidates) - loss, in nats.
        bound = math.log(1 + len(negatives)) - loss
        return Step(loss, torch.cat(representations), torch.cat(queries), {"mi_bound": bound})

    @torch.no_grad()
    def _key(self, x: Tensor) -> Tensor:
        """Keys without a gradient, [N, C].

        Where the paper shuffles images between processes, so that no BatchNorm sees the same images as the query's, the
        statistics are those of all processes together, as in BYOL and MoCo's version 3.
        """
        return self.key_encoder["projection"](represent(self.key_encoder["backbone"], x))

    def after_optimizer_step(self, progress: float) -> None:
        """f_k.params = m * f_k.params + (1 - m) * f_q.params"""
        momentum: float = self.hparams["key_momentum"]
        update_momentum(self.key_encoder["backbone"], self.backbone, momentum)
        update_momentum(self.key_encoder["projection"], self.projection, momentum)
