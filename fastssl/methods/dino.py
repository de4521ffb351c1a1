"""DINO: Caron, Touvron, Misra, Jegou, Mairal, Bojanowski, Joulin, "Emerging Properties in Self-Supervised Vision
Transformers", ICCV 2021 (arXiv 2104.14294), in the words of its Algorithm 1."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from fastssl.augment import DINOTransform
from fastssl.losses import DINOLoss
from fastssl.methods.base import SelfSupervised, Step
from fastssl.methods.optim import cosine
from fastssl.models.encoder import represent
from fastssl.models.heads import DINOHead
from fastssl.models.momentum import momentum_copy, update_momentum
from fastssl.ops import checks

Range = tuple[float, float]


class DINO(SelfSupervised):
    """A student that sees small crops agrees with a teacher, its own moving average, that sees large ones.

    The teacher's encoder is the one that is evaluated and exported, as in the paper. `lr`, `weight_decay` and the
    teacher's momentum follow cosines over the whole training; the paper's are 0.0005 for 256 images, 0.04 to 0.4 and
    0.996 to 1. See also :class:`fastssl.methods.base.SelfSupervised`.

    Args:
        out_dim: number of prototypes, K.
        hidden_dim: width of the head.
        bottleneck_dim: width of z, which is compared with the prototypes.
        head_layers: linear layers up to z.
        head_batch_norm: whether the head has BatchNorm, as for convolutional networks.
        norm_last_layer: whether the prototypes keep length 1. Off helps large models some, and may be unstable.
        student_temperature: tau_s.
        teacher_temperature: tau_t after its warm-up.
        warmup_teacher_temperature: tau_t at the start.
        warmup_teacher_epochs: epochs in which tau_t goes linearly from one to the other.
        center_momentum: m of the centre.
        teacher_momentum: of the teacher at the start; it ends at 1.
        freeze_last_layer: epochs at the start in which the prototypes stay where they are.
        clip_grad: largest norm of the gradient of each parameter; 0: none.
        global_scale: smallest and largest area of the two global crops, as a share of the image.
        local_size: side of the local crops in pixels; 0 takes 96 / 224 of `size`, rounded to whole patches.
        local_scale: smallest and largest area of the local crops.
        local_crops: how many of them.
        strength: of the colour distortion, 0.5 in the paper.
        blur: probabilities of a Gaussian blur in the first and second global and in the local crops.
        solarize: probability of it in the second global crop.
        **kwargs: of :class:`fastssl.methods.base.SelfSupervised`.

    Raises:
        ValueError: if a number is out of range or the backbone is unknown.
    """

    def __init__(
        self,
        out_dim: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        head_layers: int = 3,
        head_batch_norm: bool = False,
        norm_last_layer: bool = True,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        warmup_teacher_temperature: float = 0.04,
        warmup_teacher_epochs: int = 0,
        center_momentum: float = 0.9,
        teacher_momentum: float = 0.996,
        freeze_last_layer: int = 1,
        clip_grad: float = 3.0,
        global_scale: Range = (0.4, 1.0),
        local_size: int = 0,
        local_scale: Range = (0.05, 0.4),
        local_crops: int = 8,
        strength: float = 0.5,
        blur: tuple[float, float, float] = (1.0, 0.1, 0.5),
        solarize: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        checks.check_range("DINO", "teacher_momentum", teacher_momentum, maximum=1)
        checks.check_range("DINO", "clip_grad", clip_grad)
        counts = {"freeze_last_layer": freeze_last_layer, "local_size": local_size, "local_crops": local_crops}
        for argument, value in counts.items():
            checks.check_count("DINO", argument, value, minimum=0)
        head = DINOHead(
            self.num_features, out_dim, hidden_dim, bottleneck_dim, head_layers, head_batch_norm, norm_last_layer
        )
        self.head = head  # of the student gs; its encoder is self.backbone
        # gt.params = gs.params
        self.teacher = momentum_copy(nn.ModuleDict({"backbone": self.backbone, "head": head}))
        size: int = self.hparams["size"]
        self.transform = DINOTransform(
            size, global_scale, self._local_size(size, local_size, local_crops), local_scale, local_crops,
            cj_strength=strength, gaussian_blur=blur, solarization_prob=solarize,
        )  # fmt: skip
        self.criterion = DINOLoss(
            out_dim, warmup_teacher_temperature, teacher_temperature, warmup_teacher_epochs, student_temperature,
            center_momentum, inplace=True,
        )  # fmt: skip

    def _local_size(self, size: int, local_size: int, local_crops: int) -> int:
        """Side of the local crops, which the backbone has to take beside the global ones."""
        name, kwargs = self.architecture.name, self.architecture.kwargs
        patch = getattr(getattr(self.backbone, "patch_embed", None), "patch_size", None)
        unit = patch[0] if patch else 8
        if local_crops and "img_size" in kwargs and not kwargs.get("dynamic_img_size"):
            raise ValueError(
                f"DINO: local_crops must be 0 for {name}, which takes one size of images, got {local_crops}"
            )
        if local_crops and patch and local_size % unit:
            raise ValueError(
                f"DINO: local_size must be a multiple of {unit}, the patch size of {name}, got {local_size}"
            )
        return local_size or max(unit, round(96 / 224 * size / unit) * unit)

    @property
    def evaluated(self) -> nn.Module:
        return self.teacher["backbone"]

    @property
    def projector(self) -> nn.Module:
        return self.teacher["head"].mlp  # type: ignore[return-value]  # a module's attribute

    def step(self, *views: Tensor) -> Step:
        """One step of Algorithm 1: the first two views are the global crops, which both networks see."""
        with torch.no_grad():
            x = torch.cat(views[:2])
            t = self.teacher["head"](represent(self.teacher["backbone"], x))  # teacher output [2 N, K]
        h = torch.cat([self.represent(torch.cat(crops)) for crops in _by_size(views)])
        s = self.head(h)  # student output [views N, K]
        n = len(views[0])
        # Teacher sharpening, centring and stop-gradient, softmax of both, cross-entropy over pairs of different views,
        # and the new centre: all in the loss. The gradient takes the place of s.
        loss = self.criterion(t.view(2, n, -1), s.view(len(views), n, -1), epoch=self.current_epoch)
        return Step(loss, h[: 2 * n], h[: 2 * n], logits=t)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip each parameter's gradient by its own norm, and keep the prototypes where they are in the beginning."""
        h: Any = self.hparams
        if self.current_epoch < h.freeze_last_layer:
            for parameter in self.head.last_layer.parameters():
                parameter.grad = None
        if h.clip_grad:
            gradients = [p.grad for p in (*self.backbone.parameters(), *self.head.parameters()) if p.grad is not None]
            norms = torch.stack(torch._foreach_norm(gradients))
            factors = (h.clip_grad / (norms + 1e-6)).clamp(max=1)
            torch._foreach_mul_(gradients, list(factors.unbind()))

    def after_optimizer_step(self, progress: float) -> None:
        """gt.params = l * gt.params + (1 - l) * gs.params"""
        momentum = self._momentum(progress)
        update_momentum(self.teacher["backbone"], self.backbone, momentum)
        update_momentum(self.teacher["head"], self.head, momentum)

    def _momentum(self, progress: float) -> float:
        return cosine(self.hparams["teacher_momentum"], 1.0, progress)

    def _log_schedules(self) -> None:
        super()._log_schedules()
        self.log("momentum", self._momentum(self.progress))

    @torch.no_grad()
    def _log_collapse(self, result: Step) -> None:
        """Also the entropy of the teacher, in nats, between two forms of collapse: 0 is one prototype for each image.

        teacher_entropy: mean entropy of the assignments of images. assignment_entropy: that of their mean, at most
        log K; images differ as long as it is the larger one.
        """
        super()._log_collapse(result)
        assert result.logits is not None
        temperature = self.criterion._scheduled(self.current_epoch)
        p = ((result.logits.float() - self.criterion.center[0]) / temperature).softmax(1)
        self.log("teacher_entropy", torch.special.entr(p).sum(1).mean())
        self.log("assignment_entropy", torch.special.entr(p.mean(0)).sum())


def _by_size(views: tuple[Tensor, ...]) -> list[list[Tensor]]:
    """Neighbouring views of the same size: what goes through the network together."""
    return [list(group) for _, group in groupby(views, key=lambda view: view.shape)]
