"""Checks of what several losses take: views, schedules. They look at shapes and Python numbers, never into tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from ..functional.ring import Exchange, in_ring
from ..ops import checks


def check_views(function: str, name: str, views: Any) -> tuple[int, Tensor]:
    """Views of a batch: a tensor [V, B, K], or a sequence of V tensors [B, K] of one shape.

    Returns:
        V, and the first view.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    if isinstance(views, Tensor):
        checks.check_tensor(function, name, views, ndim=3, layout="[V, B, K], or be a list of [B, K]")
        return views.shape[0], views[0]
    if not isinstance(views, (list, tuple)):
        raise TypeError(
            f"{function}: {name} must be a list of tensors [B, K] or a tensor [V, B, K], got {type(views).__name__}"
        )
    if not views:
        raise ValueError(f"{function}: {name} must have at least one view, got none")
    for index, view in enumerate(views):
        checks.check_tensor(function, f"{name}[{index}]", view, ndim=2, layout="[B, K]")
        for attribute in ("shape", "dtype", "device"):
            checks.check_same(function, attribute, (f"{name}[0]", views[0]), (f"{name}[{index}]", view))
    return len(views), views[0]


def check_same_batch(function: str, first: tuple[str, Tensor], second: tuple[str, Tensor]) -> None:
    """A view [B, K] of each of two arguments: same shape and device.

    Raises:
        ValueError: naming both arguments and what each was.
    """
    for attribute in ("shape", "device"):
        checks.check_same(function, attribute, first, second)


def check_gather(function: str, name: str, gather: bool) -> bool:
    """A wish to gather over processes, in a torch that can.

    Raises:
        ValueError: when torch was built without distributed support.
    """
    if gather and not dist.is_available():
        raise ValueError(f"{function}: {name}=True needs a torch with distributed support")
    return bool(gather)


def check_exchange(function: str, exchange: Exchange) -> Exchange:
    """How ranks see each other's rows.

    Raises:
        ValueError: for another word than "gather" and "ring".
    """
    in_ring(function, exchange, None)
    return exchange


def default_group(gather: bool) -> dist.ProcessGroup | None:
    """The group of all processes when there is one to gather over, otherwise None."""
    return dist.group.WORLD if gather and dist.is_available() and dist.is_initialized() else None


def check_world_size(function: str, world_size: Any) -> None:
    """How many processes a loss is told that there are: one, or as many as the default group has.

    Raises:
        ValueError: for another number.
    """
    known = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world_size not in (1, known):
        raise ValueError(f"{function}: world_size must be that of the default process group, {known}, got {world_size}")


def linear_warmup(function: str, start: Any, end: Any, epochs: Any) -> Sequence[float]:
    """The teacher's temperature in each epoch of the warm-up: from ``start`` to ``end``, both included.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    start = checks.check_positive_number(function, "warmup_teacher_temp", start)
    end = checks.check_positive_number(function, "teacher_temp", end)
    steps = checks.check_count(function, "warmup_teacher_temp_epochs", epochs, minimum=0)
    return tuple(start + (end - start) * step / max(steps - 1, 1) for step in range(steps))
