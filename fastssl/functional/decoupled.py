"""The decoupled contrastive loss: positives are left out of the denominators."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..ops import checks
from ..ops.precision import accumulator
from .contrastive import (
    Reduction,
    in_one_call,
    inverse_temperature,
    logsumexp_of_views,
    paired,
    reduced_of_views,
    weighted_loss,
)
from .ring import Exchange, in_ring


def dcl(
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    weights: tuple[Tensor, Tensor] | None = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    group: dist.ProcessGroup | None = None,
    exchange: Exchange = "gather",
) -> Tensor:
    r"""Decoupled contrastive loss between two views, without the 2N x 2N matrix.

    Every row's loss is ``-w_i s_{i, other view} + log sum_{j in other images} exp(s_ij)``, s the cosines over the
    temperature: Yeh et al., "Decoupled Contrastive Learning", 2022, equation 6. With one image, whose denominator has
    nothing in it, the positive's term is all.

    Args:
        z0: embeddings of the first view, [N, D], float32, bfloat16, float16 or float64, any strides.
        z1: embeddings of the second view, same shape, dtype and device; row n shows the same image as row n of z0.
        temperature: above 0; or a tensor with one element, which then may receive a gradient and whose value is not
            checked.
        weights: of the positives of the rows of z0 and of those of z1, floating [N] each (DCLW: equation 7). No
            gradient reaches them. None: 1.
        normalize: divide rows by their length, so that s is a cosine over the temperature.
        reduction: "mean" over the 2N rows, "sum", or "none": the losses [2N], rows of z0 first.
        group: process group over which negatives are gathered, as in :func:`nt_xent`.
        exchange: "gather" or "ring", as there.

    Returns:
        float32 (float64 for float64 input): [] or [2N].

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.

    Example:
        >>> loss = dcl(projector(view0), projector(view1), temperature=0.1)
    """
    name = "dcl"
    z0, z1 = paired(name, ("z0", z0), ("z1", z1), reduction, group)
    rings = in_ring(name, exchange, group)
    scale, logit_scale = inverse_temperature(name, temperature, z0)
    n = z0.shape[0]
    for view, weight in enumerate(weights or ()):
        checks.check_number_tensor(name, f"weights[{view}]", weight)
        if weight.shape != (n,) or weight.device != z0.device:
            raise ValueError(
                f"{name}: weights[{view}] must be of shape ({n},) on {z0.device}, got {tuple(weight.shape)} on "
                f"{weight.device}"
            )
    gradient, at_once = in_one_call((z0, z1), logit_scale, reduction, group)
    if at_once and n > 1:  # with one image there is nothing in the sum, and the weight of that would be 0
        mean = 1.0 if reduction == "sum" else 0.5 / n
        rows = z0.new_full((2 * n,), mean, dtype=accumulator(z0))
        of_positives = rows if weights is None else rows * interleaved(weights, rows)
        return weighted_loss(
            torch.stack((z0, z1), 1).flatten(0, 1), None, rows, of_positives, logit_scale, gradient, scale=scale,
            normalize=normalize, positives="pair", exclude_positives=True,
        )  # fmt: skip
    log_sum, positive = logsumexp_of_views(
        name, z0, z1, logit_scale, scale=scale, normalize=normalize, exclude_positives=True, group=group,
        rings=rings,
    )  # fmt: skip
    if weights is not None:
        positive = positive * interleaved(weights, positive)
    losses = torch.where(log_sum == -torch.inf, 0.0, log_sum) - positive
    return reduced_of_views(losses, reduction)


def interleaved(weights: tuple[Tensor, Tensor], like: Tensor) -> Tensor:
    """Of the rows of both views, an image's next to each other: [2N]. A constant."""
    return torch.stack([weight.detach().to(like.dtype) for weight in weights], 1).flatten()
