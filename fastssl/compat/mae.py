"""Functions with the signatures of the methods in facebookresearch/mae's ``models_mae.py``."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import functional
from ..ops import checks

__all__ = ["forward_loss", "random_masking"]


def forward_loss(imgs: Tensor, pred: Tensor, mask: Tensor, patch_size: int = 16, norm_pix_loss: bool = False) -> Tensor:
    """Mean squared error of the removed patches.

    He et al., "Masked Autoencoders Are Scalable Vision Learners", 2022, section 3.

    Args:
        imgs: [B, C, H, W], float32, bfloat16, float16, float64, or uint8, which is divided by 255. A constant.
        pred: [B, L, patch_size^2 C] in the order (y, x, C); float32, bfloat16, float16 or float64.
        mask: [B, L], 1 where a patch was removed.
        patch_size: divides H and W.
        norm_pix_loss: normalise each patch of the image by its mean and its unbiased variance + 1e-6.

    Returns:
        The loss, [], float32 (float64 for float64 predictions); NaN where no patch was removed.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    return functional.patch_loss(imgs, pred, mask, patch_size=patch_size, normalize=norm_pix_loss)


def random_masking(x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Random masks by shuffling each image's patches, and the tokens that stay.

    He et al., "Masked Autoencoders Are Scalable Vision Learners", 2022, section 3. The noise comes from PyTorch's
    generator: the same seed gives the masks of the published method, by one sort instead of two.

    Args:
        x: tokens [B, L, D], float32, bfloat16, float16 or float64.
        mask_ratio: share of the patches to remove, in [0, 1).

    Returns:
        The int(L (1 - mask_ratio)) tokens that stay [B, K, D]; mask [B, L], float32, 1 where a patch was removed; and
        ids_restore, int64 [B, L], each patch's place among those that stay and then the others.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    checks.check_tensor("random_masking", "x", x, ndim=3, layout="[B, L, D]")
    noise = torch.rand(x.shape[:2], device=x.device)
    masks = functional.masks_from_noise(noise, mask_ratio=mask_ratio)
    return functional.gather_tokens(x, masks.keep), masks.mask, masks.restore
