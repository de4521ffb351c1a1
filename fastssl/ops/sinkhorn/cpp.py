"""Log-sums less potentials on the CPU: tensors in, addresses to the compiled kernels, tensors out."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cpp import DTYPES, address, kernels, unsupported_reason
from ..layout import contiguous, unit_stride
from ..precision import accumulator

__all__ = ["potential_logsumexp", "unsupported_reason"]


def potential_logsumexp(logits: Tensor, potential: Tensor | None, *, scale: float, dim: int) -> Tensor:
    """See ``reference.potential_logsumexp``."""
    logits, potential = unit_stride(logits), contiguous(potential)
    log_sums = torch.empty(logits.shape[1 - dim], dtype=accumulator(logits))
    kernels().potential_logsumexp(
        logits=logits.data_ptr(),
        rows=logits.shape[0],
        cols=logits.shape[1],
        stride=logits.stride(0),
        dtype=DTYPES[logits.dtype],
        potential=address(potential),
        scale=scale,
        over_columns=dim == 1,
        threads=torch.get_num_threads(),
        log_sums=log_sums.data_ptr(),
    )
    return log_sums
