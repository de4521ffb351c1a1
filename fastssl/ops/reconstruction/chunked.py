"""The patch loss in plain PyTorch, a block of images at a time: bounded memory on any device.

It serves where no kernel can: no compiler, a device without Triton, float64 on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..precision import accumulator
from . import composed, reference

BLOCK_NUMBERS = 1 << 22


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    return None


def patch_loss(prediction: Tensor, image: Tensor, weight: Tensor, **rules: Any) -> Tensor:
    """See ``reference.patch_loss``."""
    losses = torch.empty_like(weight, dtype=accumulator(prediction), memory_format=torch.contiguous_format)
    for rows in _blocks(prediction):
        losses[rows] = reference.patch_loss(prediction[rows], image[rows], weight[rows], **rules)
    return losses


def patch_loss_grad(prediction: Tensor, image: Tensor, weight: Tensor, d_loss: Tensor, **rules: Any) -> Tensor:
    """See ``reference.patch_loss_grad``."""
    gradient = torch.empty_like(prediction, memory_format=torch.contiguous_format)
    for rows in _blocks(prediction):
        gradient[rows] = reference.patch_loss_grad(prediction[rows], image[rows], weight[rows], d_loss[rows], **rules)
    return gradient


patch_loss_step = partial(composed.patch_loss_step, patch_loss, patch_loss_grad)


def _blocks(prediction: Tensor) -> Iterator[slice]:
    images = prediction.shape[0]
    step = max(1, BLOCK_NUMBERS // (prediction.shape[1] * prediction.shape[2]))
    return (slice(start, min(start + step, images)) for start in range(0, images, step))
