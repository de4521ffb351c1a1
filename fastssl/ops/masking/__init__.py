"""Masked image modelling: random masks, and the moves of patches and tokens that they ask for."""

from . import op

__all__ = ["op"]
