"""MoCo v3: Chen, Xie, He, "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021
(arXiv 2104.02057), Algorithm 1."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastssl.augment import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from fastssl.functional import info_nce
from fastssl.methods.base import SelfSupervised, Step
from fastssl.methods.optim import cosine
from fastssl.models.encoder import represent
from fastssl.models.heads import ProjectionHead
from fastssl.models.momentum import momentum_copy, update_momentum
from fastssl.ops import checks


class MoCoV3(SelfSupervised):
    """A view's prediction finds the other view, which a momentum encoder has encoded, among those of its batch.

    Args:
        temperature: tau, 0.2 for transformers, 1 for ResNets in the paper.
        key_momentum: m at the start, with which the key encoder follows; it goes to 1 as a cosine.
        hidden_dim: width of the hidden layers of the two heads, 4096 in the paper.
        out_dim: width of q and k, 256 in the paper.
        head_layers: linear layers of the projection head: 3 for transformers, 2 for ResNets in the paper.
        freeze_patch_embedding: whether the patch embedding of a transformer stays as it is at the start (section 4.2).
        min_scale: smallest area of a crop as a share of the image.
        strength: of the colour distortion, 1 in the paper, less on small images.
        blur: probabilities of a Gaussian blur of the two views.
        solarize: probability that the second view is solarised.
        **kwargs: of :class:`fastssl.methods.base.SelfSupervised`.

    Raises:
        ValueError: if a number is out of range or the backbone is unknown.
    """

    def __init__(
        self,
        temperature: float = 0.2,
        key_momentum: float = 0.99,
        hidden_dim: int = 4096,
        out_dim: int = 256,
        head_layers: int = 3,
        freeze_patch_embedding: bool = True,
        min_scale: float = 0.08,
        strength: float = 1.0,
        blur: tuple[float, float] = (1.0, 0.1),
        solarize: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        checks.check_temperature("MoCoV3", "temperature", temperature)
        checks.check_range("MoCoV3", "key_momentum", key_momentum, maximum=1)
        embedding = getattr(self.backbone, "patch_embed", None)
        if freeze_patch_embedding and isinstance(embedding, nn.Module):
            embedding.requires_grad_(False)
        # f_q: backbone + projection + predictor; f_k: backbone + projection
        self.projection = ProjectionHead(self.num_features, hidden_dim, out_dim, head_layers, final_norm=True)
        self.predictor = ProjectionHead(out_dim, hidden_dim, out_dim, final_norm=True)
        self.key_encoder = momentum_copy(nn.ModuleDict({"backbone": self.backbone, "projection": self.projection}))
        views: dict[str, Any] = {
            "input_size": self.eval_transform.size,
            "cj_strength": strength,
            "min_scale": min_scale,
        }
        self.transform = BYOLTransform(
            BYOLView1Transform(gaussian_blur=blur[0], **views),
            BYOLView2Transform(gaussian_blur=blur[1], solarization_prob=solarize, **views),
        )

    @property
    def projector(self) -> nn.Module:
        return self.projection

    def step(self, x1: Tensor, x2: Tensor) -> Step:  # type: ignore[override]  # two views
        """One step of Algorithm 1: ``ctr(q1, k2) + ctr(q2, k1)``, each with the factor 2 tau."""
        h = self.represent(torch.cat([x1, x2]))
        z = self.projection(h)
        q1, q2 = self.predictor(z).chunk(2)
        with torch.no_grad():
            keys = represent(self.key_encoder["backbone"], torch.cat([x1, x2]))
            k1, k2 = self.key_encoder["projection"](keys).chunk(2)
        tau: float = self.hparams["temperature"]
        group = torch.distributed.group.WORLD if self.trainer.world_size > 1 else None
        crosses = info_nce(q1, k2, temperature=tau, group=group) + info_nce(q2, k1, temperature=tau, group=group)
        bound = math.log(len(q1) * self.trainer.world_size) - crosses / 2
        return Step(2 * tau * crosses, h, z, {"mi_bound": bound})

    def after_optimizer_step(self, progress: float) -> None:
        """f_k = m * f_k + (1 - m) * f_q"""
        momentum = self._momentum(progress)
        update_momentum(self.key_encoder["backbone"], self.backbone, momentum)
        update_momentum(self.key_encoder["projection"], self.projection, momentum)

    def _momentum(self, progress: float) -> float:
        return cosine(self.hparams["key_momentum"], 1.0, progress)

    def _log_schedules(self) -> None:
        super()._log_schedules()
        self.log("momentum", self._momentum(self.progress))
