"""Prototype layer and loss in plain PyTorch: the definition, which stores all logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import accumulator
from ..soft_target import reference as losses
from .op import product_dtype


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    return None


def prototype_cross_entropy(
    student: Tensor,  # features [S, B, D]
    weight: Tensor,  # prototypes [K, D]
    teacher: list[Tensor],  # stacks of logits [t_i, B, K], or empty
    teacher_features: Tensor | None,  # [T, B, D']
    teacher_weight: Tensor | None,  # [K, D'], None: the students'
    column_potential: Tensor | None,  # [K] or [T, K]
    row_potential: Tensor | None,  # [T, B]
    image_weight: Tensor | None,  # [B]; images of weight 0 are left out
    *,
    normalize_weight: bool,  # prototypes are divided by their length
    factor: float,
    column_sum: bool,
    chunk: int,
    student_gradient: bool,
    weight_gradient: bool,
    **rules: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``factor`` times the sum of the images' losses [], column sums, and the gradients [S, B, D] and [K, D]."""
    features = student.to(product_dtype(student))
    if image_weight is not None:
        features = features.masked_fill((image_weight == 0)[:, None], 0.0)
    unit = _prototypes(weight, normalize_weight)
    logits = features @ unit.to(features.dtype).T  # [S, B, K]
    if teacher_features is not None:
        teacher_features = teacher_features.to(product_dtype(teacher_features))
        of_teacher = unit if teacher_weight is None else _prototypes(teacher_weight, normalize_weight)
        teacher_unit = of_teacher.to(teacher_features.dtype)
        teacher = [teacher_features @ teacher_unit.T]
    loss, total, (d_logits,) = losses.soft_target_step(
        [logits], teacher, column_potential, row_potential, image_weight, factor=factor, column_sum=column_sum, **rules
    )
    d_features, d_weight = features.new_empty(0), loss.new_empty(0)
    if student_gradient:
        d_features = d_logits @ unit.to(features.dtype)
    if weight_gradient:
        d_weight = (d_logits.flatten(0, 1).T @ features.flatten(0, 1)).to(loss.dtype)
        if normalize_weight:  # what F.normalize's backward does
            length = weight.to(loss.dtype).norm(dim=1, keepdim=True)
            radial = torch.where(length > 1e-12, (d_weight * unit).sum(1, keepdim=True), 0.0)
            d_weight = (d_weight - radial * unit) / length.clamp(min=1e-12)
    return loss, total, d_features, d_weight


def _prototypes(weight: Tensor, normalize: bool) -> Tensor:
    wide = weight.to(accumulator(weight))
    return F.normalize(wide, dim=1) if normalize else wide
