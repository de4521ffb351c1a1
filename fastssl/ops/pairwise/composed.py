"""NT-Xent from a backend's two pairwise functions, for backends that gain nothing from computing both at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


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
