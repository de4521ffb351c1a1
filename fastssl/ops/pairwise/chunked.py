"""Pairwise log-sum-exp in plain PyTorch, a block of rows at a time: O((M + N) D) memory on any device.

It serves where no kernel can: no compiler, a device without Triton, float64 on a GPU. A block holds about four
million logits, and the index rules touch one column per row instead of a boolean matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import accumulator, widened
from . import composed
from .composed import through_normalize
from .reference import unit_rows

BLOCK_LOGITS = 1 << 22


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    return None


@dataclass
class _OneColumn:
    """A rule that touches at most one column per row."""

    column: Tensor  # [m, 1], clamped to a valid column where there is none
    hit: Tensor  # [m, 1], whether there is one

    @classmethod
    def of(cls, column: Tensor, n: int) -> _OneColumn:
        return cls(column.clamp(0, n - 1), (column >= 0) & (column < n))

    def put(self, values: Tensor, fill: float | Tensor) -> None:
        values.scatter_(1, self.column, torch.where(self.hit, fill, values.gather(1, self.column)))


@dataclass
class _Block:
    """Rows [start, stop) against all columns, and where the rules hit them."""

    start: int
    stop: int
    logits: Tensor  # [m, N], nothing left out yet
    self_pair: _OneColumn | None
    match: _OneColumn | Tensor | None  # the positives: one column per row, or a boolean matrix [m, N] for keys

    def leave_out(self, values: Tensor, fill: float, *, exclude_positives: bool) -> None:
        """Write ``fill`` where a pair is not in the log-sum, in place."""
        if self.self_pair is not None:
            self.self_pair.put(values, fill)
        if not exclude_positives or self.match is None:
            return
        if isinstance(self.match, Tensor):
            values.masked_fill_(self.match, fill)
        else:
            self.match.put(values, fill)

    def sum_of_positives(self, values: Tensor) -> Tensor:
        """Sum of ``values`` [m, N] over each row's positives: [m]."""
        if self.match is None:
            return values.new_zeros(values.shape[0])
        if isinstance(self.match, Tensor):
            return torch.where(self.match, values, 0.0).sum(1)
        return torch.where(self.match.hit, values.gather(1, self.match.column), 0.0).sum(1)

    def add_at_positives(self, values: Tensor, row: Tensor | None, column: Tensor | None) -> None:
        """Add row[i] + column[j] to ``values`` [m, N] at the positives, in place."""
        of_rows = None if row is None else row[self.start : self.stop, None]
        if isinstance(self.match, Tensor):
            for weight in (of_rows, None if column is None else column[None, :]):
                if weight is not None:
                    values.addcmul_(self.match.to(values.dtype), weight)
        elif self.match is not None:
            amount = torch.zeros_like(self.match.column, dtype=values.dtype)
            if of_rows is not None:
                amount += of_rows
            if column is not None:
                amount += column[self.match.column]
            values.scatter_add_(1, self.match.column, torch.where(self.match.hit, amount, 0.0))


