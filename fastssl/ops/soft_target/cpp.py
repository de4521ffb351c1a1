"""Soft-target cross-entropy on the CPU: tensors in, addresses to the compiled kernels, tensors out.

The kernels take one image after another: its teachers' probabilities stay in the cache while every student is read
once, and its gradient written. Memory is a few rows per thread. See ``csrc/cpu/soft_target/image.h``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..cpp import DTYPES, accumulator, address, kernels, unsupported_reason
from ..layout import contiguous, unit_stride
from ..outputs import empty

__all__ = ["soft_target_cross_entropy", "soft_target_cross_entropy_grad", "soft_target_step", "unsupported_reason"]


def soft_target_cross_entropy(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    column_potential: Tensor | None,
    row_potential: Tensor | None,
    weight: Tensor | None,
    *,
    column_sum: bool,
    **rules: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``reference.soft_target_cross_entropy``."""
    views, teachers = _views(student), _views(teacher)
    images, prototypes = views[0].shape
    loss = torch.empty(images, dtype=accumulator(views[0]))
    student_lse, teacher_lse = loss.new_empty(len(views), images), loss.new_empty(len(teachers), images)
    total = loss.new_empty(prototypes if column_sum else 0)
    _run(
        views, teachers, column_potential, row_potential, weight, **rules,
        loss=loss, student_lse=student_lse, teacher_lse=teacher_lse, column_sum=total if column_sum else None,
    )  # fmt: skip
    return loss, student_lse, teacher_lse, total


def soft_target_cross_entropy_grad(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    column_potential: Tensor | None,
    row_potential: Tensor | None,
    weight: Tensor | None,
    student_lse: Tensor,
    teacher_lse: Tensor,
    d_loss: Tensor,
    *,
    inplace: bool = False,
    **rules: Any,
) -> list[Tensor]:
    """See ``reference.soft_target_cross_entropy_grad``."""
    gradients = _outputs(student, inplace)
    _run(
        _views(student), _views(teacher), column_potential, row_potential, weight, **rules,
        gradient=_views(gradients), factor=d_loss, fresh_gradient=not inplace,
        student_lse=student_lse.contiguous(), teacher_lse=teacher_lse.contiguous(), known_log_sums=True,
    )  # fmt: skip
    return _delivered(gradients, student, inplace)


def soft_target_step(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    column_potential: Tensor | None,
    row_potential: Tensor | None,
    weight: Tensor | None,
    *,
    factor: float,
    column_sum: bool,
    inplace: bool = False,
    **rules: Any,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """See ``composed.soft_target_step``; every logit is read once from memory."""
    gradients = _outputs(student, inplace)
    views = _views(student)
    images, prototypes = views[0].shape
    losses = torch.empty(images, dtype=accumulator(views[0]))
    total = losses.new_empty(prototypes if column_sum else 0)
    _run(
        views, _views(teacher), column_potential, row_potential, weight, **rules,
        loss=losses, column_sum=total if column_sum else None,
        gradient=_views(gradients), factor=torch.full_like(losses, factor), fresh_gradient=not inplace,
    )  # fmt: skip
    return factor * losses.sum(), total, _delivered(gradients, student, inplace)


def _views(stacks: Sequence[Tensor]) -> list[Tensor]:
    """Every view [B, K] of the stacks, as the kernels take them."""
    return [unit_stride(view) for view in chain.from_iterable(stack.unbind(0) for stack in stacks)]


def _outputs(student: Sequence[Tensor], inplace: bool) -> list[Tensor]:
    """Where the gradients are written: over the students, unless their numbers do not lie side by side."""
    return [stack if inplace and stack.stride(2) == 1 else empty(stack) for stack in student]


def _delivered(gradients: list[Tensor], student: Sequence[Tensor], inplace: bool) -> list[Tensor]:
    if not inplace:
        return gradients
    return [
        stack if gradient is stack else stack.copy_(gradient)
        for stack, gradient in zip(student, gradients, strict=True)
    ]


def _run(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    column_potential: Tensor | None,
    row_potential: Tensor | None,
    weight: Tensor | None,
    *,
    student_scale: float,
    teacher_scale: float,
    skip_same_view: bool,
    loss: Tensor | None = None,
    student_lse: Tensor | None = None,
    teacher_lse: Tensor | None = None,
    column_sum: Tensor | None = None,
    gradient: Sequence[Tensor] = (),
    factor: Tensor | None = None,  # of each image's gradient, [B]
    fresh_gradient: bool = False,
    known_log_sums: bool = False,  # student_lse and teacher_lse are inputs
) -> None:
    images, prototypes = student[0].shape
    column_potential, row_potential = contiguous(column_potential), contiguous(row_potential)
    weight, factor = contiguous(weight), contiguous(factor)
    per_teacher = column_potential is not None and column_potential.ndim == 2
    kernels().soft_target(
        student=[(view.data_ptr(), view.stride(0)) for view in student],
        teacher=[(view.data_ptr(), view.stride(0)) for view in teacher],
        images=images,
        prototypes=prototypes,
        student_dtype=DTYPES[student[0].dtype],
        teacher_dtype=DTYPES[teacher[0].dtype],
        column_potential=address(column_potential),
        column_potential_stride=prototypes if per_teacher else 0,
        row_potential=address(row_potential),
        weight=address(weight),
        student_scale=student_scale,
        teacher_scale=teacher_scale,
        skip_same_view=skip_same_view,
        threads=torch.get_num_threads(),
        loss=address(loss),
        student_lse=address(student_lse),
        teacher_lse=address(teacher_lse),
        column_sum=address(column_sum),
        gradient=[(view.data_ptr(), view.stride(0)) for view in gradient],
        factor=address(factor),
        fresh_gradient=fresh_gradient,
        known_log_sums=known_log_sums,
    )
