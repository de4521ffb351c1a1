"""Nearest rows by inner product, without the matrix of products."""

from . import op

__all__ = ["op"]
