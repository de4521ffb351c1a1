"""Losses with their gradients from a backend's two pairwise functions, for backends without a kernel for both."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import widened


def nt_xent(
    logsumexp: Callable[..., tuple[Tensor, Tensor]],
    logsumexp_grad: Callable[..., tuple[Tensor, Tensor]],
    z0: Tensor,  # [N, D]
    z1: Tensor,  # [N, D]
    logit_scale: Tensor | None,  # []
    *,
    scale: float,
    normalize: bool,
    weight: float,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss [], its gradients for both views [N, D], and the derivative with respect to the full scale [].

    Without ``gradient``, only the loss means anything.
    """
    n, d = z0.shape
    z = torch.stack((z0, z1), dim=1).reshape(2 * n, d)
    rules = {
        "scale": scale, "normalize": normalize, "positives": "pair", "row_key": None, "col_key": None,
        "exclude_self": True, "exclude_positives": False, "row_offset": 0, "col_offset": 0,
    }  # fmt: skip
    log_sum, positive = logsumexp(z, None, logit_scale, **rules)
    loss = weight * (log_sum - positive).sum()
    if not gradient:
        nothing = z0.new_empty((0,))
        return loss, nothing, torch.empty_like(nothing), torch.zeros_like(loss)
    weights = torch.full_like(log_sum, weight)
    dz, d_scale = logsumexp_grad(
        z, None, logit_scale, log_sum, weights, -weights, None, None, None, row_step=1, **rules
    )
    dz0, dz1 = (view.contiguous() for view in dz.view(n, 2, d).unbind(1))
    return loss, dz0, dz1, 0.5 * d_scale  # as a row and as a column: counted twice


