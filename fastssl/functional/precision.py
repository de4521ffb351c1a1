"""Autocast, for functions that choose their precision themselves."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor


def without_autocast(like: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Where products keep the dtype of their operands, also inside of operators."""
    device = like.device.type
    return contextlib.nullcontext() if device == "meta" else torch.autocast(device, enabled=False)  # meta knows none
