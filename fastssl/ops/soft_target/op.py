"""The soft-target cross-entropy operators: schemas, shapes, gradient.

``soft_target_cross_entropy``
    the loss of every image, and the teacher's column sums for the next centre, from one read of the logits.
``soft_target_cross_entropy_grad``
    the gradient for the students' logits, from the first operator's log-sums and a second read.
``soft_target_step``
    the summed loss and its gradient at once: each logit is read once.

DINO, iBOT, DINOv2, SwAV and MSN are a few lines on top (``fastssl.functional``). No probability is stored, and no
number per pair of views; ``reference.py`` holds the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..gradients import scaled
from ..precision import accumulator
from ..registry import define, define_gradient, forbid_gradient

_NAME = "soft_target_cross_entropy"
_INPUTS = "Tensor[] student, Tensor[] teacher, Tensor? column_potential, Tensor? row_potential, Tensor? weight"
_RULES = "float student_scale, float teacher_scale, bool skip_same_view"


def _views(stacks: Sequence[Tensor]) -> int:
    return sum(stack.shape[0] for stack in stacks)


def _check(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    column_potential: Tensor | None,
    row_potential: Tensor | None,
    weight: Tensor | None,
    **rules: Any,
) -> None:
    for name, stacks in (("student", student), ("teacher", teacher)):
        if not stacks:
            raise ValueError(f"{_NAME}: {name} must have at least one view, got none")
        for stack in stacks:
            checks.check_tensor(_NAME, name, stack, ndim=3, layout="[views, B, K]")
            if stack.shape[1:] != student[0].shape[1:]:
                raise ValueError(
                    f"{_NAME}: every view of student and teacher must have the same B and K, got "
                    f"{tuple(student[0].shape[1:])} and, in {name}, {tuple(stack.shape[1:])}"
                )
            checks.check_same(_NAME, "device", ("student", student[0]), (name, stack))
            checks.check_same(_NAME, "dtype", (name, stacks[0]), (name, stack))
    if (student[0].dtype == torch.float64) != (teacher[0].dtype == torch.float64):
        raise ValueError(
            f"{_NAME}: student and teacher must both be float64 or neither, got "
            f"{student[0].dtype} and {teacher[0].dtype}"
        )
    images, prototypes = student[0].shape[1:]
    teachers = _views(teacher)
    for name, tensor, shapes in (
        ("column_potential", column_potential, ((prototypes,), (teachers, prototypes))),
        ("row_potential", row_potential, ((teachers, images),)),
        ("weight", weight, ((images,),)),
    ):
        if tensor is not None:
            _check_numbers(name, tensor, shapes, student)


def _check_numbers(
    name: str, tensor: Tensor, shapes: Sequence[tuple[int, ...]], student: Sequence[Tensor], function: str = _NAME
) -> None:
    """A tensor of the accumulator's dtype, of one of these shapes, beside the students."""
    dtype, device = accumulator(student[0]), student[0].device
    if tuple(tensor.shape) not in shapes or tensor.dtype != dtype or tensor.device != device:
        raise ValueError(
            f"{function}: {name} must be {dtype} of shape {' or '.join(map(str, shapes))} on {device}, "
            f"got {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
        )


def _check_grad(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    *inputs: Tensor | None,
    student_lse: Tensor,
    teacher_lse: Tensor,
    d_loss: Tensor,
    **rules: Any,
) -> None:
    _check(student, teacher, *inputs, **rules)
    images = student[0].shape[1]
    for name, tensor, shape in (
        ("student_lse", student_lse, (_views(student), images)),
        ("teacher_lse", teacher_lse, (_views(teacher), images)),
        ("d_loss", d_loss, (images,)),
    ):
        _check_numbers(name, tensor, (shape,), student, f"{_NAME}_grad")


def _check_step(student: Sequence[Tensor], teacher: Sequence[Tensor], **rules: Any) -> None:
    _check(student, teacher, **rules)
    # Rounded to float16 before a loss scaler multiplies them, gradients vanish.
    if student[0].dtype == torch.float16:
        raise TypeError("soft_target_step: the operator computes no float16 gradients, take soft_target_cross_entropy")


def _fake(
    student: Sequence[Tensor], teacher: Sequence[Tensor], *, column_sum: bool, **rules: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, prototypes = student[0].shape[1:]
    loss = student[0].new_empty(images, dtype=accumulator(student[0]))
    student_lse, teacher_lse = (loss.new_empty(_views(stacks), images) for stacks in (student, teacher))
    return loss, student_lse, teacher_lse, loss.new_empty(prototypes if column_sum else 0)


def _fake_grad(student: Sequence[Tensor], **arguments: Any) -> list[Tensor]:
    return [stack.new_empty(stack.shape) for stack in student]


def _fake_step(student: Sequence[Tensor], *, column_sum: bool, **arguments: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    loss = student[0].new_empty((), dtype=accumulator(student[0]))
    return loss, loss.new_empty(student[0].shape[2] if column_sum else 0), _fake_grad(student)


define(
    f"soft_target_cross_entropy({_INPUTS}, *, {_RULES}, bool column_sum, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    family=__package__,
    check=_check,
    fake=_fake,
)
define(
    f"soft_target_cross_entropy_grad({_INPUTS}, Tensor student_lse, Tensor teacher_lse, Tensor d_loss, *, {_RULES}, "
    "str backend) -> Tensor[]",
    family=__package__,
    check=_check_grad,
    fake=_fake_grad,
)
forbid_gradient("soft_target_cross_entropy_grad")
# factor x the sum of the images' losses [], the column sums, and the gradients of the first for the students' stacks.
define(
    f"soft_target_step({_INPUTS}, *, {_RULES}, float factor, bool column_sum, str backend) "
    "-> (Tensor, Tensor, Tensor[])",
    family=__package__,
    check=_check_step,
    fake=_fake_step,
)


def _setup_context(ctx: Any, tensors: Sequence, keywords: dict[str, Any], outputs: tuple) -> None:
    student, teacher, *others = tensors
    _, student_lse, teacher_lse, total = outputs
    ctx.mark_non_differentiable(student_lse, teacher_lse, total)
    ctx.set_materialize_grads(False)
    ctx.counts = len(student), len(teacher)
    ctx.rules = {name: value for name, value in keywords.items() if name != "column_sum"}
    ctx.save_for_backward(*student, *teacher, *others, student_lse, teacher_lse)


def _backward(ctx: Any, d_loss: Tensor | None, *_: None) -> tuple[list[Tensor] | None, ...]:
    if d_loss is None or not any(ctx.needs_input_grad[: ctx.counts[0]]):
        return (None,) * 5
    students, teachers = ctx.counts
    saved = ctx.saved_tensors
    student, teacher, others = saved[:students], saved[students : students + teachers], saved[students + teachers :]
    gradients = torch.ops.fastssl.soft_target_cross_entropy_grad(
        student, teacher, *others, d_loss.contiguous(), **ctx.rules
    )
    return gradients, None, None, None, None


def _setup_step(ctx: Any, tensors: Sequence, keywords: dict[str, Any], outputs: tuple) -> None:
    _, total, gradients = outputs
    ctx.mark_non_differentiable(total, *gradients)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*gradients)


def _backward_step(ctx: Any, d_loss: Tensor | None, *_: None) -> tuple[list[Tensor] | None, ...]:
    if d_loss is None:
        return (None,) * 5
    return scaled(ctx.saved_tensors, d_loss), None, None, None, None


define_gradient("soft_target_cross_entropy", setup_context=_setup_context, backward=_backward)
define_gradient("soft_target_step", setup_context=_setup_step, backward=_backward_step)
