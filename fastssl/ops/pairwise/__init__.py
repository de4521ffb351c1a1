"""Log-sum-exp of pairwise similarities, the primitive under every contrastive loss."""

from . import op

__all__ = ["op"]
