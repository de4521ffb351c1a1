"""KoLeo, the regulariser that spreads embeddings over the sphere (DINOv2)."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .. import backends, distributed, ops  # noqa: F401 - ops registers the operators
from ..ops import checks
from ..ops.precision import widened
from .precision import without_autocast


def koleo(
    x: Tensor,
    *,
    top_k: int = 1,
    p: float = 2.0,
    eps: float = 1e-8,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""Minus the mean logarithm of each row's distance to its nearest other row, for rows of length 1.

    ``-mean_i log(|| x_i - x_nn(i) + eps ||_p + eps)``: the Kozachenko-Leonenko estimator of the differential entropy,
    equation 3 of Sablayrolles et al., "Spreading vectors for similarity search", 2019, as DINOv2 uses it and with the
    eps of ``torch.nn.PairwiseDistance``. The gradient reaches a row and its neighbour. Neighbours are found by inner
    product, without the N x N matrix. Everything is computed in float32 (float64 for float64), also under autocast.

    A row that equals its neighbour counts with its value, about ``-log(eps)``, and has no gradient: nothing says which
    way the two should part, and the derivative of the formula, 1 / eps in the direction of the eps, would drown all
    others (and is infinite in float16). Equal means that no element differs by more than two roundings.

    Args:
        x: embeddings, [N, D], float32, bfloat16, float16 or float64, any strides. Rows need not have length 1.
        top_k: nearest rows of each row that count, the mean over them; at most the number of other rows.
        p: degree of the norm, above 0.
        eps: added to differences, distances, and the least length by which a row is divided.
        group: process group among whose ranks' rows the neighbours are found. The mean is over this rank's rows, and
            gradients averaged over ranks (as DDP does) equal those of one process on the global batch. Every rank must
            have the same N.

    Returns:
        The loss, [], float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be; also for a single row, which has
            no neighbour.

    Example:
        >>> loss = loss + 0.1 * sum(koleo(class_tokens) for class_tokens in global_crops)
    """
    name = "koleo"
    checks.check_tensor(name, "x", x, ndim=2, layout="[N, D]")
    p = checks.check_positive_number(name, "p", p)
    eps = checks.check_positive_number(name, "eps", eps)
    checks.check_group(name, group)
    ranks = 1 if group is None else group.size()
    checks.check_int(name, "top_k", top_k)
    others = x.shape[0] * ranks - 1
    if not 1 <= top_k <= others:
        raise ValueError(
            f"{name}: top_k must be at least 1 and at most the number of other rows, {others}, got {top_k}"
        )
    if group is not None and ranks > 1:
        distributed.check_same_shape(name, "x", x, group)

    with without_autocast(x):
        rows = F.normalize(widened(x), dim=1, eps=eps)
        if group is None or ranks == 1:
            nearest = _nearest(rows, None, top_k, 0)
            return _terms(rows, _pick(rows, nearest), p, eps).mean()
        return _across_ranks(rows, top_k, p, eps, group)


def _across_ranks(rows: Tensor, top_k: int, p: float, eps: float, group: dist.ProcessGroup) -> Tensor:
    """The mean over this rank's rows [M, D], and the gradient that this rank's rows get from all ranks' terms.

    Rows and neighbours' indices travel in the forward pass; no gradient does. A term of another rank's row whose
    neighbour stands here is computed here once more, for this neighbour's gradient alone.
    """
    m = rows.shape[0]
    first = group.rank() * m
    all_rows = distributed.all_gather_rows(rows.detach(), group.group_name)  # [W M, D]
    nearest = _nearest(rows, all_rows, top_k, first)  # [M, top_k], places in all_rows
    here = _within(nearest, first, m)
    neighbors = torch.where(here[:, :, None], _pick(rows, _local(nearest, first, m)), _pick(all_rows, nearest))
    loss = _terms(rows, neighbors, p, eps).mean()
    if not torch.is_grad_enabled():
        return loss

    all_nearest = distributed.all_gather_rows(nearest, group.group_name)  # [W M, top_k]
    owner_is_other = ~_within(torch.arange(all_rows.shape[0], device=rows.device), first, m)
    counts = _within(all_nearest, first, m) & owner_is_other[:, None]
    terms = _terms(all_rows, _pick(rows, _local(all_nearest, first, m)), p, eps)
    of_others = torch.where(counts, terms, 0.0).sum() / (m * top_k)
    return loss + (of_others - of_others.detach())


def _nearest(rows: Tensor, columns: Tensor | None, count: int, row_offset: int) -> Tensor:
    return torch.ops.fastssl.nearest_neighbors(
        rows.detach(), columns, count=count, exclude_self=True, row_offset=row_offset, backend=backends.forced()
    )


def _pick(rows: Tensor, index: Tensor) -> Tensor:
    """rows[index], [M, top_k, D]. As an embedding: its backward adds up in a fixed order on every device."""
    return F.embedding(index, rows)


def _within(index: Tensor, first: int, count: int) -> Tensor:
    return (index >= first) & (index < first + count)


def _local(index: Tensor, first: int, count: int) -> Tensor:
    """Places among this rank's rows; any of them where the index lies on another rank."""
    return (index - first).clamp(0, count - 1)


def _terms(rows: Tensor, neighbors: Tensor, p: float, eps: float) -> Tensor:
    """Loss of every row [M, D] with each of its neighbours [M, top_k, D]: [M, top_k]."""
    difference = rows[:, None] - neighbors
    equal = difference.detach().abs().amax(2, keepdim=True) <= 2 * torch.finfo(rows.dtype).eps
    difference = torch.where(equal, difference.detach(), difference)
    return -(torch.linalg.vector_norm(difference + eps, ord=p, dim=2) + eps).log()
