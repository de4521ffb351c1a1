"""Sinkhorn-Knopp: the equal assignment of a batch to prototypes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from .. import backends, distributed, ops  # noqa: F401 - ops registers the operators
from ..ops import checks


@torch.no_grad()
def sinkhorn_knopp(
    logits: Tensor,
    temperature: float = 0.05,
    *,
    iterations: int = 3,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The potentials that assign a batch to prototypes, each prototype nearly the same share.

    Cuturi, "Sinkhorn Distances", 2013; Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster
    Assignments" (SwAV), 2020. The published loop scales the columns and rows of exp(logits / temperature) in turns and
    ends on the samples. Here the scalings are kept as logarithms, so that logits of any size stay finite, and nothing
    of the size of the logits is stored: the assignments are
    ``p_bk = exp(logits_bk / temperature - column_potential_k - row_potential_b)``, and their rows sum to 1. Pass the
    column potentials to :func:`soft_target_cross_entropy`, which forms them as it goes.

    Args:
        logits: similarities of samples and prototypes, [B, K], or [T, B, K] for T separate problems; float32,
            bfloat16, float16 or float64. Constants: no gradient flows.
        temperature: above 0; SwAV's epsilon.
        iterations: at least 1.
        group: process group whose ranks' samples are assigned together; K-vectors travel, nothing else.

    Returns:
        column potentials [K] or [T, K] and row potentials [B] or [T, B], float32 (float64 for float64).

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.

    Example:
        >>> column_potential, _ = sinkhorn_knopp(teacher_logits, temperature=0.05)
    """
    name = "sinkhorn_knopp"
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        checks.check_tensor(name, "logits", logits, ndim=2, layout="[B, K] or [T, B, K]")
    else:
        checks.check_tensor(name, "logits", logits, ndim=3, layout="[B, K] or [T, B, K]")
    scale = checks.check_temperature(name, "temperature", temperature)
    checks.check_count(name, "iterations", iterations, minimum=1)
    checks.check_group(name, group)
    shared = group if group is not None and group.size() > 1 else None
    if logits.ndim == 2:
        return _potentials(logits, scale, iterations, shared)
    columns, rows = zip(*(_potentials(problem, scale, iterations, shared) for problem in logits), strict=True)
    return torch.stack(columns), torch.stack(rows)


def _potentials(
    logits: Tensor, scale: float, iterations: int, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    # The published loop also divides by K and by the batch size. Both are undone by the next sum over a row.
    rows: Tensor | None = None
    for _ in range(iterations):
        columns = _log_sum(logits, rows, scale, dim=0)
        if group is not None:
            columns = distributed.logsumexp_over_ranks(columns, group.group_name)
        rows = _log_sum(logits, columns, scale, dim=1)
    assert rows is not None
    return columns, rows


def _log_sum(logits: Tensor, potential: Tensor | None, scale: float, dim: int) -> Tensor:
    return torch.ops.fastssl.potential_logsumexp(
        logits.detach(), potential, scale=scale, dim=dim, backend=backends.forced()
    )
