"""Optimizers and schedules that methods share. A schedule is a function of the step alone, so that nothing of it has to
be saved."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from timm.optim import Lars
from torch import nn

OptimizerName = Literal["adamw", "sgd", "lars"]


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters into those that decay and those that do not: norms and biases, all with one axis."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]


def create_optimizer(
    name: OptimizerName,
    groups: list[dict[str, Any]],
    lr: float,
    momentum: float,
    nesterov: bool = True,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.Optimizer:
    """The optimizer of a method.

    Args:
        name: "adamw"; "sgd" with momentum; or "lars", timm's: You et al. 2017 (arXiv 1708.03888), as SimCLR, BYOL and
            Barlow Twins use it: the layer-wise rate for parameters that decay only.
        groups: of parameters.
        lr: learning rate.
        momentum: of SGD and LARS.
        nesterov: whether SGD makes Nesterov's step.
        betas: of AdamW.

    Raises:
        ValueError: for another name.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0)
    if name == "lars":
        return Lars(groups, lr=lr, momentum=momentum)
    raise ValueError(f"optimizer must be {' or '.join(map(repr, get_args(OptimizerName)))}, got {name!r}")


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start`, at a progress of 0, to `end`, at 1 and beyond."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * min(1.0, progress)))


def warmup_cosine(step: int, warmup: int, total: int, final: float = 0.0) -> float:
    """Factor of the learning rate at `step` of `total`: linear to 1 over `warmup` steps, half a cosine to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    return cosine(1.0, final, (step - warmup) / max(1, total - warmup))
