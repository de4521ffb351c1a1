"""The nearest-neighbour operator: schema and shapes.

``nearest_neighbors``
    for every row of q [M, D] the ``count`` rows of k [N, D] with the largest inner products.

KoLeo takes each row's nearest other row from it; k-NN evaluation and nearest-neighbour losses take k of a bank. The
M x N matrix of products never exists; ``reference.py`` holds the definition. Indices have no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks
from ..registry import define, forbid_gradient


def _check(q: Tensor, k: Tensor | None, *, count: int, exclude_self: bool, row_offset: int) -> None:
    name = "nearest_neighbors"
    checks.check_tensor(name, "q", q, ndim=2, layout="[M, D]")
    if k is not None:
        checks.check_tensor(name, "k", k, ndim=2, layout="[N, D]")
        for attribute in ("dtype", "device"):
            checks.check_same(name, attribute, ("q", q), ("k", k))
        if q.shape[1] != k.shape[1]:
            raise ValueError(f"{name}: q and k must have the same D, got shapes {tuple(q.shape)} and {tuple(k.shape)}")
    available = (q if k is None else k).shape[0] - (1 if exclude_self else 0)
    if count < 1 or count > available:
        others = "the number of other rows" if exclude_self else "the number of columns"
        raise ValueError(f"{name}: count must be at least 1 and at most {others}, {available}, got {count}")
    if row_offset < 0:
        raise ValueError(f"{name}: row_offset must be at least 0, got {row_offset}")


def _fake(q: Tensor, k: Tensor | None, *, count: int, exclude_self: bool, row_offset: int) -> Tensor:
    return q.new_empty((q.shape[0], count), dtype=torch.int64)


define(
    "nearest_neighbors(Tensor q, Tensor? k, *, int count, bool exclude_self, SymInt row_offset, str backend) -> Tensor",
    family=__package__,
    check=_check,
    fake=_fake,
)
forbid_gradient("nearest_neighbors")
