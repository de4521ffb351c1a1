"""Tables of integers on the device for Triton kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl.kernels.table import FILLED_AT_ONCE, fill_kernel

from .triton_launch import OPTIONS


def filled_table(values: Sequence[int], device: torch.device) -> Tensor:
    """int64: the values, then zeros up to a multiple of ``FILLED_AT_ONCE``. Nothing is copied from the host."""
    padded = [*values, *(0,) * (-len(values) % FILLED_AT_ONCE)]
    table = torch.empty(len(padded), dtype=torch.int64, device=device)
    for first in range(0, len(padded), FILLED_AT_ONCE):
        fill_kernel[(1,)](table, first, *padded[first : first + FILLED_AT_ONCE], num_warps=1, **OPTIONS)
    return table
