"""Operation families as ``torch.library`` operators; importing this package registers all of them."""

from . import neighbors, pairwise, prototypes, sinkhorn, soft_target

__all__ = ["neighbors", "pairwise", "prototypes", "sinkhorn", "soft_target"]
