"""Functions with the signatures of the methods in facebookresearch/mae's ``models_mae.py``."""

from __future__ import annotations

from torch import Tensor

from .. import functional

__all__ = ["forward_loss"]


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
