"""Cross-entropy of students against soft targets over many prototypes: DINO, iBOT, DINOv2, SwAV, MSN."""

from . import op

__all__ = ["op"]
