"""Momentum encoders: copies that follow a network as its moving average (MoCo, BYOL, DINO, iBOT, MSN)."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from timm.layers import DropPath
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def momentum_copy(module: Module) -> Module:
    """A copy that follows `module`: without gradients, and without dropout and stochastic depth.

    BatchNorm stays as it is: while training, the copy normalises by its own batches, as in MoCo, BYOL and DINO.
    """
    copied = copy.deepcopy(module).requires_grad_(False)
    for part in copied.modules():
        if isinstance(part, DropPath):
            part.drop_prob = 0.0
        elif isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
    return copied


@torch.no_grad()
def update_momentum(average: nn.Module, module: nn.Module, momentum: float) -> None:
    """Move the parameters of `average` towards those of `module`: theta_a <- m theta_a + (1 - m) theta.

    All parameters in one call, which is as fast as memory is; buffers stay the copy's own. He et al. 2020
    (arXiv 1911.05722), equation 2.

    Args:
        average: made by :func:`momentum_copy` of a module like `module`.
        module: the trained one.
        momentum: m, in [0, 1].
    """
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - momentum)
