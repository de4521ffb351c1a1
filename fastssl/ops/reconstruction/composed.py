"""Loss and gradient at once from a backend's two functions, for backends that gain nothing from doing both together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def patch_loss_step(
    loss: Callable[..., Tensor],
    gradient: Callable[..., Tensor],
    prediction: Tensor,
    image: Tensor,
    weight: Tensor,
    **rules: Any,
) -> tuple[Tensor, Tensor]:
    """The sum over all patches [], and its gradient for the predictions."""
    losses = loss(prediction, image, weight, **rules)
    return losses.sum(), gradient(prediction, image, weight, torch.ones_like(losses), **rules)
