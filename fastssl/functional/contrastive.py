"""Contrastive losses, from one primitive: the log-sum-exp over pairwise similarities.

Under autocast, embeddings are cast to the autocast dtype as a matrix product would be; losses come out as float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from .. import backends, distributed, ops  # noqa: F401 - ops registers the operators
from ..ops import checks
from ..ops.precision import widened
from . import ring
from .precision import autocast
from .ring import Exchange

Reduction = Literal["mean", "sum", "none"]


def nt_xent(
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    normalize: bool = True,
    reduction: Reduction = "mean",
    group: dist.ProcessGroup | None = None,
    exchange: Exchange = "gather",
) -> Tensor:
    r"""Normalised temperature-scaled cross-entropy between two views (SimCLR), without the 2N x 2N matrix.

    With z the 2N rows of both views and s_ij = z_i . z_j / temperature, every row's loss is
    ``-s_{i, other view} + log sum_{j != i} exp(s_ij)``: equation 1 of Chen et al., "A Simple Framework for Contrastive
    Learning of Visual Representations", 2020. Memory is O(N D) in both directions.

    Args:
        z0: embeddings of the first view, [N, D], float32, bfloat16, float16 or float64, any strides.
        z1: embeddings of the second view, same shape, dtype and device; row n shows the same image as row n of z0.
        temperature: above 0; or a tensor with one element, which then may receive a gradient and whose value is not
            checked.
        normalize: divide rows by their length, so that s is a cosine over the temperature.
        reduction: "mean" over the 2N rows, "sum", or "none": the losses [2N], rows of z0 first.
        group: process group over which negatives are gathered: rows of this rank against the rows of all ranks. The
            mean is over this rank's rows, and gradients averaged over ranks (as DDP does) equal those of one process
            on the global batch. Every rank must have the same N.
        exchange: how the ranks of ``group`` see each other's rows: "gather" holds all of them, "ring" passes them on
            block by block while it computes, so that memory does not grow with the ranks; ``torch.compile`` leaves it
            out of its graph.

    Returns:
        float32 (float64 for float64 input): [] or [2N].

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.

    Example:
        >>> loss = nt_xent(projector(view0), projector(view1), temperature=0.1)
    """
    name = "nt_xent"
    z0, z1 = paired(name, ("z0", z0), ("z1", z1), reduction, group)
    rings = ring.in_ring(name, exchange, group)
    scale, logit_scale = inverse_temperature(name, temperature, z0)
    gradient, at_once = in_one_call((z0, z1), logit_scale, reduction, group)
    if at_once:
        weight = 1.0 if reduction == "sum" else 0.5 / z0.shape[0]
        loss, *_ = torch.ops.fastssl.nt_xent(
            z0, z1, logit_scale, scale=scale, normalize=normalize, weight=weight, gradient=gradient,
            backend=backends.forced(),
        )  # fmt: skip
        return loss
    log_sum, positive = logsumexp_of_views(
        name, z0, z1, logit_scale, scale=scale, normalize=normalize, exclude_positives=False, group=group,
        rings=rings,
    )  # fmt: skip
    return reduced_of_views(log_sum - positive, reduction)


def pairwise_logsumexp(
    q: Tensor,
    k: Tensor | None = None,
    logit_scale: Tensor | None = None,
    *,
    scale: float = 1.0,
    normalize: bool = False,
    positives: Literal["none", "diagonal", "pair", "key"] = "none",
    row_key: Tensor | None = None,
    col_key: Tensor | None = None,
    exclude_self: bool = False,
    exclude_positives: bool = False,
    row_offset: int = 0,
    col_offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over each row of the similarities s q k^T, and the sum of each row's positive logits.

    The primitive under every contrastive loss: InfoNCE is ``(log_sum - positive).mean()``. The M x N matrix never
    exists; memory is O((M + N) D). With I = row_offset + i and J = col_offset + j the places of a row and a column
    in a larger problem, a pair (i, j) is a positive

    * ``"diagonal"``: when J = I (row i of one set belongs to row i of the other);
    * ``"pair"``: when J = I ^ 1 (two views of an image stand next to each other);
    * ``"key"``: when row_key[i] == col_key[j] (labels, or an index of the positive).

    Args:
        q: rows, [M, D], float32, bfloat16, float16 or float64, any strides.
        k: columns, [N, D], same dtype and device; None: the rows themselves.
        logit_scale: tensor with one element that multiplies ``scale``, e.g. a learnable inverse temperature.
        scale: s, above 0.
        normalize: divide rows and columns by their length first.
        positives: the rule above.
        row_key: int64 [M], for "key".
        col_key: int64 [N], for "key"; not given when k is None.
        exclude_self: pairs with J = I are neither in the sum nor positives.
        exclude_positives: positives are left out of the log-sum (decoupled losses).
        row_offset: place of the first row.
        col_offset: place of the first column; 0 when k is None.

    Returns:
        log-sums [M] (minus infinity for an empty sum) and sums of positive logits [M] (0 without one), float32
        (float64 for float64 input); gradients reach q, k and logit_scale.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    name = "pairwise_logsumexp"  # the operator itself checks q, k, positives and keys
    checks.check_tensor(name, "q", q, ndim=2, layout="[M, D]")
    if k is None and col_offset != row_offset:
        raise ValueError(
            f"{name}: without k the columns are the rows, so col_offset must equal row_offset, "
            f"got {col_offset} and {row_offset}"
        )
    if k is not None:
        checks.check_tensor(name, "k", k, ndim=2, layout="[N, D]")
        k = autocast(k)
    q = autocast(q)
    if logit_scale is not None:
        logit_scale = checks.check_scalar_tensor(name, "logit_scale", logit_scale, device=q.device)
    scale = checks.check_positive_number(name, "scale", scale)
    for key_name, key, wanted in (("row_key", row_key, True), ("col_key", col_key, k is not None)):
        if key is not None and not (positives == "key" and wanted):
            raise ValueError(f'{name}: {key_name} is only for positives="key" with such rows, got a tensor')
    return torch.ops.fastssl.pairwise_logsumexp(
        q, k, logit_scale, row_key, row_key if k is None else col_key, scale=scale, normalize=normalize,
        positives=positives, exclude_self=exclude_self, exclude_positives=exclude_positives,
        row_offset=row_offset, col_offset=col_offset, shared_by="", first_row=0, row_stride=1,
        backend=backends.forced(),
    )  # fmt: skip


# What the losses of this family share


def paired(
    name: str,
    first: tuple[str, Tensor],
    second: tuple[str, Tensor],
    reduction: Reduction,
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor]:
    """Rows [N, D] of two sets that belong together, as autocast wants them; checked, with what else all losses take."""
    for argument, tensor in (first, second):
        checks.check_tensor(name, argument, tensor, ndim=2, layout="[N, D]")
    for attribute in ("shape", "device"):
        checks.check_same(name, attribute, first, second)
    a, b = autocast(first[1]), autocast(second[1])
    checks.check_same(name, "dtype", (first[0], a), (second[0], b))
    checks.check_choice(name, "reduction", reduction, ("mean", "sum", "none"))
    checks.check_group(name, group)
    return a, b


def in_one_call(
    rows: tuple[Tensor, ...],
    logit_scale: Tensor | None,
    reduction: Reduction,
    group: dist.ProcessGroup | None,
    *,
    serves_one_side: bool = False,
) -> tuple[bool, bool]:
    """Whether a gradient is wanted, and whether the operator serves that gives it with the loss.

    serves_one_side: whether it is the better way too where only some of the rows want a gradient.
    """
    differentiable = rows if logit_scale is None else (*rows, logit_scale)
    gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in differentiable)
    one_is_frozen = gradient and not serves_one_side and rows[0].requires_grad != rows[-1].requires_grad
    rounded_too_early = gradient and rows[0].dtype == torch.float16  # before a loss scaler multiplies it
    exporting = torch.compiler.is_exporting()  # what will require a gradient then is not known now
    alone = group is None or group.size() == 1
    return gradient, alone and reduction != "none" and not (one_is_frozen or rounded_too_early or exporting)


def weighted_loss(
    z: Tensor,
    key: Tensor | None,
    row_weight: Tensor,
    positive_weight: Tensor,
    logit_scale: Tensor | None,
    gradient: bool,
    **rules: Any,
) -> Tensor:
    """sum_i row_weight_i log-sum_i - positive_weight_i positive_i over rows among themselves, in one call, []."""
    loss, *_ = torch.ops.fastssl.weighted(
        z, key, row_weight, -positive_weight, logit_scale, gradient=gradient, backend=backends.forced(), **rules
    )
    return loss


def logsumexp_of_views(
    name: str,
    z0: Tensor,
    z1: Tensor,
    logit_scale: Tensor | None,
    *,
    scale: float,
    normalize: bool,
    exclude_positives: bool,
    group: dist.ProcessGroup | None,
    rings: bool,
) -> tuple[Tensor, Tensor]:
    """Log-sums and positive logits of both views' rows [2N], over all rows but their own.

    Interleaved, the two views of an image are neighbours: positives lie next to the diagonal, where kernels look for
    them, and a rank's rows are one contiguous range of the global batch.
    """
    n, d = z0.shape
    z = torch.stack((z0, z1), dim=1).reshape(2 * n, d)
    if group is not None and rings:
        return ring.pairwise_logsumexp(
            z, None, logit_scale, caller=(name, "z0 and z1"), group=group, scale=scale, normalize=normalize,
            positives="pair", exclude_self=True, exclude_positives=exclude_positives,
        )  # fmt: skip
    first_row, row_stride = 0, 1
    if torch.is_grad_enabled() and z0.requires_grad != z1.requires_grad:  # no work for the frozen one
        first_row, row_stride = (0, 2) if z0.requires_grad else (1, 2)
    columns, shared_by, row_offset = None, "", 0
    if group is not None and group.size() > 1:
        distributed.check_same_shape(name, "z0", z0, group)
        shared_by, row_offset = group.group_name, 2 * n * group.rank()
        columns = distributed.all_gather_rows(z.detach(), shared_by)
    return torch.ops.fastssl.pairwise_logsumexp(
        z, columns, logit_scale, None, None, scale=scale, normalize=normalize, positives="pair", exclude_self=True,
        exclude_positives=exclude_positives, row_offset=row_offset, col_offset=0, shared_by=shared_by,
        first_row=first_row, row_stride=row_stride, backend=backends.forced(),
    )  # fmt: skip


def reduced_of_views(losses: Tensor, reduction: Reduction) -> Tensor:
    """As ``reduced``, of what ``logsumexp_of_views`` gives: where losses are wanted, the first view's come first."""
    return losses.view(-1, 2).T.reshape(-1) if reduction == "none" else reduced(losses, reduction)


def reduced(losses: Tensor, reduction: Reduction) -> Tensor:
    """Mean or sum of the rows' losses, or the losses."""
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


def wanted_first(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Two sets of rows that a loss treats alike, one of which may be frozen: that comes last, and is told of."""
    if y.requires_grad and not x.requires_grad:
        x, y = y, x
    return x, y, y.requires_grad


def number_or_tensor(
    function: str,
    name: str,
    value: float | Tensor,
    like: Tensor,
    check: Callable[[str, str, Any], float],
    neutral: float,
) -> tuple[float, Tensor | None]:
    """A number that a model may learn: as a number, checked, or as the neutral one and the tensor []."""
    if isinstance(value, Tensor):
        return neutral, checks.check_scalar_tensor(function, name, value, device=like.device)
    return check(function, name, value), None


def inverse_temperature(function: str, temperature: float | Tensor, like: Tensor) -> tuple[float, Tensor | None]:
    if isinstance(temperature, Tensor):
        tensor = checks.check_scalar_tensor(function, "temperature", temperature, device=like.device)
        return 1.0, widened(tensor).reciprocal()  # 1 / 0.07 in bfloat16 is off by 0.4 %
    return checks.check_temperature(function, "temperature", temperature), None
