"""Random views of images: the numbers that describe them, and their pixels."""

from . import op

__all__ = ["op"]
