"""Pairwise log-sum-exp in plain PyTorch: the definition.

Every matrix is stored and every rule is a boolean matrix. It is what the kernels are tested against (in float64) and
what the benchmarks call "eager"; nothing else uses it.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import widened
from . import composed
from .composed import through_normalize


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    return None


def pairwise_logsumexp(
    q: Tensor,  # [M, D]
    k: Tensor | None,  # [N, D], None: the columns are q
    logit_scale: Tensor | None,  # [], multiplies scale
    *,
    scale: float,
    normalize: bool,
    positives: str,
    row_key: Tensor | None,  # [M]
    col_key: Tensor | None,  # [N]
    exclude_self: bool,
    exclude_positives: bool,
    row_offset: int,
    col_offset: int,
) -> tuple[Tensor, Tensor]:
    """Log-sum [M] and sum of the positive logits [M] of every row."""
    k = q if k is None else k
    rows, columns = unit_rows(q, normalize), unit_rows(k, normalize)
    logits = widened(rows @ columns.T) * _full_scale(scale, logit_scale)  # [M, N]
    matched, excluded = _rules(q, k, positives, row_key, col_key, exclude_self, row_offset, col_offset, row_step=1)
    left_out = excluded | matched if exclude_positives else excluded
    row_lse = logits.masked_fill(left_out, -torch.inf).logsumexp(1)
    positive = torch.where(matched, logits, 0.0).sum(1)
    return row_lse, positive


def pairwise_logsumexp_grad(
    q: Tensor,  # [M, D]
    k: Tensor | None,  # [N, D]
    logit_scale: Tensor | None,  # []
    row_lse: Tensor | None,  # [M]
    row_weight: Tensor | None,  # [M], dL/d row_lse
    row_positive_weight: Tensor | None,  # [M], dL/d positive
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
    """Gradient for the rows [M, D], and the derivative with respect to the full scale []."""
    if k is None:  # symmetric: what is true of a row is true of the column with its number
        k = q
        if col_lse is None and col_positive_weight is None:
            col_lse, col_weight, col_positive_weight = row_lse, row_weight, row_positive_weight
    s = _full_scale(scale, logit_scale)
    rows, columns = unit_rows(q, normalize), unit_rows(k, normalize)
    cosine = widened(rows @ columns.T)  # [M, N]
    logits = s * cosine
    matched, excluded = _rules(q, k, positives, row_key, col_key, exclude_self, row_offset, col_offset, row_step)
    left_out = excluded | matched if exclude_positives else excluded
    g = torch.zeros_like(logits)  # dL/d logits
    if row_lse is not None and row_weight is not None:
        g += (row_weight[:, None] * (logits - row_lse[:, None]).exp()).masked_fill(left_out, 0.0)
    if col_lse is not None and col_weight is not None:
        g += (col_weight[None, :] * (logits - col_lse[None, :]).exp()).masked_fill(left_out, 0.0)
    if row_positive_weight is not None:
        g += matched * row_positive_weight[:, None]
    if col_positive_weight is not None:
        g += matched * col_positive_weight[None, :]
    d_rows = s * widened(g.to(columns.dtype) @ columns)
    dq = through_normalize(d_rows, q, normalize)
    return dq.to(q.dtype), (g * cosine).sum()


nt_xent = partial(composed.nt_xent, pairwise_logsumexp, pairwise_logsumexp_grad)
clip = partial(composed.clip, pairwise_logsumexp, pairwise_logsumexp_grad)
info_nce = partial(composed.info_nce, pairwise_logsumexp, pairwise_logsumexp_grad)
weighted = partial(composed.weighted, pairwise_logsumexp, pairwise_logsumexp_grad)


def siglip(
    x: Tensor,  # [M, D]
    y: Tensor,  # [N, D]
    logit_scale: Tensor | None,  # [], multiplies scale
    logit_bias: Tensor | None,  # [], is added to bias
    *,
    scale: float,
    bias: float,
    normalize: bool,
    row_offset: int,
    columns: bool,
    weight: float,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss [], its gradients [M, D] and [N, D], and the derivatives with respect to full scale and full bias, [].

    Without ``columns``, the gradient for y is empty; without ``gradient``, only the loss means anything.
    """
    s = _full_scale(scale, logit_scale)
    rows, texts = unit_rows(x, normalize), unit_rows(y, normalize)
    cosine = widened(rows @ texts.T)  # [M, N]
    logits = s * cosine + (bias if logit_bias is None else bias + logit_bias)
    matched, _ = _rules(x, y, "diagonal", None, None, False, row_offset, 0, row_step=1)
    loss = -weight * F.logsigmoid(torch.where(matched, logits, -logits)).sum()
    if not gradient:
        nothing = x.new_empty((0,))
        return loss, nothing, torch.empty_like(nothing), torch.zeros_like(loss), torch.zeros_like(loss)
    g = weight * torch.where(matched, -(-logits).sigmoid(), logits.sigmoid())
    dx = through_normalize(s * widened(g.to(texts.dtype) @ texts), x, normalize)
    dy = y.new_empty((0,))
    if columns:
        dy = through_normalize(s * widened(g.T.to(rows.dtype) @ rows), y, normalize)
    return loss, dx.to(x.dtype), dy.to(y.dtype), (g * cosine).sum(), g.sum()


def unit_rows(x: Tensor, normalize: bool) -> Tensor:
    """Rows of length 1 in x's dtype, rounded once: in float16 itself a row of zeros would become NaN."""
    return F.normalize(widened(x), dim=1).to(x.dtype) if normalize else x


def _full_scale(scale: float, logit_scale: Tensor | None) -> float | Tensor:
    return scale if logit_scale is None else scale * logit_scale


def _rules(
    q: Tensor,
    k: Tensor,
    positives: str,
    row_key: Tensor | None,
    col_key: Tensor | None,
    exclude_self: bool,
    row_offset: int,
    col_offset: int,
    row_step: int,
) -> tuple[Tensor, Tensor]:
    """Which pairs are positives, and which are in nothing: two boolean matrices [M, N]."""
    row = (row_offset + row_step * torch.arange(q.shape[0], device=q.device))[:, None]
    column = (col_offset + torch.arange(k.shape[0], device=q.device))[None, :]
    same = row == column
    excluded = same if exclude_self else torch.zeros_like(same)
    if positives == "none":
        matched = torch.zeros_like(same)
    elif positives == "diagonal":
        matched = same
    elif positives == "pair":
        matched = (row ^ 1) == column
    else:
        assert row_key is not None and col_key is not None
        matched = row_key[:, None] == col_key[None, :]
    return matched & ~excluded, excluded
