"""DINO's loss in PyTorch's public functions: as people write it, and in the strongest forms that we know.

Students x [S, B, K], teachers y [T, B, K], centre c [K]. With p_t = softmax((y_t - c) / tau_t) and the pairs of a
teacher view t and another student view u, the loss is the mean over images and pairs of ``-p_t . log softmax(x_u /
tau_s)``. Since each p_t sums to 1, the sum over the pairs collapses to

    sum_u n_u lse_u - (1 / tau_s) sum_u (sum_{t != u} p_t) . x_u,      lse_u = logsumexp(x_u / tau_s)

with n_u teachers for each student, and its gradient is ``(1 / tau_s) (n_u softmax(x_u / tau_s) - sum_{t != u} p_t)``.
What the strong forms make of that: no log-probabilities are stored and no pair is gone through by itself.

Every function returns the loss and the next centre, a moving average of the teachers' mean logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

STUDENT_TEMPERATURE, TEACHER_TEMPERATURE, CENTER_MOMENTUM = 0.1, 0.04, 0.9
# Logits, as float32, that one block of images has: on a CPU they stay in its caches, a GPU wants long rows of work.
BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 1 << 30}


def pairs(students: int, teachers: int) -> int:
    """How many pairs of different views there are."""
    return students * teachers - min(students, teachers)


def next_center(center: Tensor, batch_mean: Tensor) -> Tensor:
    return center * CENTER_MOMENTUM + batch_mean * (1 - CENTER_MOMENTUM)


def eager(student: Tensor, teacher: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """As the authors published it: a loop over the pairs."""
    logits = (student.flatten(0, 1) / STUDENT_TEMPERATURE).chunk(len(student))  # the heads give one tensor
    targets = F.softmax((teacher.flatten(0, 1) - center) / TEACHER_TEMPERATURE, dim=-1).detach().chunk(len(teacher))
    loss: Any = 0
    for t, target in enumerate(targets):
        for u, logit in enumerate(logits):
            if u != t:
                loss += torch.sum(-target * F.log_softmax(logit, dim=-1), dim=-1).mean()
    mean = torch.sum(teacher.flatten(0, 1), dim=0) / (teacher.shape[0] * teacher.shape[1])
    return loss / pairs(len(student), len(teacher)), next_center(center, mean)


def lean(student: Tensor, teacher: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs in one product per image, and log-sums instead of log-probabilities."""
    (s, b, _), t = student.shape, len(teacher)
    target = F.softmax((teacher.float() - center) / TEACHER_TEMPERATURE, dim=-1)
    logits = student.float() / STUDENT_TEMPERATURE
    loss = logits.logsumexp(-1).sum(1) - torch.einsum("tbk,sbk->bts", target, logits).sum(0)
    total = loss.sum() - loss.diagonal().sum()
    return total / (pairs(s, t) * b), next_center(center, teacher.float().mean((0, 1)))


