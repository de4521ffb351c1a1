"""Nearest neighbours in plain PyTorch: the definition, which stores and sorts the whole matrix of products."""

from __future__ import annotations

import torch
from torch import Tensor

from ..precision import widened


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    return None


def nearest_neighbors(
    q: Tensor,  # [M, D]
    k: Tensor | None,  # [N, D], None: the columns are q
    *,
    count: int,
    exclude_self: bool,
    row_offset: int,
) -> Tensor:
    """The ``count`` columns with the largest inner products of every row, largest first: int64 [M, count].

    Products are added up in float32 (float64 for float64). Equal products come in the order of their columns, and NaN
    is larger than any number, as in ``torch.topk``. With exclude_self row i never gets column row_offset + i.
    """
    rows, columns = operands(q, k)
    order = torch.sort(rows @ columns.T, dim=1, descending=True, stable=True).indices  # [M, N]
    if exclude_self:  # moved behind all others, whatever its product is
        own = torch.arange(row_offset, row_offset + q.shape[0], device=q.device)[:, None]
        last = torch.sort((order == own).to(torch.uint8), dim=1, stable=True).indices
        order = order.gather(1, last)
    return order[:, :count].contiguous()


def operands(q: Tensor, k: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows and columns in the dtype in which products are added up: rounded to 16 bits, many would be equal."""
    rows = widened(q)
    return rows, rows if k is None else k.to(rows.dtype)
