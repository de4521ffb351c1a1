"""Pairwise log-sum-exp on the CPU: tensors in, addresses to the compiled kernels, tensors out.

The kernels form each tile of similarities in registers and turn it into sums, or into a block of the gradient, before
the next one: memory is O((M + N) D). See ``csrc/cpu/pairwise/forward.h``, and ``grad.h`` and ``sigmoid.h`` there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..cpp import DTYPES, address, allow_bfloat16_product, kernels, unsupported_reason
from ..layout import contiguous, unit_stride
from ..precision import accumulator
from . import composed

__all__ = [
    "clip", "info_nce", "nt_xent", "pairwise_logsumexp", "pairwise_logsumexp_grad", "siglip", "unsupported_reason",
    "weighted",
]  # fmt: skip

# The numbers of the enum in csrc/cpu/pairwise/pairwise.h.
_POSITIVES = {"none": 0, "diagonal": 1, "pair": 2, "key": 3, "index": 4}


def pairwise_logsumexp(
    q: Tensor,  # [M, D]
    k: Tensor | None,  # [N, D], None: the columns are q
    logit_scale: Tensor | None,  # [], multiplies scale
    *,
    row_key: Tensor | None,  # [M]
    col_key: Tensor | None,  # [N]
    row_offset: int,
    col_offset: int,
    **rules: Any,
) -> tuple[Tensor, Tensor]:
    """Log-sum [M] and sum of the positive logits [M] of every row, as ``reference.pairwise_logsumexp`` defines them."""
    row_lse = torch.empty(q.shape[0], dtype=accumulator(q))
    positive = torch.empty_like(row_lse)
    q, k = unit_stride(q), None if k is None else unit_stride(k)
    row_key, col_key = contiguous(row_key), contiguous(col_key)
    problem = _problem(q, k, logit_scale, row_key, col_key, row_offset, col_offset, row_step=1, **rules)
    kernels().pairwise_logsumexp(
        problem,
        allow_bfloat16_product=allow_bfloat16_product(),
        row_lse=row_lse.data_ptr(),
        positive=positive.data_ptr(),
    )
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
    row_key: Tensor | None,
    col_key: Tensor | None,
    row_offset: int,
    col_offset: int,
    row_step: int,
    **rules: Any,
) -> tuple[Tensor, Tensor]:
    """Gradient for the rows [M, D] and the derivative with respect to the full scale []."""
    dq = torch.empty(q.shape, dtype=q.dtype)
    d_scale = torch.empty((), dtype=accumulator(q))
    q, k = unit_stride(q), None if k is None else unit_stride(k)
    row_key, col_key = contiguous(row_key), contiguous(col_key)
    of_rows = [contiguous(vector) for vector in (row_lse, row_weight, row_positive_weight)]
    of_columns = [contiguous(vector) for vector in (col_lse, col_weight, col_positive_weight)]
    problem = _problem(q, k, logit_scale, row_key, col_key, row_offset, col_offset, row_step, **rules)
    kernels().pairwise_logsumexp_grad(
        problem,
        allow_bfloat16_product=allow_bfloat16_product(),
        row_lse=address(of_rows[0]),
        row_weight=address(of_rows[1]),
        row_positive_weight=address(of_rows[2]),
        col_lse=address(of_columns[0]),
        col_weight=address(of_columns[1]),
        col_positive_weight=address(of_columns[2]),
        dq=dq.data_ptr(),
        dscale=d_scale.data_ptr(),
    )
    return dq, d_scale


def nt_xent(
    z0: Tensor,  # [N, D]
    z1: Tensor,  # [N, D]
    logit_scale: Tensor | None,  # []
    *,
    scale: float,
    normalize: bool,
    weight: float,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``composed.nt_xent``; one kernel, to which the views are the even and the odd rows of one matrix."""
    return _loss_of_both(
        kernels().pairwise_loss, z0, z1, logit_scale, True, gradient, scale=scale, normalize=normalize,
        positives="pair", exclude_self=True, weight=weight,
    )  # fmt: skip


