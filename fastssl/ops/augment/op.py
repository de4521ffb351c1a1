"""The operators under `fastssl.augment`: draw the records of a view, and make the views of a batch from records."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..registry import define, forbid_gradient
from .record import CROPS, ENTRY, HEADER, STEP, Kind, entries, record_length, steps_of

OUTPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_DRAW, _VIEWS = "view_parameters", "augment_views"


def _check_draw(
    index: Tensor,
    sizes: Tensor | None,
    *,
    height: int,
    width: int,
    out_height: int,
    out_width: int,
    seed: int,
    epoch: int,
    view: int,
    program: Sequence[float],
) -> None:
    checks.check_samples(_DRAW, index, epoch=epoch, view=view)
    if sizes is not None and (
        sizes.dtype != torch.int64 or sizes.shape != (len(index), 2) or sizes.device != index.device
    ):
        raise ValueError(
            f"{_DRAW}: sizes must be int64 ({len(index)}, 2) on {index.device}, "
            f"got {sizes.dtype} {tuple(sizes.shape)} on {sizes.device}"
        )
    for name, value in (("height", height), ("width", width), ("out_height", out_height), ("out_width", out_width)):
        if not 1 <= value < 2**24 and (sizes is None or name.startswith("out")):
            raise ValueError(f"{_DRAW}: {name} must be in [1, 2^24), got {value}")
    check_program(tuple(program))


@cache
def check_program(program: tuple[float, ...]) -> None:
    """Entries that every backend can follow: known kinds, one crop, first, and groups that exist.

    Raises:
        ValueError: saying which entry is wrong.
    """
    if not program or len(program) % ENTRY:
        raise ValueError(f"{_DRAW}: program must hold entries of {ENTRY} numbers, got {len(program)} numbers")
    kinds = {int(kind) for kind in Kind}
    for number, start in enumerate(range(0, len(program), ENTRY)):
        if program[start] not in kinds:
            raise ValueError(f"{_DRAW}: entry {number} of program has the unknown kind {program[start]}")
    rows = entries(program)
    for number, (kind, _, group, _) in enumerate(rows):
        if (kind in CROPS) != (number == 0):
            raise ValueError(f"{_DRAW}: a program starts with its only crop, entry {number} is {kind.name}")
        if not 0 <= group < len(rows):
            raise ValueError(f"{_DRAW}: entry {number} of program has the group {group}, there are {len(rows)} entries")


def _fake_draw(index: Tensor, sizes: Tensor | None, *, program: Sequence[float], **arguments: Any) -> Tensor:
    return index.new_empty(len(index), record_length(steps_of(program)), dtype=torch.float32)


def _check_views(
    images: Sequence[Tensor],
    parameters: Sequence[Tensor],
    *,
    heights: Sequence[int],
    widths: Sequence[int],
    bicubic: Sequence[bool],
    passes: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> None:
    if not images:
        raise ValueError(f"{_VIEWS}: images must not be empty")
    first = images[0]
    stacked = first.ndim == 4
    if stacked and len(images) > 1:
        raise ValueError(
            f"{_VIEWS}: images must be one stack [B, C, H, W] or a list of [C, H, W], got {len(images)} stacks"
        )
    for image in images:
        if image.dtype != torch.uint8:
            raise TypeError(f"{_VIEWS}: images must be uint8, got {image.dtype}")
        if image.ndim not in (3, 4) or image.ndim != first.ndim or 0 in image.shape:
            raise ValueError(f"{_VIEWS}: images must be [B, C, H, W] or a list of [C, H, W], got {tuple(image.shape)}")
        if image.shape[-3] != first.shape[-3] or image.device != first.device:
            raise ValueError(
                f"{_VIEWS}: images must have the same channels and device, got {image.shape[-3]} on {image.device} "
                f"and {first.shape[-3]} on {first.device}"
            )
        if image.layout != torch.strided:
            raise TypeError(f"{_VIEWS}: images must be dense tensors, got layout {image.layout}")
    batch, channels = len(first) if stacked else len(images), first.shape[-3]
    if not parameters:
        raise ValueError(f"{_VIEWS}: parameters must hold a tensor for each view, got none")
    for name, values in (("heights", heights), ("widths", widths), ("bicubic", bicubic), ("passes", passes)):
        if len(values) != len(parameters):
            raise ValueError(
                f"{_VIEWS}: {name} must have an entry for each of {len(parameters)} views, got {len(values)}"
            )
    for name, sides in (("heights", heights), ("widths", widths)):
        if not all(1 <= side < 2**15 for side in sides):
            raise ValueError(f"{_VIEWS}: {name} must be in [1, 32768), got {list(sides)}")
    for records in parameters:
        if records.dtype != torch.float32 or records.ndim != 2 or len(records) != batch:
            raise ValueError(
                f"{_VIEWS}: parameters must be float32 [{batch}, {HEADER} + {STEP} steps] per view, "
                f"got {records.dtype} {tuple(records.shape)}"
            )
        if records.shape[1] < HEADER or (records.shape[1] - HEADER) % STEP:
            raise ValueError(
                f"{_VIEWS}: parameters must have {HEADER} + {STEP} steps numbers per image, got {records.shape[1]}"
            )
        if records.device != first.device:
            raise ValueError(f"{_VIEWS}: parameters must be on {first.device} like images, got {records.device}")
    for name, numbers in (("mean", mean), ("std", std)):
        if len(numbers) != channels:
            raise ValueError(f"{_VIEWS}: {name} must have {channels} numbers, one per channel, got {len(numbers)}")
    if not all(value > 0 for value in std):
        raise ValueError(f"{_VIEWS}: std must be above 0, got {list(std)}")
    if dtype not in OUTPUT_DTYPES:
        raise TypeError(f"{_VIEWS}: dtype must be float32, bfloat16 or float16, got {dtype}")


def _fake_views(
    images: Sequence[Tensor],
    parameters: Sequence[Tensor],
    *,
    heights: Sequence[int],
    widths: Sequence[int],
    dtype: torch.dtype,
    **arguments: Any,
) -> list[Tensor]:
    batch, channels = parameters[0].shape[0], images[0].shape[-3]
    return [images[0].new_empty(batch, channels, h, w, dtype=dtype) for h, w in zip(heights, widths, strict=True)]


define(
    f"{_DRAW}(Tensor index, Tensor? sizes, *, SymInt height, SymInt width, int out_height, int out_width, SymInt seed, "
    "SymInt epoch, int view, float[] program, str backend) -> Tensor",
    family=__package__,
    check=_check_draw,
    fake=_fake_draw,
    dtypes=(torch.int64,),
)
define(
    f"{_VIEWS}(Tensor[] images, Tensor[] parameters, *, int[] heights, int[] widths, bool[] bicubic, int[] passes, "
    "float[] mean, float[] std, ScalarType dtype, str backend) -> Tensor[]",
    family=__package__,
    check=_check_views,
    fake=_fake_views,
    dtypes=(torch.uint8,),
)
forbid_gradient(_VIEWS, "views carry no gradient to parameters or images")