def collapsed(student: Tensor, teacher: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over the pairs worked out on paper."""
    (s, b, _), t = student.shape, len(teacher)
    same = min(s, t)  # the views that both have
    target = F.softmax((teacher.float() - center) / TEACHER_TEMPERATURE, dim=-1)
    logits = student.float() / STUDENT_TEMPERATURE
    log_sums = logits.logsumexp(-1).sum(1)
    products = (target.sum(0) * logits.sum(0)).sum() - (target[:same] * logits[:same]).sum()
    loss = t * log_sums.sum() - log_sums[:same].sum() - products
    return loss / (pairs(s, t) * b), next_center(center, teacher.float().mean((0, 1)))


class Views(torch.autograd.Function):
    """A stack taken apart without a copy in either direction, for functions that want a list of views.

    The views' gradients usually are a stack that was taken apart; then that is the gradient.
    """

    @staticmethod
    def forward(ctx: Any, stack: Tensor) -> tuple[Tensor, ...]:
        return tuple(view.detach() for view in stack)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        first, step = gradients[0], gradients[0].nbytes
        in_a_row = all(
            gradient.is_contiguous() and gradient.data_ptr() == first.data_ptr() + number * step
            for number, gradient in enumerate(gradients)
        )
        storage = first.untyped_storage()
        if in_a_row and storage.nbytes() >= first.storage_offset() * first.itemsize + step * len(gradients):
            return first.as_strided((len(gradients), *first.shape), (first.numel(), *first.stride()))
        return torch.stack(gradients)


# ---------------------------------------------------------------------------------------------- by blocks of images


def chunked(
    student: Tensor, teacher: Tensor, center: Tensor, *, compiled: bool = False, whole: bool = False
) -> tuple[Tensor, Tensor]:
    """Loss and gradient by their formulas, a block of images at a time: nothing of the logits' size but the gradient.

    Args:
        student, teacher: [S, B, K], [T, B, K].
        center: [K].
        compiled: ``torch.compile`` makes what happens to a block.
        whole: the whole batch is one block.
    """
    images = student.shape[1] if whole else block_images(len(student) + len(teacher), student.shape[2], student.device)
    return _Chunked.apply(student, teacher, center, images, compiled)


def block_images(views: int, k: int, device: str | torch.device) -> int:
    """Images in a block, given how many rows of K logits each has."""
    return max(1, BLOCK_BYTES[torch.device(device).type] // (4 * views * k))


def _targets(teacher: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """Each teacher's probabilities and their sum, [T, b, K] and [b, K]."""
    target = F.softmax((teacher.float() - center) / TEACHER_TEMPERATURE, dim=-1)
    return target, target.sum(0)


def _block_loss(student: Tensor, teacher: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """A block's sum over pairs and images, and the sum of its teachers' logits."""
    return _of_block(student, teacher, center, None, 0.0)


def _block_step(
    student: Tensor, teacher: Tensor, center: Tensor, gradient: Tensor, factor: float
) -> tuple[Tensor, Tensor]:
    """The same, and ``factor`` times the gradient of the sum is written into ``gradient``."""
    return _of_block(student, teacher, center, gradient, factor)


def _of_block(
    student: Tensor, teacher: Tensor, center: Tensor, gradient: Tensor | None, factor: float
) -> tuple[Tensor, Tensor]:
    same, t = min(len(student), len(teacher)), len(teacher)
    target, total = _targets(teacher, center)
    loss: Any = 0
    for views, count, wanted in (
        (slice(same), t - 1, total - target[:same]),
        (slice(same, None), t, total[None]),
    ):
        if student[views].shape[0] == 0:
            continue
        logits = student[views].float() * (1 / STUDENT_TEMPERATURE)
        log_sums = logits.logsumexp(-1, keepdim=True)
        loss = loss + count * log_sums.sum() - (wanted * logits).sum()
        if gradient is not None:
            weights = (logits - log_sums).exp_().mul_(count)
            gradient[views].copy_((weights - wanted) * (factor / STUDENT_TEMPERATURE))
    return loss, teacher.sum((0, 1), dtype=torch.float32)


@cache
def _block_functions(compiled: bool) -> Sequence[Callable[..., tuple[Tensor, Tensor]]]:
    functions = (_block_loss, _block_step)
    return [torch.compile(function, dynamic=False) for function in functions] if compiled else functions


class _Chunked(torch.autograd.Function):
    """Has the gradient already in the forward pass: the logits are in the caches then."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, center: Tensor, block: int, compiled: bool
    ) -> tuple[Tensor, Tensor]:
        (s, b, _), t = student.shape, len(teacher)
        block_loss, block_step = _block_functions(compiled)
        gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        factor = 1 / (pairs(s, t) * b)
        loss, column_sum = center.new_zeros(()), torch.zeros_like(center)
        for start in range(0, b, block):
            images = slice(start, start + block)
            logits = student[:, images], teacher[:, images], center
            if gradient is None:
                of_block, sums = block_loss(*logits)
            else:
                of_block, sums = block_step(*logits, gradient[:, images], factor)
            loss += of_block
            column_sum += sums
        if gradient is not None:
            ctx.save_for_backward(gradient)
        center = next_center(center, column_sum / (t * b))
        ctx.mark_non_differentiable(center)
        return loss * factor, center

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        # A pass over the gradient is saved where the loss is what backward was called on. A GPU would be waited for.
        if d_outputs[0].is_cuda or d_outputs[0].item() != 1:
            gradient = gradient.mul_(d_outputs[0])
        return gradient, None, None, None, None
