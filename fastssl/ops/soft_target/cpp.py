"""Soft-target cross-entropy on the CPU: tensors in, addresses to the compiled kernels, tensors out.

The kernels take one image after another: its teachers' probabilities stay in the cache while every student is read
once, and its gradient written. Memory is a few rows per thread. See ``csrc/cpu/soft_target/image.h``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..cpp import DTYPES, address, kernels, unsupported_reason
from ..layout import contiguous, unit_stride
from ..outputs import empty
from ..precision import accumulator

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
    images, prototypes = student[0].shape[1:]
    loss = torch.empty(images, dtype=accumulator(student[0]))
    student_lse, teacher_lse = (loss.new_empty(sum(map(len, stacks)), images) for stacks in (student, teacher))
    total = loss.new_empty(prototypes if column_sum else 0)
    _run(
        student, teacher, column_potential, row_potential, weight, **rules,
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
        student, teacher, column_potential, row_potential, weight, **rules,
        gradient=gradients, factor=d_loss, fresh_gradient=not inplace,
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
    images, prototypes = student[0].shape[1:]
    losses = torch.empty(images, dtype=accumulator(student[0]))
    total = losses.new_empty(prototypes if column_sum else 0)
    _run(
        student, teacher, column_potential, row_potential, weight, **rules,
        loss=losses, column_sum=total if column_sum else None,
        gradient=gradients, factor=torch.full_like(losses, factor), fresh_gradient=not inplace,
    )  # fmt: skip
    return factor * losses.sum(), total, _delivered(gradients, student, inplace)


def _addresses(stacks: Sequence[Tensor]) -> list[tuple[int, int, int, int]]:
    """Where the views of stacks [views, B, K] lie: address and number, elements from view to view, image to image."""
    return [(stack.data_ptr(), stack.shape[0], stack.stride(0), stack.stride(1)) for stack in stacks]


def _outputs(student: Sequence[Tensor], inplace: bool) -> list[Tensor]:
    """Where the gradients are written: over the students, unless their numbers do not lie side by side."""
    return [stack if inplace and unit_stride(stack) is stack else empty(stack.shape, stack.dtype) for stack in student]


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
    images, prototypes = student[0].shape[1:]
    student, teacher = [unit_stride(stack) for stack in student], [unit_stride(stack) for stack in teacher]
    column_potential, row_potential = contiguous(column_potential), contiguous(row_potential)
    weight, factor = contiguous(weight), contiguous(factor)
    per_teacher = column_potential is not None and column_potential.ndim == 2
    kernels().soft_target(
        student=_addresses(student),
        teacher=_addresses(teacher),
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
        gradient=_addresses(gradient),
        factor=address(factor),
        fresh_gradient=fresh_gradient,
        known_log_sums=known_log_sums,
    )
