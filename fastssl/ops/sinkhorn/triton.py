"""Log-sums less potentials on CUDA devices: launches the kernels in ``kernels/sinkhorn``.

Nothing here waits for the device or reads a tensor's value. Memory beyond the result: two numbers per row and chunk of
columns, or per column and part of the rows.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from fastssl.kernels.sinkhorn.config import TILES
from fastssl.kernels.sinkhorn.logsum import column_parts_kernel, combine_kernel, row_parts_kernel

from ..layout import contiguous, unit_stride
from ..triton_launch import OPTIONS, capability, multiprocessors, on_device_of, unsupported_reason

__all__ = ["potential_logsumexp", "unsupported_reason"]

# Rows are divided over programs until there are this many: programs of one warp, several rounds of them.
PROGRAMS_PER_MULTIPROCESSOR = 32
COMBINED_SLOTS, COMBINED_BLOCK = 16, 128


def potential_logsumexp(
    logits: Tensor,  # [R, K]
    potential: Tensor | None,  # [K] for dim=1, [R] for dim=0
    *,
    scale: float,
    dim: int,
) -> Tensor:
    """dim=1: log sum_k exp(scale x_rk - potential_k), [R]. dim=0: log sum_r exp(scale x_rk - potential_r), [K]."""
    logits, potential = unit_stride(logits), contiguous(potential)
    rows, columns = logits.shape
    device = logits.device
    kept, summed = logits.shape[1 - dim], logits.shape[dim]
    out = torch.empty(kept, dtype=torch.float32, device=device)
    if kept == 0:
        return out
    if summed == 0:
        return out.fill_(-torch.inf)
    kind = "fp32" if logits.dtype == torch.float32 else "16bit"
    tile = TILES.tile_for("rows" if dim == 1 else "columns", kind, columns, capability(device)[0])
    assert tile is not None, "the table serves any number of columns"
    chunks, blocks = triton.cdiv(columns, tile.block_n), triton.cdiv(rows, tile.block_m)
    programs = max(1, min(blocks, PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(device) // chunks))
    per_part = tile.block_m * triton.cdiv(blocks, programs)
    parts = chunks if dim == 1 else triton.cdiv(rows, per_part)
    maxima, sums = torch.empty((2, parts, kept), dtype=torch.float32, device=device)
    constants = {
        "BLOCK_R": tile.block_m, "BLOCK_K": tile.block_n, "HAS_POTENTIAL": potential is not None,
        "num_warps": tile.warps, "num_stages": tile.stages, **OPTIONS,
    }  # fmt: skip
    with on_device_of(logits):
        if dim == 1:
            row_parts_kernel[(chunks, programs)](
                logits, potential, maxima, sums, rows, columns, logits.stride(0), scale,
                WHOLE=columns % tile.block_n == 0, **constants,
            )  # fmt: skip
        else:
            column_parts_kernel[(chunks, parts)](
                logits, potential, maxima, sums, rows, columns, logits.stride(0), per_part, scale, **constants
            )
        combine_kernel[(triton.cdiv(kept, COMBINED_BLOCK),)](
            maxima, sums, out, parts, kept, SLOTS=COMBINED_SLOTS, BLOCK=COMBINED_BLOCK, num_warps=4, **OPTIONS
        )
    return out
