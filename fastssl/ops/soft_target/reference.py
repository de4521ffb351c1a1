"""Soft-target cross-entropy in plain PyTorch: the definition.

Every probability is stored and every pair of a teacher view and a student view is a term of its own, as the papers
write it. It is what the kernels are tested against (in float64); nothing else uses it.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..precision import widened
from . import composed


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    return None


def soft_target_cross_entropy(
    student: list[Tensor],  # stacks of views, [s_i, B, K]; S views in all
    teacher: list[Tensor],  # stacks of views, [t_i, B, K]; T views in all
    column_potential: Tensor | None,  # v, [K] or [T, K]
    row_potential: Tensor | None,  # u, [T, B]; None: whatever makes each row of the teacher sum to 1
    weight: Tensor | None,  # [B]; images of weight 0 are left out
    *,
    student_scale: float,  # 1 / temperature
    teacher_scale: float,
    skip_same_view: bool,  # leave out the pairs of a teacher view t and a student view s = t
    column_sum: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss [B] of every image, the students' log-sums [S, B], the teachers' [T, B], and the sum of the teacher's logits
    over views and images [K] (empty unless ``column_sum``)."""
    logits = student_scale * _wide(student)  # [S, B, K]
    targets, teacher_lse = _targets(teacher, column_potential, row_potential, teacher_scale)  # [T, B, K], [T, B]
    pairs = -torch.einsum("tbk,sbk->tsb", targets, logits.log_softmax(2))
    taken = _taken(len(targets), len(logits), skip_same_view, logits.device)[:, :, None]
    loss = torch.where(taken, pairs, 0.0).sum((0, 1))  # [B]
    student_lse = logits.logsumexp(2)
    raw = _wide(teacher)
    if weight is not None:
        left_out = weight == 0
        loss = torch.where(left_out, 0.0, weight * loss)
        student_lse, teacher_lse = (torch.where(left_out, 0.0, lse) for lse in (student_lse, teacher_lse))
        raw = torch.where(left_out[:, None], 0.0, raw)
    total = raw.sum((0, 1)) if column_sum else loss.new_empty((0,))
    return loss, student_lse, teacher_lse, total


def soft_target_cross_entropy_grad(
    student: list[Tensor],
    teacher: list[Tensor],
    column_potential: Tensor | None,
    row_potential: Tensor | None,
    weight: Tensor | None,
    student_lse: Tensor,  # [S, B]
    teacher_lse: Tensor,  # [T, B]
    d_loss: Tensor,  # [B]
    *,
    student_scale: float,
    teacher_scale: float,
    skip_same_view: bool,
    inplace: bool = False,  # write the gradients over the students
) -> list[Tensor]:
    """Gradient for every stack of students."""
    logits = student_scale * _wide(student)
    targets, _ = _targets(teacher, column_potential, row_potential, teacher_scale)
    mass = targets.sum(2, keepdim=True)  # 1, unless the row potentials say otherwise
    taken = _taken(len(targets), len(logits), skip_same_view, logits.device).to(logits.dtype)
    probabilities = (logits - student_lse[:, :, None]).exp()
    gradient = torch.einsum("ts,tbo->sbo", taken, mass) * probabilities - torch.einsum("ts,tbk->sbk", taken, targets)
    factor = student_scale * (d_loss if weight is None else d_loss * weight)
    gradient = factor[:, None] * gradient
    if weight is not None:
        gradient = torch.where((weight == 0)[:, None], 0.0, gradient)
    return deliver(gradient.split([len(stack) for stack in student]), student, inplace)


soft_target_step = partial(composed.soft_target_step, soft_target_cross_entropy, soft_target_cross_entropy_grad)


def deliver(gradients: list[Tensor] | tuple[Tensor, ...], student: list[Tensor], inplace: bool) -> list[Tensor]:
    """Gradients in the students' dtype, as tensors of their own or in the students' place."""
    if inplace:
        return [stack.copy_(gradient) for stack, gradient in zip(student, gradients, strict=True)]
    return [gradient.to(stack.dtype).contiguous() for stack, gradient in zip(student, gradients, strict=True)]


def _wide(stacks: list[Tensor]) -> Tensor:
    """All views in one stack, in the precision in which everything is computed."""
    return widened(torch.cat(list(stacks)))


def _targets(
    teacher: list[Tensor], column_potential: Tensor | None, row_potential: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """The teacher's probabilities [T, B, K], and the log-sums [T, B] that would normalise them."""
    logits = scale * _wide(teacher)
    if column_potential is not None:
        logits = logits - (column_potential if column_potential.ndim == 1 else column_potential[:, None])
    log_sum = logits.logsumexp(2)
    return (logits - (log_sum if row_potential is None else row_potential)[:, :, None]).exp(), log_sum


def _taken(teachers: int, students: int, skip_same_view: bool, device: torch.device) -> Tensor:
    """Which pairs of views are terms of the loss, [T, S]."""
    pairs = torch.ones(teachers, students, dtype=torch.bool, device=device)
    return ~torch.eye(teachers, students, dtype=torch.bool, device=device) if skip_same_view else pairs
