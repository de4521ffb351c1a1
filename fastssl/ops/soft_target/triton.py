"""Soft-target cross-entropy on CUDA devices: launches the kernels in ``kernels/soft_target``.

Nothing here waits for the device, reads a tensor's value or copies a view. Memory beyond inputs and outputs: 2 S + 2 T
+ S T numbers per image and chunk of columns, and a row of column sums per group of images.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
from torch import Tensor

from fastssl.kernels.soft_target.combine import combine_kernel
from fastssl.kernels.soft_target.config import tile_of
from fastssl.kernels.soft_target.gradient import gradient_kernel
from fastssl.kernels.soft_target.statistics import statistics_kernel
from fastssl.kernels.tiles import Tile

from ..layout import contiguous
from ..triton_launch import INTERPRETED, OPTIONS, capability, multiprocessors, on_device_of, unsupported_reason
from . import composed
from .triton_views import Places, Views

__all__ = ["soft_target_cross_entropy", "soft_target_cross_entropy_grad", "soft_target_step", "unsupported_reason"]

# Images are divided over programs until there are this many. In the first pass all of them run at once: eight warps
# fit on a multiprocessor even with 255 registers per thread. More, and smaller, where weights make them unequal.
PROGRAMS_PER_MULTIPROCESSOR = 8
PROGRAMS_WITH_WEIGHTS = 32
# Of `combine_kernel`: rows (an image and a student) and records' numbers that a program has in registers.
COMBINED_ROWS, COMBINED_NUMBERS, ADDED_COLUMNS = 16, 2048, 512


def soft_target_cross_entropy(
    student: list[Tensor],  # stacks of views, [s_i, B, K]; S views in all
    teacher: list[Tensor],  # stacks of views, [t_i, B, K]; T views in all
    column_potential: Tensor | None,  # [K] or [T, K]
    row_potential: Tensor | None,  # [T, B]
    weight: Tensor | None,  # [B]
    *,
    student_scale: float,
    teacher_scale: float,
    skip_same_view: bool,
    column_sum: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss [B], the students' log-sums [S, B], the teachers' [T, B], the teacher's column sums [K] or [0]; float32."""
    images, columns = student[0].shape[1:]
    device = student[0].device

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    with on_device_of(student[0]):
        places = Places.of(Views.of(student), Views.of(teacher))
        students, teachers = (len(views.offsets) for views in places.lists)
        loss, student_lse, teacher_lse = new(images), new(students, images), new(teachers, images)
        total = new(columns if column_sum else 0)
        tile = _tile("statistics", places, device)
        chunks = triton.cdiv(columns, tile.block_n)
        groups = _groups(device, images, chunks, weight is not None)
        records = new(images, chunks, 2 * students + 2 * teachers + students * teachers)
        group_sums = new(groups, columns) if column_sum else None
        potential, weight, row_potential = (contiguous(v) for v in (column_potential, weight, row_potential))
        statistics_kernel[(chunks, groups)](
            places.lists[0].base, places.lists[1].base, places.table, potential, weight, records, group_sums,
            images, columns, students, chunks, places.entries, *places.strides, student_scale, teacher_scale,
            T=teachers, T_PAD=tile.block_m, BLOCK=tile.block_n, STAGES=tile.stages, ONE_STUDENT=students == 1,
            WHOLE=columns % tile.block_n == 0, POTENTIALS=0 if potential is None else potential.ndim,
            HAS_WEIGHT=weight is not None, COLUMN_SUM=column_sum, **places.constants,
            num_warps=tile.warps, num_stages=tile.stages, **OPTIONS,
        )  # fmt: skip
        padded = triton.next_power_of_2(students)
        per_program = max(1, COMBINED_ROWS // padded)
        image_programs = triton.cdiv(images, per_program)
        column_programs = triton.cdiv(columns, ADDED_COLUMNS) if column_sum else 0
        slots = max(1, min(triton.next_power_of_2(chunks), COMBINED_NUMBERS // (per_program * padded)))
        combine_kernel[(image_programs + column_programs,)](
            records, group_sums, row_potential, weight, loss, student_lse, teacher_lse, total,
            images, columns, students, chunks, groups, image_programs, student_scale,
            T=teachers, S_PAD=padded, IMAGES=per_program, SLOTS=slots, COLUMNS=ADDED_COLUMNS,
            SKIP_SAME_VIEW=skip_same_view, HAS_ROW_POTENTIAL=row_potential is not None,
            HAS_WEIGHT=weight is not None, COLUMN_SUM=column_sum, num_warps=4, **OPTIONS,
        )  # fmt: skip
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
    inplace: bool = False,
) -> list[Tensor]:
    """Gradient for every stack of students, in their dtype; ``inplace`` writes it over them."""
    images, columns = student[0].shape[1:]
    device = student[0].device
    with on_device_of(student[0]):
        read = Views.of(student)
        gradients = read.stacks
        if not inplace:
            gradients = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in student]
        places = Places.of(read, Views.of(teacher), Views.of(gradients))
        students, teachers = len(read.offsets), len(places.lists[1].offsets)
        tile = _tile("gradient", places, device)
        chunks = triton.cdiv(columns, tile.block_n)
        potential, weight, row_potential = (contiguous(v) for v in (column_potential, weight, row_potential))
        gradient_kernel[(chunks, _groups(device, images, chunks, weight is not None))](
            *(views.base for views in places.lists), places.table, potential, row_potential, weight,
            student_lse.contiguous(), teacher_lse.contiguous(), d_loss.contiguous(),
            images, columns, students, places.entries, *places.strides, student_scale, teacher_scale,
            T=teachers, T_PAD=tile.block_m, BLOCK=tile.block_n, STAGES=tile.stages,
            WHOLE=columns % tile.block_n == 0, POTENTIALS=0 if potential is None else potential.ndim,
            SKIP_SAME_VIEW=skip_same_view, HAS_ROW_POTENTIAL=row_potential is not None,
            HAS_WEIGHT=weight is not None, ROUND=16 if INTERPRETED and read.base.dtype == torch.bfloat16 else 0,
            **places.constants, num_warps=tile.warps, num_stages=tile.stages, **OPTIONS,
        )  # fmt: skip
    if inplace:  # a stack that had to be copied to be read
        for stack, written in zip(student, gradients, strict=True):
            if written is not stack:
                stack.copy_(written)
        return list(student)
    return list(gradients)


soft_target_step = partial(composed.soft_target_step, soft_target_cross_entropy, soft_target_cross_entropy_grad)


def _tile(kernel: str, places: Places, device: torch.device) -> Tile:
    students, teachers = (len(views.offsets) for views in places.lists[:2])
    padded = triton.next_power_of_2(teachers)
    return tile_of(kernel, students, teachers, padded, places.aligned, capability(device)[0])


def _groups(device: torch.device, images: int, chunks: int, weighted: bool) -> int:
    """Groups into which the images are divided, each with a program per chunk of columns."""
    wanted = (PROGRAMS_WITH_WEIGHTS if weighted else PROGRAMS_PER_MULTIPROCESSOR) * multiprocessors(device)
    return max(1, min(images, wanted // chunks))
