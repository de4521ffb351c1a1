"""The losses of open_clip. In place of

    from open_clip import ClipLoss, SigLipLoss

write

    from fastssl.compat.open_clip import ClipLoss, SigLipLoss
"""

from ..losses import ClipLoss, SigLipLoss

__all__ = ["ClipLoss", "SigLipLoss"]
