"""The patch loss on CUDA devices: launches the kernel in ``kernels/reconstruction``.

Nothing here waits for the device or reads a tensor's value, and there is no memory beyond inputs and outputs. Loss and
gradient come out of one pass where both are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl.kernels.reconstruction.config import block_of
from fastssl.kernels.reconstruction.patch import patch_kernel

from ..layout import unit_stride
from ..triton_launch import INTERPRETED, OPTIONS, on_device_of, unsupported_reason
from .op import CHANNELS, ERRORS

__all__ = ["patch_loss", "patch_loss_grad", "patch_loss_step", "unsupported_reason"]


def patch_loss(
    prediction: Tensor,  # [B, T + L, p p C]
    image: Tensor,  # [B, C, H, W]
    weight: Tensor,  # [B, L]
    *,
    patch_size: int,
    normalize: bool,
    error: str,
    beta: float,
    channels_first: bool,
    scale: Sequence[float],
    shift: Sequence[float],
    loss: bool = True,
    gradient: Tensor | None = None,
    factor: Tensor | None = None,  # of each patch's gradient, [B, L]
) -> Tensor:
    """See ``reference.patch_loss``; ``gradient`` is written in the same pass."""
    prediction, weight = unit_stride(prediction), weight.contiguous()
    batch, channels, _, width = image.shape
    patches, rows = weight.shape[1], prediction.shape[1]
    losses = torch.empty(weight.shape if loss else (0,), dtype=torch.float32, device=weight.device)
    block, warps = block_of(patch_size**2 * channels)
    numbers = [[*values, *[0.0] * (CHANNELS - channels)] for values in (scale, shift)]
    with on_device_of(prediction):
        patch_kernel[(batch * rows,)](
            prediction, image, weight, factor, losses if loss else None, gradient,
            patches, rows - patches, width // patch_size, prediction.stride(0), prediction.stride(1), *image.stride(),
            *numbers[0], *numbers[1], beta,
            P=patch_size, C=channels, BLOCK=block, NORMALIZE=normalize, ERROR=ERRORS.index(error),
            CHANNELS_FIRST=channels_first, LOSS=loss, GRADIENT=gradient is not None,
            ROUND=16 if INTERPRETED and prediction.dtype == torch.bfloat16 else 0,
            num_warps=warps, num_stages=1, **OPTIONS,
        )  # fmt: skip
    return losses


def patch_loss_grad(prediction: Tensor, image: Tensor, weight: Tensor, d_loss: Tensor, **rules: object) -> Tensor:
    """See ``reference.patch_loss_grad``."""
    gradient, factor = _gradient(prediction), (weight * d_loss).contiguous()
    patch_loss(prediction, image, weight, **rules, loss=False, gradient=gradient, factor=factor)  # type: ignore[arg-type]
    return gradient


def patch_loss_step(prediction: Tensor, image: Tensor, weight: Tensor, **rules: object) -> tuple[Tensor, Tensor]:
    """See ``composed.patch_loss_step``; every number is read once."""
    gradient, weight = _gradient(prediction), weight.contiguous()
    losses = patch_loss(prediction, image, weight, **rules, gradient=gradient, factor=weight)  # type: ignore[arg-type]
    return losses.sum(), gradient


def _gradient(prediction: Tensor) -> Tensor:
    return torch.empty(prediction.shape, dtype=prediction.dtype, device=prediction.device)
