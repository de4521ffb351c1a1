"""The precision in which sums, logits and losses are computed: float32, or float64 for float64."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulator(tensor: Tensor) -> torch.dtype:
    """The dtype in which what is made of a tensor's numbers is added up."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def widened(tensor: Tensor) -> Tensor:
    """The tensor in that dtype; itself where it already is."""
    return tensor.to(accumulator(tensor))
