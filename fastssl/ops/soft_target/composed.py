"""Loss and gradient at once from a backend's two functions, for backends that gain nothing from doing both together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def soft_target_step(
    cross_entropy: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]],
    cross_entropy_grad: Callable[..., list[Tensor]],
    student: list[Tensor],
    teacher: list[Tensor],
    column_potential: Tensor | None,
    row_potential: Tensor | None,
    weight: Tensor | None,
    *,
    factor: float,
    column_sum: bool,
    inplace: bool = False,
    **rules: Any,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """``factor`` times the sum of the images' losses [], the teacher's column sums, and the loss's gradients."""
    inputs = student, teacher, column_potential, row_potential, weight
    losses, student_lse, teacher_lse, total = cross_entropy(*inputs, column_sum=column_sum, **rules)
    d_loss = torch.full_like(losses, factor)
    gradients = cross_entropy_grad(*inputs, student_lse, teacher_lse, d_loss, inplace=inplace, **rules)
    return factor * losses.sum(), total, gradients
