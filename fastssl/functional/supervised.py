"""The supervised contrastive loss: every row's positives are the rows with its label."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from .. import backends, distributed, ops  # noqa: F401 - ops registers the operators
from ..ops import checks
from ..ops.precision import widened
from . import ring
from .contrastive import Reduction, in_one_call, inverse_temperature, weighted_loss
from .precision import autocast
from .ring import Exchange


def sup_con(
    z: Tensor,
    labels: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    *,
    normalize: bool = True,
    reduction: Reduction = "mean",
    group: dist.ProcessGroup | None = None,
    exchange: Exchange = "gather",
) -> Tensor:
    r"""Supervised contrastive loss, without the matrix of similarities.

    Every row's loss is ``-1 / |P(i)| sum_{p in P(i)} s_ip + log sum_{j != i} exp(s_ij)``, P(i) the other rows with its
    label and s the cosines over the temperature: L_out of Khosla et al., "Supervised Contrastive Learning", 2020,
    equation 2. A row without a positive contributes nothing.

    Args:
        z: embeddings, [M, D], or of V views of each image, [N, V, D]; float32, bfloat16, float16 or float64.
        labels: int64, one per row of [M, D] or per image of [N, V, D]. None, with views: each image is its own class,
            which is NT-Xent for any number of views.
        temperature: above 0; or a tensor with one element, which then may receive a gradient and whose value is not
            checked.
        normalize: divide rows by their length, so that s is a cosine over the temperature.
        reduction: "mean" over the rows that have a positive (0 without one), "sum", or "none": the losses [M] (the
            views of an image next to each other), 0 where there is no positive.
        group: process group over which rows and labels are gathered. Gradients averaged over ranks (as DDP does) equal
            those of one process on the global batch, and so does the mean of the ranks' losses. Every rank must have
            the same number of rows.
        exchange: how the ranks of ``group`` see each other's rows: "gather" holds all of them, "ring" passes them on
            block by block while it computes, so that memory does not grow with the ranks; ``torch.compile`` leaves it
            out of its graph.

    Returns:
        float32 (float64 for float64 input): [] or [M].

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.

    Example:
        >>> loss = sup_con(torch.stack([z0, z1], 1), labels, temperature=0.1)
    """
    name = "sup_con"
    checks.check_is_tensor(name, "z", z, "[M, D] or [N, V, D]")
    if z.ndim == 3:
        views = z.shape[1]
        index = torch.arange(z.shape[0], device=z.device) if labels is None else labels
        checks.check_keys(name, "labels", index, length=z.shape[0], device=z.device)
        labels = index.repeat_interleave(views)
        z = z.flatten(0, 1)
    elif labels is None:
        raise ValueError(f"{name}: labels must be given for z [M, D], where nothing else says what belongs together")
    checks.check_tensor(name, "z", z, ndim=2, layout="[M, D] or [N, V, D]")
    checks.check_keys(name, "labels", labels, length=z.shape[0], device=z.device)
    z = autocast(z)
    checks.check_choice(name, "reduction", reduction, ("mean", "sum", "none"))
    scale, logit_scale = inverse_temperature(name, temperature, z)
    checks.check_group(name, group)
    rings = ring.in_ring(name, exchange, group)

    rules = {
        "scale": scale, "normalize": normalize, "positives": "key", "exclude_self": True, "exclude_positives": False,
    }  # fmt: skip
    keys, shared_by, offset = labels, "", 0
    if group is not None and group.size() > 1:
        distributed.check_same_shape(name, "z", z, group)
        shared_by, offset = group.group_name, z.shape[0] * group.rank()
        keys = distributed.all_gather_rows(labels, shared_by)
    count = positives_of(labels, keys)
    has_one = count > 0
    gradient, at_once = in_one_call((z,), logit_scale, reduction, group)
    if at_once:
        weights = widened(has_one.to(z.dtype))
        if reduction == "mean":
            weights = weights / has_one.sum().clamp(min=1)
        return weighted_loss(
            z, labels, weights, weights / count.clamp(min=1), logit_scale, gradient, scale=scale, normalize=normalize,
            positives="key", exclude_positives=False,
        )  # fmt: skip
    if group is not None and rings:
        log_sum, positive = ring.pairwise_logsumexp(
            z, None, logit_scale, labels, caller=(name, "z"), group=group, **rules
        )
    else:
        columns = distributed.all_gather_rows(z.detach(), shared_by) if shared_by else None
        log_sum, positive = torch.ops.fastssl.pairwise_logsumexp(
            z, columns, logit_scale, labels, keys, row_offset=offset, col_offset=0, shared_by=shared_by, first_row=0,
            row_stride=1, backend=backends.forced(), **rules,
        )  # fmt: skip
    # Rows without a positive are masked before anything is computed of them: a sum over nothing is minus infinity.
    losses = torch.where(has_one, log_sum, 0.0) - positive / count.clamp(min=1)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    rows = has_one.sum().to(losses.dtype)
    if shared_by:  # the mean over all ranks' rows, as one process has it
        rows = distributed.sum_over_ranks(rows, shared_by) / group.size()  # type: ignore[union-attr]
    return losses.sum() / torch.where(rows > 0, rows, 1.0)


def positives_of(labels: Tensor, among: Tensor) -> Tensor:
    """How many others have a row's label: int64 [M], from labels [M] and those of all rows, these among them."""
    ordered = among.sort().values
    return torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels) - 1
