"""The operator under Sinkhorn-Knopp: a log-sum-exp over rows or columns, less the other side's potentials.

Rows and columns are separate operators because an all-reduce between ranks falls in between.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import checks
from ..precision import accumulator
from ..registry import define, forbid_gradient

_NAME = "potential_logsumexp"


def _check(logits: Tensor, potential: Tensor | None, *, dim: int, **rules: Any) -> None:
    checks.check_tensor(_NAME, "logits", logits, ndim=2, layout="[R, K]")
    if dim not in (0, 1):
        raise ValueError(f"{_NAME}: dim must be 0 or 1, got {dim}")
    if potential is None:
        return
    wanted, length = accumulator(logits), logits.shape[dim]
    if potential.shape != (length,) or potential.dtype != wanted or potential.device != logits.device:
        raise ValueError(
            f"{_NAME}: potential must be {wanted} of shape ({length},) on {logits.device}, "
            f"got {potential.dtype} of shape {tuple(potential.shape)} on {potential.device}"
        )


def _fake(logits: Tensor, *, dim: int, **arguments: Any) -> Tensor:
    return logits.new_empty(logits.shape[1 - dim], dtype=accumulator(logits))


define(
    "potential_logsumexp(Tensor logits, Tensor? potential, *, float scale, int dim, str backend) -> Tensor",
    family=__package__,
    check=_check,
    fake=_fake,
)
forbid_gradient("potential_logsumexp")
