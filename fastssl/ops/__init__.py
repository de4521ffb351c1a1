"""Operation families as ``torch.library`` operators; importing this package registers all of them."""

from . import pairwise, sinkhorn, soft_target

__all__ = ["pairwise", "sinkhorn", "soft_target"]
