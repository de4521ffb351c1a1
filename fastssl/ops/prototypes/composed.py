"""The prototype layer and the loss, a chunk of images at a time, on any backend's soft-target functions."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..precision import accumulator
from .op import product_dtype

# What the logits of a chunk may take when the caller does not say. Fewer images and the products' other operand, all
# prototypes, is read too often.
CHUNK_BYTES = {"cpu": 32 << 20}
CHUNK_BYTES_ELSEWHERE = 256 << 20
BLOCK_NUMBERS = 1 << 20  # of prototypes that are divided by their length at a time
SMALLEST_LENGTH = 1e-12  # by which a prototype is divided, as in torch.nn.functional.normalize


def prototype_cross_entropy(
    losses: ModuleType,  # a backend of the soft-target family
    student: Tensor,  # features [S, B, D]
    weight: Tensor,  # prototypes [K, D]
    teacher: list[Tensor],  # stacks of logits [t_i, B, K], or empty
    teacher_features: Tensor | None,  # [T, B, D']
    teacher_weight: Tensor | None,  # [K, D'], None: the students'
    column_potential: Tensor | None,  # [K] or [T, K]
    row_potential: Tensor | None,  # [T, B]
    image_weight: Tensor | None,  # [B]
    *,
    normalize_weight: bool,
    factor: float,
    column_sum: bool,
    chunk: int,
    student_gradient: bool,
    weight_gradient: bool,
    **rules: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``factor`` times the sum of the images' losses [], column sums, and the gradients [S, B, D] and [K, D].

    A chunk's logits are a product in a buffer that all chunks share; the loss puts their gradient in their place; two
    more products take it to the features and add it to the prototypes' gradient.
    """
    (views, images, _), prototypes = student.shape, weight.shape[0]
    features = student.to(product_dtype(student))
    if image_weight is not None:  # 0 times NaN would reach the prototypes' gradient
        features = torch.where((image_weight == 0)[:, None], 0.0, features)
    unit = _unit_rows(weight, normalize_weight, features.dtype)
    teachers = 0
    if teacher_features is not None:
        teachers = teacher_features.shape[0]
        teacher_features = teacher_features.to(product_dtype(teacher_features))
        teacher_unit = unit
        if teacher_weight is not None or teacher_features.dtype != unit.dtype:
            of_teacher = weight if teacher_weight is None else teacher_weight
            teacher_unit = _unit_rows(of_teacher, normalize_weight, teacher_features.dtype)
    size = min(images, chunk or _images_per_chunk(features, views + teachers, prototypes))
    logits = features.new_empty(views * size, prototypes)
    teacher_logits = (features if teacher_features is None else teacher_features).new_empty(teachers * size, prototypes)

    loss = torch.zeros((), dtype=accumulator(student), device=student.device)
    total = loss.new_zeros(prototypes if column_sum else 0)
    d_features = features.new_empty(features.shape if student_gradient else (0,))
    d_unit = loss.new_zeros(weight.shape if weight_gradient else (0,))
    for start in range(0, images, size):
        here = slice(start, min(start + size, images))
        rows = features[:, here]
        targets = [stack[:, here] for stack in teacher]
        if teacher_features is not None:
            targets = [_product(teacher_features[:, here], teacher_unit, teacher_logits)]
        inputs = (
            [_product(rows, unit, logits)],
            targets,
            column_potential,
            None if row_potential is None else row_potential[:, here],
            None if image_weight is None else image_weight[here],
        )
        if not (student_gradient or weight_gradient):
            of_images, _, _, part = losses.soft_target_cross_entropy(*inputs, column_sum=column_sum, **rules)
            loss += factor * of_images.sum()
            total += part
            continue
        of_chunk, part, (gradient,) = losses.soft_target_step(
            *inputs, factor=factor, column_sum=column_sum, inplace=True, **rules
        )
        loss += of_chunk
        total += part
        if student_gradient:
            d_features[:, here] = gradient @ unit
        if weight_gradient:
            _add_product(d_unit, gradient.flatten(0, 1).T, rows.flatten(0, 1))
    if weight_gradient and normalize_weight:
        _through_length(d_unit, weight)
    return loss, total, d_features, d_unit


def _images_per_chunk(features: Tensor, views: int, prototypes: int) -> int:
    room = CHUNK_BYTES.get(features.device.type, CHUNK_BYTES_ELSEWHERE)
    return max(1, room // (views * prototypes * features.element_size()))


def _product(features: Tensor, unit: Tensor, buffer: Tensor) -> Tensor:
    """Logits [V, n, K] of features [V, n, D], in the buffer."""
    rows = features.flatten(0, 1)
    return torch.mm(rows, unit.T, out=buffer[: rows.shape[0]]).view(*features.shape[:2], -1)


def _unit_rows(weight: Tensor, normalize: bool, dtype: torch.dtype) -> Tensor:
    """The prototypes that are multiplied with, [K, D] in ``dtype``, rounded once."""
    if not normalize:
        return weight.to(dtype)
    unit = torch.empty_like(weight, dtype=dtype, memory_format=torch.contiguous_format)
    for rows in _blocks(weight):
        unit[rows] = weight[rows] / _lengths(weight[rows]).clamp(min=SMALLEST_LENGTH)
    return unit


def _through_length(d_unit: Tensor, weight: Tensor) -> None:
    """From the gradient for the prototypes of length 1 to that for the prototypes, in place."""
    for rows in _blocks(weight):
        length = _lengths(weight[rows])
        divisor = length.clamp(min=SMALLEST_LENGTH)
        unit, gradient = weight[rows] / divisor, d_unit[rows]
        radial = torch.where(length > SMALLEST_LENGTH, (gradient * unit).sum(1, keepdim=True), 0.0)
        gradient.addcmul_(unit, radial, value=-1.0).div_(divisor)


def _blocks(weight: Tensor) -> Iterator[slice]:
    """Rows for which several temporaries are small beside all of them."""
    step = max(1, BLOCK_NUMBERS // weight.shape[1])
    return (slice(start, start + step) for start in range(0, weight.shape[0], step))


def _lengths(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=accumulator(rows))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, where the total may be wider: it takes part in many sums."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        total += torch.mm(a, b, out_dtype=total.dtype)
    else:
        total += a @ b
