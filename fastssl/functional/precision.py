"""What functions do under autocast: take part in it, or choose their precision themselves."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor


def autocast(x: Tensor) -> Tensor:
    """As ``torch.library.register_autocast`` would, which takes one fixed dtype instead of the user's."""
    device = x.device.type
    if x.dtype != torch.float64 and device != "meta" and torch.is_autocast_enabled(device):  # meta knows no autocast
        return x.to(torch.get_autocast_dtype(device))
    return x


def without_autocast(like: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Where products keep the dtype of their operands, also inside of operators."""
    device = like.device.type
    return contextlib.nullcontext() if device == "meta" else torch.autocast(device, enabled=False)  # meta knows none
