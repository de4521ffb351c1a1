"""The loss of open_clip. In place of

    from open_clip import ClipLoss

write

    from fastssl.compat.open_clip import ClipLoss
"""

from ..losses import ClipLoss

__all__ = ["ClipLoss"]
