"""The pairwise log-sum-exp operators: schemas, shapes, gradient.

``pairwise_logsumexp``
    for every row of q: the log-sum-exp of its scaled similarities to the columns, and the sum of its positive logits.
``pairwise_logsumexp_grad``
    the gradient for the rows, from log-sums that may come from elsewhere (other ranks, other blocks of columns).
``steps.py`` has losses with their gradients in one call.

NT-Xent, InfoNCE, SupCon, DCL and their relatives are a few lines on top (``fastssl.functional``). No M x N tensor
exists in either direction; ``reference.py`` holds the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import distributed
from .. import checks
from ..precision import accumulator
from ..registry import define, define_gradient, forbid_gradient

POSITIVES = ("none", "diagonal", "pair", "key")
_RULES = (
    "float scale, bool normalize, str positives, bool exclude_self, bool exclude_positives, "
    "SymInt row_offset, SymInt col_offset"
)


def _check(
    q: Tensor, k: Tensor | None, row_key: Tensor | None, col_key: Tensor | None, positives: str, **rules: Any
) -> None:
    columns = q if k is None else k
    checks.check_tensor("pairwise_logsumexp", "q", q, ndim=2, layout="[M, D]")
    if k is not None:
        checks.check_tensor("pairwise_logsumexp", "k", k, ndim=2, layout="[N, D]")
        for attribute in ("dtype", "device"):
            checks.check_same("pairwise_logsumexp", attribute, ("q", q), ("k", k))
        if q.shape[1] != k.shape[1]:
            raise ValueError(
                f"pairwise_logsumexp: q and k must have the same D, got shapes {tuple(q.shape)} and {tuple(k.shape)}"
            )
    checks.check_choice("pairwise_logsumexp", "positives", positives, POSITIVES)
    if positives == "key":
        checks.check_keys("pairwise_logsumexp", "row_key", row_key, length=q.shape[0], device=q.device)
        checks.check_keys("pairwise_logsumexp", "col_key", col_key, length=columns.shape[0], device=q.device)


def _check_grad(
    q: Tensor,
    k: Tensor | None,
    row_lse: Tensor | None,
    row_weight: Tensor | None,
    row_positive_weight: Tensor | None,
    col_lse: Tensor | None,
    col_weight: Tensor | None,
    col_positive_weight: Tensor | None,
    **rules: Any,
) -> None:
    _check(q, k, **rules)
    m, n = q.shape[0], (q if k is None else k).shape[0]
    for vectors, length in (
        ({"row_lse": row_lse, "row_weight": row_weight, "row_positive_weight": row_positive_weight}, m),
        ({"col_lse": col_lse, "col_weight": col_weight, "col_positive_weight": col_positive_weight}, n),
    ):
        for name, vector in vectors.items():
            if vector is None:
                continue
            if vector.shape != (length,) or vector.dtype != accumulator(q) or vector.device != q.device:
                raise ValueError(
                    f"pairwise_logsumexp_grad: {name} must be {accumulator(q)} of shape ({length},) on {q.device}, "
                    f"got {vector.dtype} of shape {tuple(vector.shape)} on {vector.device}"
                )


def _fake(q: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:
    row_lse = q.new_empty(q.shape[0], dtype=accumulator(q))
    return row_lse, torch.empty_like(row_lse)


def _fake_grad(q: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((), dtype=accumulator(q))


# `shared_by`: name of a process group whose ranks' rows, in rank order, are the columns; empty for one process.
# `first_row`, `row_stride`: only these rows' gradients are wanted (NT-Xent with one frozen view).
# Both matter to the gradient alone, but a gradient formula sees nothing except the forward's arguments.
define(
    f"pairwise_logsumexp(Tensor q, Tensor? k, Tensor? logit_scale, Tensor? row_key, Tensor? col_key, *, {_RULES}, "
    "str shared_by, int first_row, int row_stride, str backend) -> (Tensor, Tensor)",
    family=__package__,
    check=_check,
    fake=_fake,
    only_for_gradient=("shared_by", "first_row", "row_stride"),
)
define(
    "pairwise_logsumexp_grad(Tensor q, Tensor? k, Tensor? logit_scale, "
    "Tensor? row_lse, Tensor? row_weight, Tensor? row_positive_weight, "
    "Tensor? col_lse, Tensor? col_weight, Tensor? col_positive_weight, Tensor? row_key, Tensor? col_key, *, "
    f"{_RULES}, SymInt row_step, str backend) -> (Tensor, Tensor)",
    family=__package__,
    check=_check_grad,
    fake=_fake_grad,
)
forbid_gradient("pairwise_logsumexp_grad")


def _setup_context(ctx: Any, tensors: Sequence, keywords: dict[str, Any], outputs: tuple) -> None:
    rules = dict(keywords)
    ctx.shared_by = rules.pop("shared_by")
    ctx.first_row, ctx.row_stride = rules.pop("first_row"), rules.pop("row_stride")
    ctx.rules = rules
    ctx.save_for_backward(*tensors, outputs[0])


def _backward(ctx: Any, d_lse: Tensor, d_positive: Tensor) -> tuple[Tensor | None, ...]:
    q, k, logit_scale, row_key, col_key, row_lse = ctx.saved_tensors
    need_q, need_k, need_scale = ctx.needs_input_grad[:3]
    weights = d_lse.contiguous(), d_positive.contiguous() if ctx.rules["positives"] != "none" else None
    of_rows = (row_lse, *weights)
    dq = dk = d_scale = None
    if k is None or ctx.shared_by:
        dq, d_scale = _gradient_of_mutual_rows(ctx, q, k, logit_scale, row_key, col_key, of_rows)
    else:
        if need_q or need_scale:
            dq, d_scale = _gradient(q, k, logit_scale, *of_rows, *_ABSENT, row_key, col_key, row_step=1, **ctx.rules)
        if need_k:
            rules = {
                **ctx.rules,
                "row_offset": ctx.rules["col_offset"],
                "col_offset": ctx.rules["row_offset"],
            }
            dk, _ = _gradient(k, q, logit_scale, *_ABSENT, *of_rows, col_key, row_key, row_step=1, **rules)
    d_logit_scale = (d_scale * ctx.rules["scale"]).to(logit_scale.dtype) if need_scale else None
    return dq if need_q else None, dk, d_logit_scale, None, None


def _gradient_of_mutual_rows(
    ctx: Any,
    q: Tensor,  # [M, D]
    k: Tensor | None,  # [world_size * M, D] when the rows of a process group are the columns
    logit_scale: Tensor | None,
    row_key: Tensor | None,
    col_key: Tensor | None,
    of_rows: tuple[Tensor | None, ...],  # log-sums, their weights and the positives' weights, [M] each
) -> tuple[Tensor, Tensor | None]:
    """Gradient for rows that are columns too, through their own log-sums and through those of all other rows.

    One pass gives both halves, and between ranks only three vectors travel, no gradient.
    """
    of_columns: Sequence[Tensor | None] = _ABSENT
    if ctx.shared_by:
        of_columns = distributed.all_gather_vectors(of_rows, ctx.shared_by)
    if ctx.needs_input_grad[2] or ctx.row_stride == 1:
        dq, d_scale = _gradient(q, k, logit_scale, *of_rows, *of_columns, row_key, col_key, row_step=1, **ctx.rules)
        return dq, 0.5 * d_scale  # every logit was counted from its row and from its column
    wanted = slice(ctx.first_row, None, ctx.row_stride)
    some, _ = _gradient(
        q[wanted],
        q if k is None else k,
        logit_scale,
        *(None if vector is None else vector[wanted].contiguous() for vector in of_rows),
        *(of_rows if k is None else of_columns),
        None if row_key is None else row_key[wanted].contiguous(),
        col_key,
        row_step=ctx.row_stride,
        **{**ctx.rules, "row_offset": ctx.rules["row_offset"] + ctx.first_row},
    )
    dq = torch.zeros_like(q)
    dq[wanted] = some
    return dq, None


_ABSENT = (None, None, None)
_gradient = torch.ops.fastssl.pairwise_logsumexp_grad

define_gradient("pairwise_logsumexp", setup_context=_setup_context, backward=_backward)
