"""The patch loss on the CPU: tensors in, addresses to the compiled kernels, tensors out.

A thread takes a patch after the other, whose pixels stay in the cache; image and predictions are read once, and the
gradient is written in the same pass. See ``csrc/cpu/reconstruction/kernels.h``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..cpp import DTYPES, address, kernels, unsupported_reason
from ..layout import unit_stride
from ..outputs import empty
from ..precision import accumulator
from .op import ERRORS

__all__ = ["patch_loss", "patch_loss_grad", "patch_loss_step", "unsupported_reason"]

# The numbers of the enum in csrc/cpu/reconstruction/reconstruction.h.
PIXEL_TYPES = {**DTYPES, torch.uint8: 4}


def patch_loss(
    prediction: Tensor,
    image: Tensor,
    weight: Tensor,
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
    losses = torch.empty(weight.shape if loss else (0,), dtype=accumulator(prediction))
    prediction, weight = unit_stride(prediction), weight.contiguous()
    kernels().patch_loss(
        image=image.data_ptr(),
        pixel_type=PIXEL_TYPES[image.dtype],
        shape=tuple(image.shape),
        strides=image.stride(),
        scale=scale,
        shift=shift,
        prediction=prediction.data_ptr(),
        dtype=DTYPES[prediction.dtype],
        prediction_stride=prediction.stride(0),
        patch_stride=prediction.stride(1),
        tokens=prediction.shape[1] - weight.shape[1],
        weight=weight.data_ptr(),
        patch_size=patch_size,
        normalize=normalize,
        channels_first=channels_first,
        error=ERRORS.index(error),
        beta=beta,
        threads=torch.get_num_threads(),
        loss=losses.data_ptr() if loss else 0,
        gradient=address(gradient),
        factor=address(factor),
    )
    return losses


def patch_loss_grad(prediction: Tensor, image: Tensor, weight: Tensor, d_loss: Tensor, **rules: object) -> Tensor:
    """See ``reference.patch_loss_grad``."""
    gradient, factor = empty(prediction.shape, prediction.dtype), (weight * d_loss).contiguous()
    patch_loss(prediction, image, weight, **rules, loss=False, gradient=gradient, factor=factor)  # type: ignore[arg-type]
    return gradient


def patch_loss_step(prediction: Tensor, image: Tensor, weight: Tensor, **rules: object) -> tuple[Tensor, Tensor]:
    """See ``composed.patch_loss_step``; every number is read once."""
    gradient, weight = empty(prediction.shape, prediction.dtype), weight.contiguous()
    losses = patch_loss(prediction, image, weight, **rules, gradient=gradient, factor=weight)  # type: ignore[arg-type]
    return losses.sum(), gradient
