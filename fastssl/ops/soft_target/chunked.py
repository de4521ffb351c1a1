"""Soft-target cross-entropy in plain PyTorch, a block of images at a time: bounded memory on any device.

It serves where no kernel can: no compiler, a device without Triton, float64 on a GPU. The pairs are collapsed: a
student view needs the sum of the teachers' probabilities that it is paired with, and nothing of each pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from ..precision import accumulator, widened
from . import composed

BLOCK_LOGITS = 1 << 22


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    return None


def soft_target_cross_entropy(
    student: list[Tensor],
    teacher: list[Tensor],
    column_potential: Tensor | None,
    row_potential: Tensor | None,
    weight: Tensor | None,
    *,
    student_scale: float,
    teacher_scale: float,
    skip_same_view: bool,
    column_sum: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``reference.soft_target_cross_entropy``."""
    views, teachers = _views(student), _views(teacher)
    images, prototypes = views[0].shape
    loss = views[0].new_empty(images, dtype=accumulator(views[0]))
    student_lse, teacher_lse = loss.new_empty(len(views), images), loss.new_empty(len(teachers), images)
    total = loss.new_zeros(prototypes if column_sum else 0)
    for rows in _blocks(images, (len(teachers) + 2) * prototypes):
        raw = [widened(view[rows]) for view in teachers]
        targets, teacher_lse[:, rows] = _targets(raw, rows, column_potential, row_potential, teacher_scale)
        loss_of_block = torch.zeros_like(loss[rows])
        for s, view in enumerate(views):
            logits = student_scale * widened(view[rows])
            student_lse[s, rows] = log_sum = logits.logsumexp(1)
            if (target := _paired(targets, s, skip_same_view)) is not None:
                loss_of_block -= (target * (logits - log_sum[:, None])).sum(1)
        if weight is not None:
            left_out = weight[rows] == 0
            loss_of_block = torch.where(left_out, 0.0, weight[rows] * loss_of_block)
            for lse in (student_lse, teacher_lse):
                lse[:, rows] = torch.where(left_out, 0.0, lse[:, rows])
            raw = [torch.where(left_out[:, None], 0.0, view) for view in raw]
        loss[rows] = loss_of_block
        if column_sum:
            for view in raw:
                total += view.sum(0)
    return loss, student_lse, teacher_lse, total


def soft_target_cross_entropy_grad(
    student: list[Tensor],
    teacher: list[Tensor],
    column_potential: Tensor | None,
    row_potential: Tensor | None,
    weight: Tensor | None,
    student_lse: Tensor,
    teacher_lse: Tensor,
    d_loss: Tensor,
    *,
    student_scale: float,
    teacher_scale: float,
    skip_same_view: bool,
    inplace: bool = False,
) -> list[Tensor]:
    """See ``reference.soft_target_cross_entropy_grad``."""
    contiguous = torch.contiguous_format
    gradients = student if inplace else [torch.empty_like(x, memory_format=contiguous) for x in student]
    views, teachers, outputs = _views(student), _views(teacher), _views(gradients)
    images, prototypes = views[0].shape
    factor = student_scale * (d_loss if weight is None else d_loss * weight)
    for rows in _blocks(images, (len(teachers) + 2) * prototypes):
        raw = [widened(view[rows]) for view in teachers]
        targets, _ = _targets(raw, rows, column_potential, row_potential, teacher_scale)
        for s, (view, out) in enumerate(zip(views, outputs, strict=True)):
            target = _paired(targets, s, skip_same_view)
            if target is None:
                out[rows] = 0
                continue
            gradient = (student_scale * widened(view[rows]) - student_lse[s, rows, None]).exp_()
            gradient = gradient.mul_(target.sum(1, keepdim=True)).sub_(target).mul_(factor[rows, None])
            if weight is not None:
                gradient = torch.where((weight[rows] == 0)[:, None], 0.0, gradient)
            out[rows] = gradient.to(out.dtype)
    return gradients


soft_target_step = partial(composed.soft_target_step, soft_target_cross_entropy, soft_target_cross_entropy_grad)


def _views(stacks: list[Tensor]) -> list[Tensor]:
    """Every view [B, K] of the stacks."""
    return list(chain.from_iterable(stack.unbind(0) for stack in stacks))


def _blocks(images: int, numbers_per_image: int) -> Iterator[slice]:
    step = max(1, BLOCK_LOGITS // numbers_per_image)
    return (slice(start, min(start + step, images)) for start in range(0, images, step))


def _targets(
    raw: list[Tensor], rows: slice, column_potential: Tensor | None, row_potential: Tensor | None, scale: float
) -> tuple[list[Tensor], Tensor]:
    """Each teacher's probabilities [b, K] of a block of images, and the log-sums [T, b] that would normalise them."""
    targets, log_sums = [], []
    for t, view in enumerate(raw):
        logits = scale * view
        if column_potential is not None:
            logits -= column_potential if column_potential.ndim == 1 else column_potential[t]
        log_sum = logits.logsumexp(1)
        normaliser = log_sum if row_potential is None else row_potential[t, rows]
        targets.append((logits - normaliser[:, None]).exp_())
        log_sums.append(log_sum)
    return targets, torch.stack(log_sums)


def _paired(targets: list[Tensor], s: int, skip_same_view: bool) -> Tensor | None:
    """The sum of the probabilities that student view s is compared with, [b, K]; None where there are none."""
    paired = [target for t, target in enumerate(targets) if not (skip_same_view and t == s)]
    return torch.stack(paired).sum(0) if len(paired) > 1 else paired[0] if paired else None
