"""Log-sums less potentials in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from ..precision import widened


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    return None


def potential_logsumexp(
    logits: Tensor,  # [R, K]
    potential: Tensor | None,  # [K] for dim=1, [R] for dim=0
    *,
    scale: float,
    dim: int,
) -> Tensor:
    """dim=1: log sum_k exp(scale x_rk - potential_k), [R]. dim=0: log sum_r exp(scale x_rk - potential_r), [K]."""
    scaled = scale * widened(logits)
    if potential is not None:
        scaled = scaled - (potential if dim == 1 else potential[:, None])
    return scaled.logsumexp(dim)
