"""Operation families as ``torch.library`` operators; importing this package registers all of them."""

from . import augment, masking, neighbors, pairwise, prototypes, reconstruction, sinkhorn, soft_target

__all__ = ["augment", "masking", "neighbors", "pairwise", "prototypes", "reconstruction", "sinkhorn", "soft_target"]
