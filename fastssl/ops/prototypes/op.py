"""The prototype layer and the soft-target cross-entropy in one operator: schema, shapes, gradient.

``prototype_cross_entropy``
    the loss of logits that are products of features and prototypes, with its gradients for both; of the logits only a
    chunk of images exists at a time.

The gradients are computed with the loss, because the backward pass would have to compute the logits again. They are
kept in float32 also for float16 inputs, until they are multiplied by the incoming gradient: a loss scaler's factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..gradients import scaled
from ..precision import accumulator
from ..registry import define, define_gradient

_NAME = "prototype_cross_entropy"


def product_dtype(features: Tensor) -> torch.dtype:
    """The dtype of the logits and of their gradient: float16 has no room for the latter, about 1e-7."""
    return torch.float32 if features.dtype == torch.float16 else features.dtype


def _check(
    student: Tensor,
    weight: Tensor,
    teacher: Sequence[Tensor],
    teacher_features: Tensor | None,
    teacher_weight: Tensor | None,
    column_potential: Tensor | None,
    row_potential: Tensor | None,
    image_weight: Tensor | None,
    *,
    chunk: int,
    **rules: Any,
) -> None:
    checks.check_tensor(_NAME, "student", student, ndim=3, layout="[S, B, D]")
    checks.check_tensor(_NAME, "weight", weight, ndim=2, layout="[K, D]")
    images, (prototypes, dimension) = student.shape[1], weight.shape
    if student.shape[2] != dimension:
        raise ValueError(
            f"{_NAME}: student and weight must have the same D, got shapes {tuple(student.shape)} and "
            f"{tuple(weight.shape)}"
        )
    given: list[tuple[str, Tensor]] = [("weight", weight)]
    if bool(teacher) == (teacher_features is not None):
        raise ValueError(f"{_NAME}: either teacher (logits) or teacher_features must be given, got both or neither")
    if teacher_features is not None:
        checks.check_tensor(_NAME, "teacher_features", teacher_features, ndim=3, layout="[T, B, D]")
        given.append(("teacher_features", teacher_features))
        if teacher_weight is not None:
            checks.check_tensor(_NAME, "teacher_weight", teacher_weight, ndim=2, layout="[K, D]")
            given.append(("teacher_weight", teacher_weight))
        of_teacher = weight if teacher_weight is None else teacher_weight
        if of_teacher.shape != (prototypes, teacher_features.shape[2]):
            raise ValueError(
                f"{_NAME}: the prototypes of teacher_features must have shape "
                f"({prototypes}, {teacher_features.shape[2]}), got {tuple(of_teacher.shape)}"
            )
    for stack in teacher:
        checks.check_tensor(_NAME, "teacher", stack, ndim=3, layout="[views, B, K]")
        if stack.shape[2] != prototypes:
            raise ValueError(f"{_NAME}: teacher must have K = {prototypes} logits, got shape {tuple(stack.shape)}")
        checks.check_same(_NAME, "dtype", ("teacher", teacher[0]), ("teacher", stack))
        given.append(("teacher", stack))
    for name, tensor in given:
        checks.check_same(_NAME, "device", ("student", student), (name, tensor))
        if (tensor.dtype == torch.float64) != (student.dtype == torch.float64):
            raise ValueError(
                f"{_NAME}: student and {name} must both be float64 or neither, got {student.dtype} and {tensor.dtype}"
            )
        if tensor.ndim == 3 and tensor.shape[1] != images:
            raise ValueError(f"{_NAME}: {name} must have the student's B = {images}, got shape {tuple(tensor.shape)}")
    views = sum(stack.shape[0] for stack in teacher) if teacher_features is None else teacher_features.shape[0]
    for name, constant, shapes in (
        ("column_potential", column_potential, ((prototypes,), (views, prototypes))),
        ("row_potential", row_potential, ((views, images),)),
        ("image_weight", image_weight, ((images,),)),
    ):
        if constant is None:
            continue
        wanted = accumulator(student)
        if tuple(constant.shape) not in shapes or constant.dtype != wanted or constant.device != student.device:
            raise ValueError(
                f"{_NAME}: {name} must be {wanted} of shape {' or '.join(map(str, shapes))} on {student.device}, "
                f"got {constant.dtype} of shape {tuple(constant.shape)} on {constant.device}"
            )
    if chunk < 0:
        raise ValueError(f"{_NAME}: chunk must be at least 0 (0: chosen by memory), got {chunk}")


def _fake(
    student: Tensor,
    weight: Tensor,
    *,
    column_sum: bool,
    student_gradient: bool,
    weight_gradient: bool,
    **rules: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss = student.new_empty((), dtype=accumulator(student))
    return (
        loss,
        loss.new_empty(weight.shape[0] if column_sum else 0),
        student.new_empty(student.shape if student_gradient else (0,), dtype=product_dtype(student)),
        loss.new_empty(weight.shape if weight_gradient else (0,)),
    )


# factor x the sum of the images' losses [], the teacher's column sums [K] (or [0]), and the gradients of the first for
# the features [S, B, D] and the prototypes [K, D] (or [0]). chunk: images whose logits exist at a time; 0: by memory.
define(
    f"{_NAME}(Tensor student, Tensor weight, Tensor[] teacher, Tensor? teacher_features, Tensor? teacher_weight, "
    "Tensor? column_potential, Tensor? row_potential, Tensor? image_weight, *, bool normalize_weight, "
    "float student_scale, float teacher_scale, bool skip_same_view, float factor, bool column_sum, int chunk, "
    "bool student_gradient, bool weight_gradient, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    family=__package__,
    check=_check,
    fake=_fake,
)


def _setup_context(ctx: Any, tensors: Sequence, keywords: dict[str, Any], outputs: tuple) -> None:
    wanted = keywords["student_gradient"], keywords["weight_gradient"]
    if any(needs and not computed for needs, computed in zip(ctx.needs_input_grad[:2], wanted, strict=True)):
        raise RuntimeError(f"fastssl::{_NAME}: an input requires a gradient that the call does not compute")
    _, *others = outputs
    ctx.mark_non_differentiable(*others)
    ctx.set_materialize_grads(False)
    ctx.dtypes = [tensor.dtype for tensor in tensors[:2]]
    ctx.save_for_backward(*others[1:])


def _backward(ctx: Any, d_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    gradients: list[Tensor | None] = [None, None]
    if d_loss is not None:
        needed = [i for i in range(2) if ctx.needs_input_grad[i]]
        results = scaled([ctx.saved_tensors[i] for i in needed], d_loss)
        for i, gradient in zip(needed, results, strict=True):
            gradients[i] = gradient.to(ctx.dtypes[i])
    return (*gradients, *(None,) * 6)


define_gradient(_NAME, setup_context=_setup_context, backward=_backward)
