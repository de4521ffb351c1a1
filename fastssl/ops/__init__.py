"""Operation families as ``torch.library`` operators; importing this package registers all of them."""

from . import pairwise

__all__ = ["pairwise"]
