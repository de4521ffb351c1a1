"""Complete methods, one file each, named after its paper."""

from fastssl.methods.simclr import SimCLR

__all__ = ["SimCLR"]
