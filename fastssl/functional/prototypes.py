"""The prototype layer fused with the cross-entropy against soft targets: the last layer of DINO, iBOT, SwAV and MSN."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .. import backends, ops  # noqa: F401 - ops registers the operators
from ..ops import checks
from ..ops.precision import accumulator
from .precision import autocast, without_autocast
from .soft_target import Views, _stacks


def prototype_cross_entropy(
    student: Views,
    weight: Tensor,
    teacher: Views | None = None,
    *,
    teacher_features: Views | None = None,
    teacher_weight: Tensor | None = None,
    normalize_weight: bool = True,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    column_potential: Tensor | None = None,
    row_potential: Tensor | None = None,
    skip_same_view: bool = True,
    image_weight: Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    return_column_sum: bool = False,
    chunk: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Cross-entropy of students against soft targets, from features instead of logits.

    :func:`soft_target_cross_entropy` of the logits ``student @ prototypes.T``, where the prototypes are the rows of
    ``weight`` divided by their length: the weight-normalised last layer of DINO's head (Caron et al., 2021) with its
    magnitude fixed at 1. Logits exist of a chunk of images at a time; then their gradient takes their place and goes
    on to features and prototypes. So the [S, B, K] logits never exist, neither does their gradient, and memory is a
    few times the size of the prototypes. The gradients are computed in the forward pass.

    Args:
        student: features of S views, [S, B, D], or a sequence of views [B, D] (or of stacks of views); float32,
            bfloat16, float16 or float64. Gradients reach them.
        weight: the prototypes, [K, D]; its dtype may differ, float64 apart. A gradient reaches it, also through the
            division. Logits are computed in the features' dtype, under autocast in that of autocast; for float16 in
            float32, because their gradients are too small for it.
        teacher: the teacher's logits, T views [T, B, K] or a sequence; a constant.
        teacher_features: instead of them the teacher's features, [T, B, D'] or a sequence; constants too.
        teacher_weight: the teacher's prototypes, [K, D']; None: ``weight``.
        normalize_weight: divide the prototypes, the teacher's too, by their length.
        student_temperature: above 0.
        teacher_temperature: above 0.
        column_potential: [K] or [T, K], as in :func:`soft_target_cross_entropy`.
        row_potential: [T, B], likewise.
        skip_same_view: leave out the pairs of a teacher view t and a student view s = t.
        image_weight: of each image, [B]. Images with weight 0 take no part.
        reduction: "mean" over pairs and images, or "sum".
        return_column_sum: return also the sum of the teacher's logits over views and images (of non-zero weight).
        chunk: images whose logits exist at a time; None: as many as 32 MB hold on a CPU and 256 MB elsewhere.

    Returns:
        The loss, [], float32 (float64 for float64); with ``return_column_sum`` also the sums, [K].

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.

    Example:
        >>> loss = prototype_cross_entropy(
        ...     student_features, student_head.weight, teacher_features=teacher_features,
        ...     teacher_weight=teacher_head.weight, column_potential=center / 0.04,
        ... )
    """
    name = "prototype_cross_entropy"
    features = _features(name, "student", student)
    checks.check_tensor(name, "weight", weight, ndim=2, layout="[K, D]")
    checks.check_choice(name, "reduction", reduction, ("mean", "sum"))
    if (teacher is None) == (teacher_features is None):
        got = "neither" if teacher is None else "both"
        raise ValueError(f"{name}: either teacher (logits) or teacher_features must be given, got {got}")
    if teacher_weight is not None and teacher_features is None:
        raise ValueError(f"{name}: teacher_weight is only for teacher_features, got it with teacher")
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"{name}: chunk must be None or a number of images, at least 1, got {chunk!r}")
    targets = [] if teacher is None else [stack.detach() for stack in _stacks(name, "teacher", teacher)]
    of_teacher = None
    views, teachers = features.shape[0], sum(stack.shape[0] for stack in targets)
    if teacher_features is not None:
        of_teacher = _features(name, "teacher_features", teacher_features).detach()
        teachers = of_teacher.shape[0]
    pairs = views * teachers - (min(views, teachers) if skip_same_view else 0)
    if pairs == 0:
        raise ValueError(
            f"{name}: with skip_same_view, student and teacher must have at least one pair of different views, "
            f"got {views} and {teachers} views"
        )
    constants = []
    for constant_name, constant in (
        ("column_potential", column_potential),
        ("row_potential", row_potential),
        ("image_weight", image_weight),
    ):
        if constant is not None:
            checks.check_number_tensor(name, constant_name, constant)
            constant = constant.detach().to(accumulator(features))
        constants.append(constant)
    # What will require a gradient is not known while a graph is exported.
    exporting, enabled = torch.compiler.is_exporting(), torch.is_grad_enabled()
    with without_autocast(features):
        loss, total, _, _ = torch.ops.fastssl.prototype_cross_entropy(
            features,
            weight,
            targets,
            of_teacher,
            None if teacher_weight is None else teacher_weight.detach(),
            *constants,
            normalize_weight=bool(normalize_weight),
            student_scale=checks.check_temperature(name, "student_temperature", student_temperature),
            teacher_scale=checks.check_temperature(name, "teacher_temperature", teacher_temperature),
            skip_same_view=bool(skip_same_view),
            factor=1.0 if reduction == "sum" else 1.0 / (pairs * features.shape[1]),
            column_sum=bool(return_column_sum),
            chunk=chunk or 0,
            student_gradient=exporting or (enabled and features.requires_grad),
            weight_gradient=exporting or (enabled and weight.requires_grad),
            backend=backends.forced(),
        )
    return (loss, total) if return_column_sum else loss


def _features(function: str, name: str, views: Views) -> Tensor:
    """Views as one tensor [views, B, D]: features are small beside their logits."""
    stacks = _stacks(function, name, views, last="D")
    for stack in stacks:
        checks.check_same(function, "dtype", (name, stacks[0]), (name, stack))
        checks.check_same(function, "device", (name, stacks[0]), (name, stack))
        if stack.shape[1:] != stacks[0].shape[1:]:
            raise ValueError(
                f"{function}: every view of {name} must have the same B and D, got {tuple(stacks[0].shape[1:])} and "
                f"{tuple(stack.shape[1:])}"
            )
    return autocast(stacks[0] if len(stacks) == 1 else torch.cat(stacks))
