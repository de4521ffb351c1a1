"""Nearest neighbours on CUDA devices: launches the kernels in ``kernels/neighbors``.

Nothing here waits for the device or reads a tensor's value. Memory beyond the result: two integers per row, slot and
split of the columns. Many neighbours per row are left to a library product and ``torch.topk``, block by block of rows.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from fastssl.kernels.neighbors.config import TILES
from fastssl.kernels.neighbors.topk import nearest_kernel, select_kernel

from ..layout import unit_stride
from ..triton_launch import INTERPRETED, OPTIONS, capability, multiprocessors, on_device_of, unsupported_reason
from . import chunked

__all__ = ["nearest_neighbors", "unsupported_reason"]

# Above it, rows change their slots too often for the search to stay inside the product's loop.
LARGEST_COUNT = 16
# Columns are split over programs until there are this many, but into no more parts than `select_kernel` can take.
PROGRAMS_PER_MULTIPROCESSOR = 2
LARGEST_SPLITS = 64
SELECTED_NUMBERS = 2048  # of `select_kernel`: candidates that a program has in registers


def nearest_neighbors(
    q: Tensor,  # [M, D]
    k: Tensor | None,  # [N, D], None: the columns are q
    *,
    count: int,
    exclude_self: bool,
    row_offset: int,
) -> Tensor:
    """The ``count`` columns with the largest inner products of every row, largest first: int64 [M, count]."""
    rows = unit_stride(q)
    columns = rows if k is None else unit_stride(k)
    (m, d), n, device = rows.shape, columns.shape[0], q.device
    if count > LARGEST_COUNT:
        return chunked.nearest_neighbors(q, k, count=count, exclude_self=exclude_self, row_offset=row_offset)
    out = torch.empty(m, count, dtype=torch.int64, device=device)
    if m == 0:
        return out
    kind = "16bit" if q.dtype != torch.float32 else _float32_kind()
    tile = TILES.tile_for("nearest", kind, d, capability(device)[0])
    assert tile is not None, "the table serves every kind and dimension"
    blocks, tiles = triton.cdiv(m, tile.block_m), triton.cdiv(n, tile.block_n)
    wanted = triton.cdiv(PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(device), blocks)
    per_split = triton.cdiv(tiles, min(wanted, tiles, LARGEST_SPLITS))
    splits = triton.cdiv(tiles, per_split)
    slots = triton.next_power_of_2(count)
    ranks, places = torch.empty((2, splits, m, slots), dtype=torch.int32, device=device)
    candidates = triton.next_power_of_2(splits * slots)
    block = max(1, SELECTED_NUMBERS // candidates)
    with on_device_of(q):
        nearest_kernel[(blocks, splits)](
            rows, columns, ranks, places, m, n, d, rows.stride(0), columns.stride(0), row_offset, per_split,
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_D=tile.block_d, SLOTS=slots, STAGES=tile.stages,
            EXCLUDE_SELF=exclude_self, PRECISION="ieee" if kind == "16bit" else kind,
            UPCAST=INTERPRETED and kind == "16bit", num_warps=tile.warps, num_stages=tile.stages, **OPTIONS,
        )  # fmt: skip
        select_kernel[(triton.cdiv(m, block),)](
            ranks, places, out, m, splits, count,
            BLOCK_M=block, CANDIDATES=candidates, SLOTS=slots, num_warps=4, **OPTIONS,
        )  # fmt: skip
    return out


def _float32_kind() -> str:
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
