"""The loss of SimSiam and BYOL."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import checks
from ..ops.precision import widened


def vectors(x: Tensor, dim: int) -> Tensor:
    """x in float32 (float64 for float64), where squares of 16-bit numbers do not overflow; zeros get no gradient.

    The direction of a vector of zeros is not defined, and what a formula with a small number in place of the length
    gives as its derivative, one over that number, would drown all other gradients (and is infinite in float16).
    """
    x = widened(x)
    return torch.where((x == 0).all(dim, keepdim=True), x.detach(), x)


class NegativeCosineSimilarity(nn.Module):
    """Minus the mean cosine similarity, in place of ``lightly.loss.NegativeCosineSimilarity``: same arguments, values.

    Chen and He, "Exploring Simple Siamese Representation Learning", 2021, equation 1. Gradients flow into both
    arguments; the papers' stop-gradient is the caller's ``detach``. Computed in float32 for 16-bit inputs too. A vector
    of zeros has cosine 0 and no gradient.

    Args:
        dim: dimension of the vectors.
        eps: smallest length by which a vector is divided, above 0.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.

    Example:
        >>> criterion = NegativeCosineSimilarity()
        >>> loss = (criterion(p0, z1.detach()) + criterion(p1, z0.detach())) / 2
    """

    def __init__(self, dim: int = 1, eps: float = 1e-8) -> None:
        super().__init__()
        self.dim = checks.check_int("NegativeCosineSimilarity", "dim", dim)
        self.eps = checks.check_positive_number("NegativeCosineSimilarity", "eps", eps)

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        """Minus the mean cosine similarity of corresponding vectors.

        Args:
            x0: vectors along ``dim``, e.g. [N, D]; float32, bfloat16, float16 or float64.
            x1: vectors of the same shape; a dimension of 1 is repeated.

        Returns:
            The loss, [], float32 (float64 for float64).

        Raises:
            TypeError, ValueError: naming the argument, what it was and what it must be.
        """
        name = "NegativeCosineSimilarity"
        for argument, x in (("x0", x0), ("x1", x1)):
            checks.check_number_tensor(name, argument, x)
            if x.numel() == 0:
                raise ValueError(f"{name}: {argument} must not be empty, got shape {tuple(x.shape)}")
            if not -x.ndim <= self.dim < x.ndim:
                raise ValueError(f"{name}: {argument} must have dimension {self.dim}, got shape {tuple(x.shape)}")
        if x0.ndim != x1.ndim or any(a != b and 1 not in (a, b) for a, b in zip(x0.shape, x1.shape, strict=True)):
            raise ValueError(f"{name}: x0 and x1 must have the same shape, got {tuple(x0.shape)} and {tuple(x1.shape)}")
        return -F.cosine_similarity(vectors(x0, self.dim), vectors(x1, self.dim), self.dim, self.eps).mean()

    def extra_repr(self) -> str:
        return f"dim={self.dim}, eps={self.eps}"
