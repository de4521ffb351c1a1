"""The error of predicted patches against the pixels of an image: MAE, SimMIM."""

from . import op

__all__ = ["op"]
