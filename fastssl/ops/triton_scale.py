"""A tensor times a number on its CUDA device: launches the kernel in ``kernels/scaling``."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from fastssl.kernels.scaling.scale import BLOCK, WARPS, scale_kernel

from .triton_launch import INTERPRETED, OPTIONS, multiprocessors, on_device_of, unsupported_reason

__all__ = ["scale", "unsupported_reason"]

PROGRAMS_PER_MULTIPROCESSOR = 8


def scale(x: Tensor, factor: Tensor) -> Tensor:
    """A contiguous tensor, multiplied where it lies by a number [] on its device, which the host does not read.

    Where that number is 1 the memory is not touched.
    """
    programs = min(triton.cdiv(x.numel(), BLOCK), PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(x.device))
    if programs:
        with on_device_of(x):
            scale_kernel[(programs,)](
                x, factor, x.numel(),
                BLOCK=BLOCK, ROUND=16 if INTERPRETED and x.dtype == torch.bfloat16 else 0, num_warps=WARPS, **OPTIONS,
            )  # fmt: skip
    return x
