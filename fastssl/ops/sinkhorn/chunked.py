"""Log-sums less potentials in plain PyTorch, a block of rows or columns at a time: bounded memory on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference

BLOCK_LOGITS = 1 << 22


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    return None


def potential_logsumexp(logits: Tensor, potential: Tensor | None, *, scale: float, dim: int) -> Tensor:
    """See ``reference.potential_logsumexp``."""
    kept = 1 - dim
    blocks = logits.split(max(1, BLOCK_LOGITS // logits.shape[dim]), kept)
    return torch.cat([reference.potential_logsumexp(block, potential, scale=scale, dim=dim) for block in blocks])
