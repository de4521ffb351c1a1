"""The patch loss in plain PyTorch: the definition.

The image is cut into a matrix of patches, as the papers' code does it. It is what the kernels are tested against (in
float64); on blocks of images it is also the fallback (``chunked.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..precision import accumulator, widened
from . import composed

EPSILON = 1e-6  # beside the variance of a patch


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    return None


def patch_loss(
    prediction: Tensor,  # [B, T + L, p p C]; the first T rows, class tokens, are left out
    image: Tensor,  # [B, C, H, W], L = H / p * W / p
    weight: Tensor,  # [B, L]; patches of weight 0 are left out
    *,
    patch_size: int,  # p
    normalize: bool,  # each patch of the image to mean 0 and variance 1
    error: str,
    beta: float,  # of "smooth_l1"
    channels_first: bool,  # how the numbers of a row are ordered: (C, p, p), else (p, p, C)
    scale: Sequence[float],  # [C]; a pixel is scale x + shift
    shift: Sequence[float],
) -> Tensor:
    """``weight`` times the mean error of every patch, [B, L]."""
    difference = _difference(prediction, image, patch_size, normalize, channels_first, scale, shift)
    size = difference.abs()
    if error == "squared":
        errors = difference.square()
    elif error == "absolute":
        errors = size
    else:
        errors = torch.where(size < beta, 0.5 * difference.square() / beta, size - 0.5 * beta)
    return torch.where(weight == 0, 0.0, weight * errors.mean(2))


def patch_loss_grad(
    prediction: Tensor,
    image: Tensor,
    weight: Tensor,
    d_loss: Tensor,  # [B, L]
    *,
    patch_size: int,
    normalize: bool,
    error: str,
    beta: float,
    channels_first: bool,
    scale: Sequence[float],
    shift: Sequence[float],
) -> Tensor:
    """Gradient for the predictions, in their shape and dtype; rows that are left out are zeros."""
    difference = _difference(prediction, image, patch_size, normalize, channels_first, scale, shift)
    if error == "squared":
        slope = 2 * difference
    elif error == "absolute":
        slope = torch.where(difference.isnan(), difference, difference.sign())
    else:
        slope = (difference / beta).clamp(-1, 1)
    factor = weight * d_loss / difference.shape[2]
    gradient = torch.where((weight == 0)[:, :, None], 0.0, factor[:, :, None] * slope).to(prediction.dtype)
    left_out = prediction.shape[1] - weight.shape[1]
    return torch.nn.functional.pad(gradient, (0, 0, left_out, 0)).contiguous()


patch_loss_step = partial(composed.patch_loss_step, patch_loss, patch_loss_grad)


def patches(
    image: Tensor,
    patch_size: int,
    channels_first: bool,
    scale: Sequence[float],
    shift: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """The pixels of the patches, [B, L, p p C]."""
    batch, channels, height, width = image.shape
    numbers = [image.new_tensor(values, dtype=dtype)[:, None, None] for values in (scale, shift)]
    pixels = image.to(dtype) * numbers[0] + numbers[1]
    grid = pixels.reshape(batch, channels, height // patch_size, patch_size, width // patch_size, patch_size)
    order = (0, 2, 4, 1, 3, 5) if channels_first else (0, 2, 4, 3, 5, 1)
    return grid.permute(order).reshape(batch, -1, patch_size * patch_size * channels)


def _difference(
    prediction: Tensor,
    image: Tensor,
    patch_size: int,
    normalize: bool,
    channels_first: bool,
    scale: Sequence[float],
    shift: Sequence[float],
) -> Tensor:
    """Prediction less target, [B, L, p p C]."""
    target = patches(image, patch_size, channels_first, scale, shift, accumulator(prediction))
    if normalize:
        variance, mean = torch.var_mean(target, dim=2, keepdim=True)
        target = (target - mean) / (variance + EPSILON).sqrt()
    return widened(prediction[:, prediction.shape[1] - target.shape[1] :]) - target