def clip(
    logsumexp: Callable[..., tuple[Tensor, Tensor]],
    logsumexp_grad: Callable[..., tuple[Tensor, Tensor]],
    x: Tensor,  # [N, D]
    y: Tensor,  # [N, D]
    logit_scale: Tensor | None,  # []
    *,
    scale: float,
    normalize: bool,
    columns: bool,
    weight: float,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss [] of both directions, its gradients [N, D], and the derivative with respect to the full scale [].

    Without ``columns``, that for y is empty.
    """
    rules = {
        "scale": scale, "normalize": normalize, "positives": "diagonal", "row_key": None, "col_key": None,
        "exclude_self": False, "exclude_positives": False, "row_offset": 0, "col_offset": 0,
    }  # fmt: skip
    of_x, positive_x = logsumexp(x, y, logit_scale, **rules)
    of_y, positive_y = logsumexp(y, x, logit_scale, **rules)  # whose products may be rounded otherwise
    loss = weight * ((of_x - positive_x) + (of_y - positive_y)).sum()
    if not gradient:
        nothing = x.new_empty((0,))
        return loss, nothing, torch.empty_like(nothing), torch.zeros_like(loss)
    weights = torch.full_like(of_x, weight)
    row, column = (of_x, weights, -weights), (of_y, weights, -weights)
    dx, d_scale = logsumexp_grad(x, y, logit_scale, *row, *column, row_step=1, **rules)
    dy = y.new_empty((0,))
    if columns:
        dy, _ = logsumexp_grad(y, x, logit_scale, *column, *row, row_step=1, **rules)
    return loss, dx, dy, d_scale


def info_nce(
    logsumexp: Callable[..., tuple[Tensor, Tensor]],
    logsumexp_grad: Callable[..., tuple[Tensor, Tensor]],
    q: Tensor,  # [M, D]
    k: Tensor,  # [N, D]
    positive: Tensor | None,  # [M, D]; None: they stand among the columns, at `index` or from row_offset on
    index: Tensor | None,  # [M]
    logit_scale: Tensor | None,  # []
    *,
    scale: float,
    normalize: bool,
    row_offset: int,
    weight: float,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss [], its gradient for the rows [M, D], and the derivative with respect to the full scale [].

    Positives are left out of the products, wherever they stand, and added afterwards: at low loss the two terms of
    theirs nearly cancel, and roundings of a product in 16 bits would not.
    """
    positives = Positives.of(q, k, positive, index, row_offset)
    by_key = index is not None
    rules = {
        "scale": scale, "normalize": normalize, "positives": "key" if by_key else positives.rule, "row_key": index,
        "col_key": torch.arange(k.shape[0], device=k.device) if by_key else None, "exclude_self": False,
        "exclude_positives": positives.among, "row_offset": row_offset, "col_offset": 0,
    }  # fmt: skip
    s = scale if logit_scale is None else scale * logit_scale
    rows, own = (F.normalize(widened(x), dim=1) if normalize else widened(x) for x in (q, positives.rows))
    cosine = (rows * own).sum(1)
    logit = s * cosine
    in_sum = positives.in_sum(logit)
    log_sum = torch.logaddexp(logsumexp(q, k, logit_scale, **rules)[0], in_sum)
    loss = weight * (log_sum - logit).sum()
    if not gradient:
        return loss, q.new_empty((0,)), torch.zeros_like(loss)
    weights = torch.full_like(log_sum, weight)
    dq, d_scale = logsumexp_grad(q, k, logit_scale, log_sum, weights, None, None, None, None, row_step=1, **rules)
    of_positive = weight * torch.expm1(in_sum - log_sum)
    dq = widened(dq) + through_normalize((of_positive * s)[:, None] * own, q, normalize)
    return loss, dq.to(q.dtype), d_scale + (of_positive * cosine).sum()


def weighted(
    logsumexp: Callable[..., tuple[Tensor, Tensor]],
    logsumexp_grad: Callable[..., tuple[Tensor, Tensor]],
    z: Tensor,  # [M, D]
    key: Tensor | None,  # [M]
    row_weight: Tensor,  # [M]
    positive_weight: Tensor,  # [M]
    logit_scale: Tensor | None,  # []
    *,
    scale: float,
    normalize: bool,
    positives: str,
    exclude_positives: bool,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """sum_i row_weight_i log-sum_i + positive_weight_i positive_i [], of rows among themselves without their own pairs;
    its gradient [M, D], and its derivative with respect to the full scale [].

    A log-sum whose weight is 0 is not looked at: it may be minus infinity.
    """
    rules = {
        "scale": scale, "normalize": normalize, "positives": positives, "row_key": key, "col_key": key,
        "exclude_self": True, "exclude_positives": exclude_positives, "row_offset": 0, "col_offset": 0,
    }  # fmt: skip
    log_sum, positive = logsumexp(z, None, logit_scale, **rules)
    loss = (torch.where(row_weight == 0, 0.0, log_sum * row_weight) + positive * positive_weight).sum()
    if not gradient:
        return loss, z.new_empty((0,)), torch.zeros_like(loss)
    dz, d_scale = logsumexp_grad(
        z, None, logit_scale, log_sum, row_weight, positive_weight, None, None, None, row_step=1, **rules
    )
    return loss, dz, d_scale / 2  # every pair was counted as a row's and as a column's


class Positives(NamedTuple):
    """The positives of info_nce's rows.

    Attributes:
        rule: where they stand among the columns: "none" (nowhere), "diagonal" (from row_offset on) or "index".
        rows: [M, D], zeros for a row without one.
        exist: bool [M], which rows have one; None: all.
    """

    rule: str
    rows: Tensor
    exist: Tensor | None

    @staticmethod
    def rule_of(positive: Tensor | None, index: Tensor | None) -> str:
        if positive is not None:
            return "none"
        return "diagonal" if index is None else "index"

    @classmethod
    def of(cls, q: Tensor, k: Tensor, positive: Tensor | None, index: Tensor | None, row_offset: int) -> Positives:
        rule = cls.rule_of(positive, index)
        if positive is not None:
            return cls(rule, positive, None)
        if index is None:
            return cls(rule, k[row_offset : row_offset + q.shape[0]], None)
        exist = (index >= 0) & (index < k.shape[0])
        rows = k[index.clamp(0, k.shape[0] - 1)]
        return cls(rule, torch.where(exist[:, None], rows, torch.zeros_like(rows)), exist)

    @property
    def among(self) -> bool:
        """Whether they are columns."""
        return self.rule != "none"

    def in_sum(self, logit: Tensor) -> Tensor:
        """The logits [M] that they add to the log-sums."""
        return logit if self.exist is None else torch.where(self.exist, logit, -torch.inf)


def through_normalize(d_rows: Tensor, q: Tensor, normalize: bool) -> Tensor:
    """Gradient with respect to q [M, D] from the one with respect to the normalised rows, as ``F.normalize`` has it."""
    if not normalize:
        return d_rows
    wide = q.to(d_rows.dtype)
    norm = wide.norm(dim=1, keepdim=True)
    unit = wide / norm.clamp_min(1e-12)
    radial = torch.where(norm > 1e-12, (d_rows * unit).sum(1, keepdim=True), 0.0)
    return (d_rows - radial * unit) / norm.clamp_min(1e-12)
