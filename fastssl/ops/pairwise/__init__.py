"""Log-sum-exp of pairwise similarities, the primitive under every contrastive loss."""

from . import op, steps

__all__ = ["op", "steps"]
