"""Log-sums over rows or columns of a matrix of logits, of which Sinkhorn-Knopp's iterations consist."""

from . import op

__all__ = ["op"]
