"""CLIP's loss: images and texts find each other."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from .. import backends, distributed, ops  # noqa: F401 - ops registers the operators
from ..ops import checks
from . import ring
from .contrastive import Reduction, in_one_call, number_or_tensor, paired, reduced, wanted_first
from .ring import Exchange


def clip(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor = 1 / 0.07,
    *,
    normalize: bool = True,
    reduction: Reduction = "mean",
    group: dist.ProcessGroup | None = None,
    exchange: Exchange = "gather",
) -> Tensor:
    r"""Symmetric cross-entropy between paired rows of two sets, without the N x N matrix.

    With s_ij = logit_scale image_i . text_j, the mean over both directions of ``-s_ii + log sum_j exp(s_ij)`` and
    ``-s_ii + log sum_j exp(s_ji)``: Radford et al., "Learning Transferable Visual Models From Natural Language
    Supervision", 2021, figure 3.

    Args:
        image: [N, D], float32, bfloat16, float16 or float64, any strides.
        text: [N, D], same shape, dtype and device; row n belongs to row n of ``image``.
        logit_scale: s, above 0 (the inverse of a temperature); or a tensor with one element, which then may receive a
            gradient and whose value is not checked.
        normalize: divide rows by their length first.
        reduction: "mean" over the 2N rows, "sum", or "none": the losses [2N], the images' first.
        group: process group over which rows are gathered: rows of this rank against the rows of all ranks. The mean is
            over this rank's rows, and gradients averaged over ranks (as DDP does) equal those of one process on the
            global batch, that of ``logit_scale`` included. Every rank must have the same N.
        exchange: how the ranks of ``group`` see each other's rows: "gather" holds all of them, "ring" passes them on
            block by block while it computes, so that memory does not grow with the ranks; ``torch.compile`` leaves it
            out of its graph.

    Returns:
        float32 (float64 for float64 input): [] or [2N].

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.

    Example:
        >>> loss = clip(image_tower(images), text_tower(tokens), log_scale.exp())
    """
    name = "clip"
    image, text = paired(name, ("image", image), ("text", text), reduction, group)
    rings = ring.in_ring(name, exchange, group)
    scale, scale_tensor = number_or_tensor(
        name, "logit_scale", logit_scale, image, checks.check_positive_number, neutral=1.0
    )
    gradient, at_once = in_one_call((image, text), scale_tensor, reduction, group, serves_one_side=True)
    if at_once:
        weight = 1.0 if reduction == "sum" else 0.5 / image.shape[0]
        x, y, both = wanted_first(image, text)
        loss, *_ = torch.ops.fastssl.clip(
            x, y, scale_tensor, scale=scale, normalize=normalize, columns=both, weight=weight, gradient=gradient,
            backend=backends.forced(),
        )  # fmt: skip
        return loss

    rules = {
        "scale": scale, "normalize": normalize, "positives": "diagonal", "exclude_self": False,
        "exclude_positives": False,
    }  # fmt: skip
    if group is not None and rings:
        of_image, image_positive, of_text, text_positive = ring.pairwise_logsumexp_both_ways(
            image, text, scale_tensor, caller=(name, "image"), group=group, **rules
        )
        return reduced(torch.cat((of_image - image_positive, of_text - text_positive)), reduction)

    columns, offset = (text, image), 0
    if group is not None and group.size() > 1:
        distributed.check_same_shape(name, "image", image, group)
        texts, images = distributed.gather_with_gradient(torch.stack((text, image), 1), group).unbind(1)
        columns, offset = (texts, images), image.shape[0] * group.rank()
    losses = []
    for rows, others in zip((image, text), columns, strict=True):
        log_sum, positive = torch.ops.fastssl.pairwise_logsumexp(
            rows, others, scale_tensor, None, None, row_offset=offset, col_offset=0, shared_by="", first_row=0,
            row_stride=1, backend=backends.forced(), **rules,
        )  # fmt: skip
        losses.append(log_sum - positive)
    return reduced(torch.cat(losses), reduction)
