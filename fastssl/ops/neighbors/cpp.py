"""Nearest neighbours on the CPU: tensors in, addresses to the compiled kernel, indices out.

The kernel compares each tile of products with the worst that its rows still hold, while it is in registers; see
``csrc/cpu/neighbors/kernels.h``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..cpp import DTYPES, address, allow_bfloat16_product, kernels, unsupported_reason
from ..layout import unit_stride

__all__ = ["nearest_neighbors", "unsupported_reason"]


def nearest_neighbors(
    q: Tensor,  # [M, D]
    k: Tensor | None,  # [N, D], None: the columns are q
    *,
    count: int,
    exclude_self: bool,
    row_offset: int,
) -> Tensor:
    """See ``reference.nearest_neighbors``."""
    q, k = unit_stride(q), None if k is None else unit_stride(k)
    columns = q if k is None else k
    out = torch.empty(q.shape[0], count, dtype=torch.int64)
    kernels().nearest_neighbors(
        q=q.data_ptr(),
        k=address(k),
        rows=q.shape[0],
        cols=columns.shape[0],
        dim=q.shape[1],
        q_stride=q.stride(0),
        k_stride=columns.stride(0),
        dtype=DTYPES[q.dtype],
        count=count,
        exclude_self=exclude_self,
        row_offset=row_offset,
        threads=torch.get_num_threads(),
        allow_bfloat16_product=allow_bfloat16_product(),
        columns=out.data_ptr(),
    )
    return out
