"""The decoupled contrastive loss: positives are left out of the denominators."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from .. import backends, distributed, ops  # noqa: F401 - ops registers the operators
from ..ops import checks
from .contrastive import Reduction, inverse_temperature, reduced
from .precision import autocast


def dcl(
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    weights: tuple[Tensor, Tensor] | None = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    group: dist.ProcessGroup | None = None,
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

    Returns:
        float32 (float64 for float64 input): [] or [2N].

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.

    Example:
        >>> loss = dcl(projector(view0), projector(view1), temperature=0.1)
    """
    name = "dcl"
    checks.check_tensor(name, "z0", z0, ndim=2, layout="[N, D]")
    checks.check_tensor(name, "z1", z1, ndim=2, layout="[N, D]")
    for attribute in ("shape", "device"):
        checks.check_same(name, attribute, ("z0", z0), ("z1", z1))
    z0, z1 = autocast(z0), autocast(z1)
    checks.check_same(name, "dtype", ("z0", z0), ("z1", z1))
    checks.check_choice(name, "reduction", reduction, ("mean", "sum", "none"))
    scale, logit_scale = inverse_temperature(name, temperature, z0)
    checks.check_group(name, group)
    n, d = z0.shape
    for view, weight in enumerate(weights or ()):
        checks.check_number_tensor(name, f"weights[{view}]", weight)
        if weight.shape != (n,) or weight.device != z0.device:
            raise ValueError(
                f"{name}: weights[{view}] must be of shape ({n},) on {z0.device}, got {tuple(weight.shape)} on "
                f"{weight.device}"
            )
    # Interleaved, the two views of an image are neighbours, as in nt_xent.
    z = torch.stack((z0, z1), dim=1).reshape(2 * n, d)
    columns, shared_by, offset = None, "", 0
    if group is not None and group.size() > 1:
        distributed.check_same_shape(name, "z0", z0, group)
        shared_by, offset = group.group_name, 2 * n * group.rank()
        columns = distributed.all_gather_rows(z.detach(), shared_by)
    log_sum, positive = torch.ops.fastssl.pairwise_logsumexp(
        z, columns, logit_scale, None, None, scale=scale, normalize=normalize, positives="pair", exclude_self=True,
        exclude_positives=True, row_offset=offset, col_offset=0, shared_by=shared_by, first_row=0, row_stride=1,
        backend=backends.forced(),
    )  # fmt: skip
    if weights is not None:
        positive = positive * torch.stack([weight.detach().to(positive.dtype) for weight in weights], 1).flatten()
    losses = torch.where(log_sum == -torch.inf, 0.0, log_sum) - positive
    if reduction == "none":
        return losses.view(n, 2).T.reshape(-1)
    return reduced(losses, reduction)
