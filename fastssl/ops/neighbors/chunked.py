"""Nearest neighbours in plain PyTorch, a block of rows at a time: what serves where no kernel can."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference

BLOCK_PRODUCTS = 1 << 22


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    return None


def nearest_neighbors(
    q: Tensor,  # [M, D]
    k: Tensor | None,  # [N, D]
    *,
    count: int,
    exclude_self: bool,
    row_offset: int,
) -> Tensor:
    """See ``reference.nearest_neighbors``."""
    rows, columns = reference.operands(q, k)
    (m, _), n = rows.shape, columns.shape[0]
    out = torch.empty(m, count, dtype=torch.int64, device=q.device)
    size = max(1, min(m, BLOCK_PRODUCTS // n))
    for start in range(0, m, size):
        stop = min(start + size, m)
        ranks = _ranks(rows[start:stop] @ columns.T)
        if exclude_self:
            own = row_offset + torch.arange(start, stop, device=q.device)[:, None]
            column = own.clamp(max=n - 1)
            lowest = torch.iinfo(ranks.dtype).min
            ranks.scatter_(1, column, torch.where(own < n, lowest, ranks.gather(1, column)))
        out[start:stop] = _largest(ranks, count)
    return out


def _ranks(products: Tensor) -> Tensor:
    """Integers in the order of the products [m, N], NaN the largest, above the smallest integer."""
    integer = torch.int64 if products.dtype == torch.float64 else torch.int32
    bits = (products + 0.0).view(integer)  # both zeros have the same bits now
    largest = torch.iinfo(integer).max
    ordered = torch.where(bits < 0, bits ^ largest, bits)  # a negative number's bits grow with its size
    return torch.where(products.isnan(), largest, ordered)


def _largest(ranks: Tensor, count: int) -> Tensor:
    """The places of the ``count`` largest of every row, equal ones in order.

    ``topk`` picks among equals as it likes, so the place joins the rank in one number; where both need 64 bits the
    row is sorted.
    """
    if count == 1:
        return ranks.argmax(1, keepdim=True)  # the first of equals
    if ranks.dtype == torch.int64:
        return torch.sort(ranks, dim=1, descending=True, stable=True).indices[:, :count]
    n = ranks.shape[1]
    from_behind = torch.arange(n - 1, -1, -1, device=ranks.device)
    return n - 1 - ((ranks.long() << 32) + from_behind).topk(count, dim=1).values.bitwise_and(0xFFFFFFFF)
