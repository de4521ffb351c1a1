"""Batched multi-view transforms: uint8 batch in, list of normalised views out."""

from fastssl.augment.transforms import EvalTransform, MultiViewTransform, Normalize, SimCLRTransform
from fastssl.augment.view import View

__all__ = ["EvalTransform", "MultiViewTransform", "Normalize", "SimCLRTransform", "View"]