def clip(
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
    """See ``composed.clip``; one kernel, whose products serve both directions."""
    return _loss_of_both(
        kernels().pairwise_loss, x, y, logit_scale, False, gradient, scale=scale, normalize=normalize,
        positives="diagonal", weight=weight, columns=columns,
    )  # fmt: skip


def weighted(
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
    """See ``composed.weighted``; one kernel."""
    loss = torch.empty((), dtype=accumulator(z))
    d_scale = torch.empty_like(loss) if gradient else torch.zeros_like(loss)
    dz = z.new_empty(z.shape if gradient else (0,))
    z, key = unit_stride(z), contiguous(key)
    weights = [contiguous(vector) for vector in (row_weight, positive_weight)]
    problem = _problem(
        z, None, logit_scale, key, key, 0, 0, row_step=1, scale=scale, normalize=normalize, positives=positives,
        exclude_self=True, exclude_positives=exclude_positives,
    )  # fmt: skip
    kernels().pairwise_loss(
        problem,
        allow_bfloat16_product=allow_bfloat16_product(),
        row_weight=address(weights[0]),
        positive_weight=address(weights[1]),
        loss=loss.data_ptr(),
        dq=dz.data_ptr() if gradient else 0,
        dq_other=0,
        dscale=d_scale.data_ptr() if gradient else 0,
    )
    return loss, dz, d_scale


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
    """See ``composed.siglip``; one pass over the pairs."""
    full_bias = bias if logit_bias is None else bias + float(logit_bias)
    d_bias = torch.zeros((), dtype=accumulator(x))
    results = _loss_of_both(
        partial(kernels().pairwise_sigmoid, bias=full_bias, dbias=d_bias.data_ptr() if gradient else 0),
        x, y, logit_scale, False, gradient, scale=scale, normalize=normalize, positives="diagonal",
        row_offset=row_offset, weight=weight, columns=columns,
    )  # fmt: skip
    return *results, d_bias


def _loss_of_both(
    kernel: Callable[..., None],
    x: Tensor,
    y: Tensor,
    logit_scale: Tensor | None,
    among_themselves: bool,
    gradient: bool,
    *,
    weight: float,
    columns: bool = True,
    row_offset: int = 0,
    exclude_self: bool = False,
    **rules: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, the gradients for both sets of rows, and the derivative by the full scale, from one kernel.

    Rows among themselves are those of x and y in turns; otherwise x's are the rows and y's the columns, which without
    ``columns`` get no gradient.
    """
    loss = torch.empty((), dtype=accumulator(x))
    d_scale = torch.empty_like(loss) if gradient else torch.zeros_like(loss)
    both = gradient and columns
    dx, dy = x.new_empty(x.shape if gradient else (0,)), y.new_empty(y.shape if both else (0,))
    x, y = unit_stride(x), unit_stride(y)
    problem = _problem(
        x, None if among_themselves else y, logit_scale, None, None, row_offset, 0, row_step=1,
        q_other=y if among_themselves else None, exclude_self=exclude_self, exclude_positives=False, **rules,
    )  # fmt: skip
    kernel(
        problem,
        allow_bfloat16_product=allow_bfloat16_product(),
        weight=weight,
        loss=loss.data_ptr(),
        dq=dx.data_ptr() if gradient else 0,
        dq_other=dy.data_ptr() if both else 0,
        dscale=d_scale.data_ptr() if gradient else 0,
    )
    return loss, dx, dy, d_scale


def info_nce(
    q: Tensor,  # [M, D]
    k: Tensor,  # [N, D]
    positive: Tensor | None,  # [M, D]
    index: Tensor | None,  # [M]
    logit_scale: Tensor | None,  # []
    *,
    scale: float,
    normalize: bool,
    row_offset: int,
    weight: float,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``composed.info_nce``; one pass over the columns, where no running maximum is needed."""
    full = scale if logit_scale is None else scale * float(logit_scale)
    if not (gradient and normalize and abs(full) <= kernels().FIXED_SHIFT_LIMIT):  # NaN neither
        return composed.info_nce(
            pairwise_logsumexp, pairwise_logsumexp_grad, q, k, positive, index, logit_scale, scale=scale,
            normalize=normalize, row_offset=row_offset, weight=weight, gradient=gradient,
        )  # fmt: skip
    losses, d_scale = (torch.empty(shape, dtype=accumulator(q)) for shape in (q.shape[:1], ()))
    dq = torch.empty(q.shape, dtype=q.dtype)
    q, k, index = unit_stride(q), unit_stride(k), contiguous(index)
    positives = composed.Positives.of(q, k, positive, index, row_offset)
    positive = unit_stride(positives.rows)
    problem = _problem(
        q, k, None, index, None, row_offset, 0, row_step=1, scale=full, normalize=True, positives=positives.rule,
        exclude_self=False, exclude_positives=positives.among,
    )  # fmt: skip
    kernels().pairwise_bank(
        problem,
        allow_bfloat16_product=allow_bfloat16_product(),
        positive=positive.data_ptr(),
        positive_stride=positive.stride(0),
        weight=weight,
        loss=losses.data_ptr(),
        dq=dq.data_ptr(),
        dscale=d_scale.data_ptr(),
    )
    return weight * losses.sum(), dq, d_scale


def _problem(
    q: Tensor,
    k: Tensor | None,
    logit_scale: Tensor | None,
    row_key: Tensor | None,
    col_key: Tensor | None,
    row_offset: int,
    col_offset: int,
    row_step: int,
    *,
    scale: float,
    normalize: bool,
    positives: str,
    exclude_self: bool,
    exclude_positives: bool,
    q_other: Tensor | None = None,  # rows that alternate with q's
) -> Any:
    """The arguments that all kernels share. It holds addresses: the tensors must outlive it."""
    columns = q if k is None else k
    views = 1 if q_other is None else 2
    return kernels().PairwiseProblem(
        q=q.data_ptr(),
        k=address(k),
        rows=views * q.shape[0],
        cols=views * columns.shape[0],
        dim=q.shape[1],
        q_stride=q.stride(0),
        k_stride=columns.stride(0),
        q_other=address(q_other),
        q_other_stride=0 if q_other is None else q_other.stride(0),
        dtype=DTYPES[q.dtype],
        scale=scale if logit_scale is None else scale * float(logit_scale),  # a CPU tensor: no device is waited for
        normalize=normalize,
        positives=_POSITIVES[positives],
        row_key=address(row_key),
        col_key=address(col_key),
        exclude_self=exclude_self,
        exclude_positives=exclude_positives,
        row_offset=row_offset,
        col_offset=col_offset,
        row_step=row_step,
        threads=torch.get_num_threads(),
    )
