"""Random views in plain PyTorch where no kernel serves: the reference, whose memory is that of one image at a time.

It reads the records on the host, which waits for a device that is not the CPU.
"""

from __future__ import annotations

from .reference import augment_views, unsupported_reason, view_parameters

__all__ = ["augment_views", "unsupported_reason", "view_parameters"]
