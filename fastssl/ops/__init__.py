"""Operation families as ``torch.library`` operators; importing this package registers all of them."""

from . import neighbors, pairwise, sinkhorn, soft_target

__all__ = ["neighbors", "pairwise", "sinkhorn", "soft_target"]
