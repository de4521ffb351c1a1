"""InstDisc: Wu, Xiong, Yu, Lin, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018
(arXiv 1805.01978), section 3."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl import distributed
from fastssl.augment import (
    IMAGENET_NORMALIZE,
    ColorJitter,
    Compose,
    MultiViewTransform,
    Normalize,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
)
from fastssl.data.base import Batch
from fastssl.functional import info_nce
from fastssl.losses.arguments import default_group
from fastssl.methods.base import SelfSupervised, Step
from fastssl.models.heads import ProjectionHead
from fastssl.ops import checks


class InstDisc(SelfSupervised):
    """Every image is a class of its own, whose weights are what the network made of it the last time.

    The paper estimates the softmax over all images from 4096 of them (noise-contrastive estimation); here it is the
    full one (its equation 2), which costs one pass over the memory bank and stores no logits.

    Args:
        temperature: tau, 0.07 in the paper.
        bank_momentum: share of the old row in what replaces it, 0.5 in the paper.
        proximal: lambda of the regulariser that keeps a feature near its row in the bank (equation 10).
        out_dim: width of the feature v.
        num_images: rows of the memory bank; 0: the training images of the data that it is fitted on.
        min_scale: smallest area of a crop as a share of the image.
        strength: of the colour distortion, 1 in the paper.
        **kwargs: of :class:`fastssl.methods.base.SelfSupervised`.

    Raises:
        ValueError: if a number is out of range or the backbone is unknown.
    """

    bank: Tensor

    def __init__(
        self,
        temperature: float = 0.07,
        bank_momentum: float = 0.5,
        proximal: float = 0.0,
        out_dim: int = 128,
        num_images: int = 0,
        min_scale: float = 0.2,
        strength: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        if not 0 <= bank_momentum < 1:
            raise ValueError(f"InstDisc: bank_momentum must be in [0, 1), got {bank_momentum}")
        checks.check_range("InstDisc", "proximal", proximal)
        checks.check_count("InstDisc", "num_images", num_images, minimum=0)
        checks.check_temperature("InstDisc", "temperature", temperature)
        self.projection = ProjectionHead(self.num_features, self.num_features, out_dim, layers=1)
        self.register_buffer("bank", torch.empty(0, out_dim))
        self._make_bank(num_images)
        self._waiting: list[tuple[Tensor, Tensor]] = []
        jitter = ColorJitter(*(0.4 * strength,) * 4)
        steps = [RandomResizedCrop(self.eval_transform.size, scale=(min_scale, 1.0)), RandomGrayscale(0.2), jitter]
        last = Normalize(IMAGENET_NORMALIZE["mean"], IMAGENET_NORMALIZE["std"])
        self.transform = MultiViewTransform([Compose([*steps, RandomHorizontalFlip(), last])])

    @property
    def projector(self) -> nn.Module:
        return self.projection

    def setup(self, stage: str) -> None:
        """As many rows in the bank as there are training images."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning's, untyped
        if not self.hparams["num_images"] and data is not None:
            self.hparams["num_images"] = len(data.train)
            self._make_bank(len(data.train))

    def _make_bank(self, rows: int) -> None:
        """Random unit rows, the same on every process."""
        start = torch.randn(rows, self.bank.shape[1], generator=torch.Generator().manual_seed(0))
        self.bank = F.normalize(start, dim=1).to(self.bank.device)

    def targets(self, batch: Batch) -> tuple[Tensor, ...]:
        """The images' numbers, which are their classes.

        Raises:
            ValueError: on a CPU, if there is an image without a row in the bank.
        """
        if not batch.index.is_cuda:  # there an index out of range stops the device, and looking would stop it each time
            least, largest = (int(number) for number in batch.index.aminmax())
            if least < 0 or largest >= len(self.bank):
                raise ValueError(
                    f"InstDisc: indices of images must be from 0 to num_images - 1, {len(self.bank) - 1}, got {least} "
                    f"to {largest}"
                )
        return (batch.index,)

    def step(self, x: Tensor, index: Tensor) -> Step:  # type: ignore[override]  # one view, and its keys
        """The non-parametric softmax of N images."""
        p: Any = self.hparams
        h = self.represent(x)
        z = self.projection(h)
        # P(i | v) = exp(v_i' v / tau) / sum_j exp(v_j' v / tau)
        loss = info_nce(z, self.bank.to(z.dtype), index=index, temperature=p.temperature)
        v = F.normalize(z, dim=1)
        if p.proximal:
            loss = loss + p.proximal * (v - self.bank[index]).square().sum(1).mean()
        self._waiting.append((index, v.detach().to(self.bank.dtype)))
        return Step(loss, h, z)

    @torch.no_grad()
    def after_optimizer_step(self, progress: float) -> None:
        """The features of the step replace their rows, in part: after the backward pass, which reads the bank."""
        momentum: float = self.hparams["bank_momentum"]
        group = default_group(True)
        for index, v in self._waiting:
            if group is not None and group.size() > 1:
                index, v = (distributed.all_gather_rows(x, group.group_name) for x in (index, v))
            self.bank[index] = F.normalize(momentum * self.bank[index] + (1 - momentum) * v, dim=1)
        self._waiting.clear()
