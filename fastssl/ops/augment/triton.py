"""Random views on CUDA devices: launches the kernels in ``kernels/augment``.

Nothing here waits for the device or reads a tensor's value. Memory beyond the views: where steps need whole views
(``passes`` is not 0), two buffers in fp16 of ``BUFFER_BYTES`` each, or of one view's size if that is more.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from fastssl.kernels.augment.barriers import barrier_kernel, blur_rows_kernel
from fastssl.kernels.augment.config import PARTS, TILES
from fastssl.kernels.augment.resample import resample_kernel
from fastssl.kernels.augment.sampling import draw_kernel
from fastssl.kernels.tiles import Tile

from ..triton_launch import INTERPRETED, OPTIONS, capability, on_device_of
from ..triton_launch import unsupported_reason as _unsupported_reason
from ..triton_table import filled_table
from .record import ENTRY, HEADER, STEP, record_length, steps_of

__all__ = ["augment_views", "unsupported_reason", "view_parameters"]

# Views of more images take turns in the buffers.
BUFFER_BYTES = 256 << 20
MOST_IMAGES = 65535  # along the second axis of a grid
CHANNELS_AT_ONCE = 4
FILLED_AT_MOST = 96  # numbers of a table that a kernel writes: a program of eight entries
LEAST_STEPS = 16  # a record's steps are counted in blocks of a power of two: few kernels serve all records
# fp16 rounds by far less than a grey level; the interpreter has to show that the arithmetic is right.
BUFFER_DTYPE = torch.float32 if INTERPRETED else torch.float16


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot serve here; None if they can. Inputs are integers: checked by the operators."""
    return _unsupported_reason(device_type, torch.float32)


def view_parameters(
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
) -> Tensor:
    """See ``reference.view_parameters``."""
    batch, device = len(index), index.device
    out = torch.empty((batch, record_length(steps_of(program))), dtype=torch.float32, device=device)
    tile = _tile("draw", 1, device)
    with on_device_of(index):
        draw_kernel[(triton.cdiv(batch, tile.block_n),)](
            index.contiguous(), None if sizes is None else sizes.contiguous(),
            _table(_bits(program), device).view(torch.float64), out,
            batch, len(program) // ENTRY, out.shape[1], height, width, out_height, out_width,
            seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, epoch, view,
            HAS_SIZES=sizes is not None, BLOCK=tile.block_n, num_warps=tile.warps,
            enable_fp_fusion=False,  # the bits of the definition, where speed is of no account
        )  # fmt: skip
    return out


def augment_views(
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
) -> list[Tensor]:
    """See ``reference.augment_views``."""
    first = images[0]
    with on_device_of(first):
        if first.ndim == 4:
            source = first
        else:
            rows = ((image.data_ptr(), *image.shape[-2:], *image.stride()) for image in images)
            source = _table([number for row in rows for number in row], first.device)
        return [
            _view(images, source, records.contiguous(), (height, width), cubic, rounds, mean, std, dtype)
            for records, height, width, cubic, rounds in zip(parameters, heights, widths, bicubic, passes, strict=True)
        ]


def _view(
    images: Sequence[Tensor],
    source: Tensor,  # the stack, or the table of a list
    records: Tensor,
    size: tuple[int, int],
    bicubic: bool,
    passes: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """[B, C, height, width] of one view."""
    first, device = images[0], images[0].device
    stacked = first.ndim == 4
    batch, channels, steps = len(records), first.shape[-3], (records.shape[1] - HEADER) // STEP
    passes = steps if passes < 0 else min(passes, steps)
    out = torch.empty((batch, channels, *size), dtype=dtype, device=device)
    plane = size[0] * size[1]
    numbers = min(channels, CHANNELS_AT_ONCE) * plane
    together = min(batch, MOST_IMAGES, max(1, BUFFER_BYTES // (numbers * BUFFER_DTYPE.itemsize)) if passes else batch)
    buffers = torch.empty(2 * together * numbers if passes else 0, dtype=BUFFER_DTYPE, device=device)
    sums = torch.empty(2 * together * PARTS if passes else 0, dtype=torch.float32, device=device)
    # Sizes and strides of a list's images are in the table.
    layout = (*first.shape[-2:], *first.stride()) if stacked else (0,) * 6
    rounding = 16 if INTERPRETED and dtype == torch.bfloat16 else 0
    for group in range(triton.cdiv(channels, CHANNELS_AT_ONCE)):
        some = slice(CHANNELS_AT_ONCE * group, CHANNELS_AT_ONCE * (group + 1))
        normalisation = _normalisation(mean[some], std[some])
        constants = {
            "STEPS": max(LEAST_STEPS, triton.next_power_of_2(steps)),
            "CHANNELS": len(mean[some]),
            **OPTIONS,
        }
        ending = {"COLORS": channels if channels in (1, 3) else 0, "ROUND": rounding}
        resample, rows, barrier = (_tile(kernel, channels, device) for kernel in ("resample", "blur_rows", "barrier"))
        parts = _parts(size, resample, barrier)
        for start in range(0, batch, together):
            count = min(together, batch - start)
            grid = parts, count
            resample_kernel[grid](
                source, records, buffers, sums, out, start, group, channels, steps, passes, *layout, *size, plane,
                *normalisation, RAGGED=not stacked, BICUBIC=bicubic, **_blocks(resample), **ending, **constants,
            )  # fmt: skip
            for number in range(1, passes + 1):
                blur_rows_kernel[grid](
                    records, buffers, number, start, count, steps, passes, *size, plane, **_blocks(rows), **constants
                )
                barrier_kernel[grid](
                    records, buffers, sums, out, number, start, count, group, channels, steps, passes, *size, plane,
                    *normalisation, PARTS=PARTS, **_blocks(barrier), **ending, **constants,
                )  # fmt: skip
    return out


def _tile(kernel: str, channels: int, device: torch.device) -> Tile:
    tile = TILES.tile_for(kernel, "records" if kernel == "draw" else "pixels", channels, capability(device)[0])
    assert tile is not None, "the table serves any number of channels"
    return tile


def _parts(size: tuple[int, int], *tiles: Tile) -> int:
    """Programs that share a view, the same number for all kernels: each leaves a number for the next one's mean."""
    return min(PARTS, max(triton.cdiv(size[0], tile.block_m) * triton.cdiv(size[1], tile.block_n) for tile in tiles))


def _blocks(tile: Tile) -> dict[str, int]:
    return {"BLOCK_Y": tile.block_m, "BLOCK_X": tile.block_n, "num_warps": tile.warps}


def _normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[float, ...]:
    """Four means and four factors: of up to four channels, padded."""
    rest = (0.0,) * (CHANNELS_AT_ONCE - len(mean))
    return (*map(float, mean), *rest, *(1 / s for s in std), *rest)


def _bits(numbers: Sequence[float]) -> list[int]:
    """Doubles as int64 of the same bits."""
    return list(struct.unpack(f"{len(numbers)}q", struct.pack(f"{len(numbers)}d", *numbers)))


def _table(numbers: Sequence[int], device: torch.device) -> Tensor:
    """int64 numbers on the device. Few are written by a kernel from its arguments, and in a CUDA graph all must be."""
    if len(numbers) > FILLED_AT_MOST and not (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        return torch.tensor(numbers, pin_memory=device.type == "cuda").to(device, non_blocking=True)
    return filled_table(numbers, device)