def _blocks(
    q: Tensor,
    k: Tensor,
    s: float | Tensor,
    positives: str,
    row_key: Tensor | None,
    col_key: Tensor | None,
    exclude_self: bool,
    row_offset: int,
    col_offset: int,
    row_step: int,
) -> Iterator[_Block]:
    m, n = q.shape[0], k.shape[0]
    size = max(1, min(m, BLOCK_LOGITS // n))
    for start in range(0, m, size):
        stop = min(start + size, m)
        product = q[start:stop] @ k.T
        logits = widened(product).mul_(s)
        row = (row_offset + row_step * torch.arange(start, stop, device=q.device))[:, None]
        self_pair = _OneColumn.of(row - col_offset, n) if exclude_self else None
        match: _OneColumn | Tensor | None = None
        if positives == "key":
            assert row_key is not None and col_key is not None
            match = row_key[start:stop, None] == col_key[None, :]
            if self_pair is not None:
                self_pair.put(match, False)
        elif positives == "pair":
            match = _OneColumn.of((row ^ 1) - col_offset, n)
        elif positives == "diagonal" and not exclude_self:
            match = _OneColumn.of(row - col_offset, n)
        yield _Block(start, stop, logits, self_pair, match)


def pairwise_logsumexp(
    q: Tensor,  # [M, D]
    k: Tensor | None,  # [N, D]
    logit_scale: Tensor | None,  # []
    *,
    scale: float,
    normalize: bool,
    positives: str,
    row_key: Tensor | None,
    col_key: Tensor | None,
    exclude_self: bool,
    exclude_positives: bool,
    row_offset: int,
    col_offset: int,
) -> tuple[Tensor, Tensor]:
    """See ``reference.pairwise_logsumexp``."""
    rows, columns = _operands(q, k, normalize)
    s = scale if logit_scale is None else scale * logit_scale
    row_lse, positive = (q.new_empty(q.shape[0], dtype=accumulator(q)) for _ in range(2))
    for block in _blocks(
        rows, columns, s, positives, row_key, col_key, exclude_self, row_offset, col_offset, row_step=1
    ):
        here = slice(block.start, block.stop)
        positive[here] = block.sum_of_positives(block.logits)
        block.leave_out(block.logits, -torch.inf, exclude_positives=exclude_positives)
        row_lse[here] = block.logits.logsumexp(1)
    return row_lse, positive


def pairwise_logsumexp_grad(
    q: Tensor,  # [M, D]
    k: Tensor | None,  # [N, D]
    logit_scale: Tensor | None,  # []
    row_lse: Tensor | None,  # [M]
    row_weight: Tensor | None,  # [M]
    row_positive_weight: Tensor | None,  # [M]
    col_lse: Tensor | None,  # [N]
    col_weight: Tensor | None,  # [N]
    col_positive_weight: Tensor | None,  # [N]
    *,
    scale: float,
    normalize: bool,
    positives: str,
    row_key: Tensor | None,
    col_key: Tensor | None,
    exclude_self: bool,
    exclude_positives: bool,
    row_offset: int,
    col_offset: int,
    row_step: int,
) -> tuple[Tensor, Tensor]:
    """See ``reference.pairwise_logsumexp_grad``."""
    if k is None and col_lse is None and col_positive_weight is None:
        col_lse, col_weight, col_positive_weight = row_lse, row_weight, row_positive_weight
    rows, columns = _operands(q, k, normalize)
    s = scale if logit_scale is None else scale * logit_scale
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    radial = q.new_empty(q.shape[0], dtype=accumulator(q))  # <row, its gradient>: their sum is the scale's gradient
    for block in _blocks(rows, columns, s, positives, row_key, col_key, exclude_self, row_offset, col_offset, row_step):
        here = slice(block.start, block.stop)
        g = torch.zeros_like(block.logits)  # dL/d logits, [m, N]
        if row_lse is not None and row_weight is not None:
            g += row_weight[here, None] * (block.logits - row_lse[here, None]).exp_()
        if col_lse is not None and col_weight is not None:
            g += (block.logits - col_lse[None, :]).exp_().mul_(col_weight[None, :])
        block.leave_out(g, 0.0, exclude_positives=exclude_positives)
        block.add_at_positives(g, row_positive_weight, col_positive_weight)
        d_cosine = (g.to(columns.dtype) @ columns).to(accumulator(q))
        radial[here] = (d_cosine * rows[here]).sum(1)
        dq[here] = through_normalize(d_cosine.mul_(s), q[here], normalize).to(q.dtype)
    return dq, radial.sum()


nt_xent = partial(composed.nt_xent, pairwise_logsumexp, pairwise_logsumexp_grad)
clip = partial(composed.clip, pairwise_logsumexp, pairwise_logsumexp_grad)
info_nce = partial(composed.info_nce, pairwise_logsumexp, pairwise_logsumexp_grad)
weighted = partial(composed.weighted, pairwise_logsumexp, pairwise_logsumexp_grad)


def siglip(
    x: Tensor,  # [M, D]
    y: Tensor,  # [N, D]
    logit_scale: Tensor | None,  # []
    logit_bias: Tensor | None,  # []
    *,
    scale: float,
    bias: float,
    normalize: bool,
    row_offset: int,
    columns: bool,
    weight: float,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See ``reference.siglip``."""
    rows, _ = _operands(x, None, normalize)
    texts, _ = _operands(y, None, normalize)
    s = scale if logit_scale is None else scale * logit_scale
    full_bias = bias if logit_bias is None else bias + logit_bias
    loss, d_scale, d_bias = (x.new_zeros((), dtype=accumulator(x)) for _ in range(3))
    both = gradient and columns
    dx, dy = x.new_empty(x.shape if gradient else (0,)), y.new_empty((0,))
    d_columns = y.new_zeros(y.shape if both else (0,), dtype=accumulator(y))
    for block in _blocks(rows, texts, s, "diagonal", None, None, False, row_offset, 0, row_step=1):
        assert isinstance(block.match, _OneColumn)
        logits = block.logits.add_(full_bias)
        of_match = logits.gather(1, block.match.column)
        losses = F.logsigmoid(-logits)
        block.match.put(losses, F.logsigmoid(of_match))
        loss -= losses.sum()
        if not gradient:
            continue
        here = slice(block.start, block.stop)
        g = logits.sigmoid_()
        block.match.put(g, -(-of_match).sigmoid())
        d_bias += g.sum()
        g = (g * weight).to(texts.dtype)
        d_cosine = (g @ texts).to(accumulator(x))
        d_scale += (d_cosine * rows[here]).sum()
        dx[here] = through_normalize(d_cosine.mul_(s), x[here], normalize).to(x.dtype)
        if both:
            d_columns += g.T @ rows[here]
    if both:
        dy = through_normalize(d_columns.mul_(s), y, normalize).to(y.dtype)
    return loss * weight, dx, dy, d_scale, d_bias * weight


def _operands(q: Tensor, k: Tensor | None, normalize: bool) -> tuple[Tensor, Tensor]:
    def operand(x: Tensor) -> Tensor:
        rows = unit_rows(x, normalize)
        return rows.float() if rows.dtype == torch.float16 else rows  # a product in float16 overflows at 65504

    rows = operand(q)
    return rows, rows if k is None else operand(k)
