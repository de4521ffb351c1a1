"""SimMIM: Xie, Zhang, Cao, Lin, Bao, Yao, Dai, Hu, "SimMIM: A Simple Framework for Masked Image Modeling", CVPR 2022
(arXiv 2111.09886), section 3."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl import functional
from fastssl.augment import MAETransform
from fastssl.data.base import Batch
from fastssl.losses import SimMIMLoss
from fastssl.methods.base import SelfSupervised, Step
from fastssl.models.masked import initialize, patch_grid, sincos_positions
from fastssl.models.masking import mask_bool


class SimMIM(SelfSupervised):
    """Mask tokens take the place of patches at the encoder's input, and a linear layer predicts their pixels.

    The defaults of the training are the paper's (section 4.1), for 100 epochs of ImageNet in batches of 2048 images.

    Args:
        mask_ratio: share of units that are masked.
        mask_unit: side in pixels of the squares that are masked together, a multiple of the backbone's patches.
        min_scale: smallest area of the crop as a share of the image; a flip is all else.
        lr: for `lr_batch_size` images per step.
        lr_batch_size: as in the base class.
        weight_decay: as in the base class.
        warmup_epochs: as in the base class.
        backbone: a vision transformer of timm with a class token; its positions start as sines and cosines.
        **kwargs: of :class:`fastssl.methods.base.SelfSupervised`.

    Raises:
        ValueError: if a number is out of range or the backbone is unknown.
    """

    def __init__(
        self,
        mask_ratio: float = 0.6,
        mask_unit: int = 32,
        min_scale: float = 0.67,
        lr: float = 8e-4,
        lr_batch_size: int = 2048,
        weight_decay: float = 0.05,
        warmup_epochs: float = 10.0,
        backbone: str = "vit_base_patch16_224",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            lr=lr, lr_batch_size=lr_batch_size, weight_decay=weight_decay, warmup_epochs=warmup_epochs,
            backbone=backbone, **kwargs,
        )  # fmt: skip
        self.save_hyperparameters()
        self.patch_size, self.grid = patch_grid("SimMIM", self.backbone)
        size: int = self.hparams["size"]
        if mask_unit < 1 or mask_unit % self.patch_size or size % mask_unit:
            raise ValueError(
                f"SimMIM: mask_unit must be a multiple of the patches' side, {self.patch_size}, that divides size, "
                f"{size}, got {mask_unit}"
            )
        units = (size // mask_unit) ** 2
        if not 0 < mask_ratio <= 1 - 1 / units:
            raise ValueError(f"SimMIM: mask_ratio must be above 0 and leave one of {units} units, got {mask_ratio}")
        encoder: Any = self.backbone
        encoder.apply(initialize)
        # All that a mask token tells is where it stands, which is hard to learn from timm's small random positions.
        with torch.no_grad():
            encoder.pos_embed.copy_(sincos_positions(self.num_features, self.grid))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.num_features))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.head = nn.Linear(self.num_features, 3 * self.patch_size**2)
        self.transform = MAETransform(size, min_scale)
        self.criterion = SimMIMLoss(self.patch_size)

    def targets(self, batch: Batch) -> tuple[Tensor, ...]:
        """The keys of the masks, as of the views: the same image has another mask in every epoch."""
        return (batch.index,)

    def mask(self, index: Tensor) -> Tensor:
        """Units without replacement, each as its patches: bool [B, rows, columns], True where masked."""
        h: Any = self.hparams
        return functional.unit_masks(
            index, self.grid, unit=h.mask_unit // self.patch_size, mask_ratio=h.mask_ratio, seed=h.seed,
            epoch=self.current_epoch,
        )  # fmt: skip

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """The encoder on all patches, masked ones replaced.

        Args:
            x: normalised images [B, 3, H, W].
            mask: bool [B, rows, columns], True where masked.

        Returns:
            Tokens [B, 1 + L, num_features], the class token first.
        """
        encoder: Any = self.backbone
        tokens = encoder.patch_embed(x).flatten(1, -2)  # [B, L, D], also from [B, rows, columns, D]
        tokens = mask_bool(tokens, mask.flatten(1), self.mask_token.to(tokens.dtype))
        first = encoder.cls_token.expand(len(x), -1, -1)
        tokens = torch.cat([first.to(tokens.dtype), tokens], 1) + encoder.pos_embed
        for block in encoder.blocks:
            tokens = block(tokens)
        return encoder.norm(tokens)

    def step(self, x: Tensor, index: Tensor) -> Step:  # type: ignore[override]  # one view, and its keys
        """Mask, encode everything, predict pixels linearly, compare those that were masked."""
        mask = self.mask(index)
        tokens = self.encode(x, mask)
        h = tokens[:, 0]
        return Step(self.criterion(x, self.head(tokens), mask), h, h)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """What the head makes of masked images.

        Args:
            x: normalised images [B, 3, H, W].
            index: int64 [B], keys of the masks.

        Returns:
            The predicted images [B, 3, H, W], normalised like `x`, and the mask, [B, L], 1 where a patch was masked.
        """
        mask = self.mask(index)
        rows = self.head(self.encode(x, mask))[:, 1:].transpose(1, 2)
        return F.pixel_shuffle(rows.unflatten(2, self.grid), self.patch_size), mask.flatten(1).float()
