"""Moves of masked image modelling on CUDA devices: launches the kernels in ``kernels/masking``.

Nothing here waits for the device or reads a tensor's value. Memory beyond the results: 4 bytes per index, and sums of
groups of images. Rows too long to sort in one program, images with more than four channels and float64 results are left
to PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from fastssl.kernels.masking.config import TILES
from fastssl.kernels.masking.masks import chain_kernel, masks_kernel
from fastssl.kernels.masking.moves import (
    gather_grad_kernel,
    gather_kernel,
    lost_kernel,
    patches_kernel,
    sums_kernel,
    unshuffle_grad_kernel,
    unshuffle_kernel,
)
from fastssl.kernels.tiles import Tile

from .. import triton_launch
from ..layout import contiguous, unit_stride
from ..triton_launch import OPTIONS, capability, multiprocessors, on_device_of
from . import chunked
from .reference import split_positions

LONGEST_SORTED = 1024
CHANNELS = 4  # of images, at most
# Images are divided over groups until there are this many programs.
PROGRAMS_PER_MULTIPROCESSOR = 32


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot serve such tensors here; None if they can. Images and indices are integers."""
    return triton_launch.unsupported_reason(
        device_type, torch.float32 if dtype in (torch.uint8, torch.int64) else dtype
    )


def random_masks(
    index: Tensor,  # int64 [B]
    *,
    length: int,
    keep: int,
    seed: int,
    epoch: int,
    view: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``reference.random_masks``."""
    if length > LONGEST_SORTED:
        return chunked.random_masks(index, length=length, keep=keep, seed=seed, epoch=epoch, view=view)
    return _masks(None, index, length, keep, view, epoch, seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)


def masks_from_noise(noise: Tensor, *, keep: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``reference.masks_from_noise``."""
    if noise.shape[1] > LONGEST_SORTED:
        return chunked.masks_from_noise(noise, keep=keep)
    return _masks(noise, None, noise.shape[1], keep, 0, 0, 0, 0)


def _masks(
    noise: Tensor | None, index: Tensor | None, length: int, keep: int, *key: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    given = noise if index is None else index
    assert given is not None
    batch, device = len(given), given.device
    kept, masked, restore = (
        torch.empty(batch, n, dtype=torch.int64, device=device) for n in (keep, length - keep, length)
    )
    mask = torch.empty(batch, length, device=device)
    tile = _tile("sort", "any", length, device)
    with on_device_of(given):
        masks_kernel[(batch,)](
            contiguous(noise), contiguous(index), kept, masked, restore, mask, length, keep, *key,
            BLOCK=min(tile.block_n, triton.next_power_of_2(length)), DRAWN=noise is None, num_warps=tile.warps,
            **OPTIONS,
        )  # fmt: skip
    return kept, masked, restore, mask


def visible_patches(
    images: Tensor,  # [B, C, H, W]
    ids: Tensor,  # int64 [B, K]
    *,
    patch_height: int,
    patch_width: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """See ``reference.visible_patches``."""
    channels, height, width = images.shape[1:]
    if channels > CHANNELS or dtype == torch.float64:
        return chunked.visible_patches(
            images, ids, patch_height=patch_height, patch_width=patch_width, mean=mean, std=std, dtype=dtype
        )
    numbers, columns = channels * patch_height * patch_width, width // patch_width
    out = torch.empty(*ids.shape, numbers, dtype=dtype, device=images.device)
    unit = 255 if images.dtype == torch.uint8 else 1
    missing = [0.0] * (CHANNELS - channels)
    means = [unit * value for value in mean] + missing
    factors = [1 / (unit * value) for value in std] + missing
    tile = _tile("patches", "any", numbers, images.device)
    with on_device_of(images):
        patches_kernel[(ids.numel(), triton.cdiv(numbers, tile.block_n))](
            images, ids.contiguous(), out, ids.shape[1], numbers, height // patch_height * columns, columns,
            *images.stride(), *means, *factors,
            HEIGHT=patch_height, WIDTH=patch_width, BLOCK=tile.block_n, num_warps=tile.warps, **OPTIONS,
        )  # fmt: skip
    return out


def gather_tokens(
    x: Tensor,  # [B, L, D]
    ids: Tensor,  # int64 [B, K]
    pos: Tensor | None,  # [L or P + L, D]
    prefix: Tensor | None,  # [P, D]
    *,
    dtype: torch.dtype,
) -> Tensor:
    """See ``reference.gather_tokens``."""
    (batch, length, dim), kept = x.shape, ids.shape[1]
    before = 0 if prefix is None else prefix.shape[0]
    x = unit_stride(x)
    positions, added = split_positions(pos, length)
    out = torch.empty(batch, before + kept, dim, dtype=dtype, device=x.device)
    tile = _move_tile("move", x, dim)
    with on_device_of(x):
        gather_kernel[(batch, triton.cdiv(before + kept, tile.block_m), triton.cdiv(dim, tile.block_n))](
            x, ids.contiguous(), positions, contiguous(prefix), added, out,
            length, kept, before, dim, x.stride(0), x.stride(1), **_constants(tile),
            HAS_POS=positions is not None, HAS_PREFIX=before > 0, HAS_PREFIX_POS=before > 0 and added is not None,
        )  # fmt: skip
    return out


def gather_tokens_grad(
    gradient: Tensor,  # [B, P + K, D]
    ids: Tensor,
    *,
    length: int,
    prefix: int,
    dtype: torch.dtype,
    for_tokens: bool,
    for_positions: bool,
) -> tuple[Tensor, Tensor]:
    """See ``reference.gather_tokens_grad``."""
    (batch, _, dim), kept, device = gradient.shape, ids.shape[1], gradient.device
    gradient = unit_stride(gradient)
    dx = torch.empty((batch, length, dim) if for_tokens else (0,), dtype=dtype, device=device)
    wanted = prefix + (length if for_positions else 0)
    rows = prefix + length if for_tokens else wanted
    sums = torch.empty(wanted, dim, dtype=torch.float32, device=device)
    if rows == 0:
        return dx, sums
    tile = _move_tile("gradient", gradient, dim)
    blocks, strips = triton.cdiv(rows, tile.block_m), triton.cdiv(dim, tile.block_n)
    groups, per_group = _groups(batch, blocks * strips, device)
    parts = sums if groups == 1 else torch.empty(groups, wanted, dim, dtype=torch.float32, device=device)
    with on_device_of(gradient):
        first, later = _chains(ids, length)
        gather_grad_kernel[(blocks, strips, groups)](
            gradient, first, later, dx, parts, length, kept, prefix, dim, batch, per_group, wanted,
            gradient.stride(0), gradient.stride(1), **_constants(tile), FOR_TOKENS=for_tokens, FOR_SUMS=wanted > 0,
        )  # fmt: skip
        if groups > 1:
            _add_parts(parts, sums)
    return dx, sums


def unshuffle_tokens(
    x: Tensor,  # [B, P + K, D]
    restore: Tensor,  # int64 [B, L]
    mask_token: Tensor,  # [1, D]
    pos: Tensor | None,  # [L or P + L, D]
    *,
    prefix: int,
    dtype: torch.dtype,
) -> Tensor:
    """See ``reference.unshuffle_tokens``."""
    (batch, rows, dim), length = x.shape, restore.shape[1]
    x = unit_stride(x)
    positions, added = split_positions(pos, length)
    out = torch.empty(batch, prefix + length, dim, dtype=dtype, device=x.device)
    tile = _move_tile("move", x, dim)
    with on_device_of(x):
        unshuffle_kernel[(batch, triton.cdiv(prefix + length, tile.block_m), triton.cdiv(dim, tile.block_n))](
            x, restore.contiguous(), mask_token.contiguous(), positions, added, out,
            length, rows - prefix, prefix, dim, x.stride(0), x.stride(1), **_constants(tile),
            HAS_POS=positions is not None, HAS_PREFIX_POS=added is not None,
        )  # fmt: skip
    return out


def unshuffle_tokens_grad(
    gradient: Tensor,  # [B, P + L, D]
    restore: Tensor,
    *,
    keep: int,
    prefix: int,
    dtype: torch.dtype,
    for_tokens: bool,
    for_mask: bool,
    for_positions: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``reference.unshuffle_tokens_grad``."""
    (batch, rows, dim), length, device = gradient.shape, restore.shape[1], gradient.device
    gradient, restore = unit_stride(gradient), restore.contiguous()
    dx = torch.empty((batch, prefix + keep, dim) if for_tokens else (0,), dtype=dtype, device=device)
    dmask = torch.empty(1 if for_mask else 0, dim, dtype=torch.float32, device=device)
    sums = torch.empty(rows if for_positions else 0, dim, dtype=torch.float32, device=device)
    tile = _move_tile("gradient", gradient, dim)
    blocks, strips = triton.cdiv(rows, tile.block_m), triton.cdiv(dim, tile.block_n)
    groups, per_group = _groups(batch, blocks * strips, device)
    mask_parts, parts = dmask, sums
    if for_mask:
        mask_parts = torch.empty(groups * blocks, dim, dtype=torch.float32, device=device)
    if for_positions and groups > 1:
        parts = torch.empty(groups, rows, dim, dtype=torch.float32, device=device)
    with on_device_of(gradient):
        first, later = _chains(restore, keep) if for_tokens else (None, None)
        unshuffle_grad_kernel[(blocks, strips, groups)](
            gradient, restore, first, later, dx, mask_parts, parts, length, keep, prefix, dim, batch, per_group,
            gradient.stride(0), gradient.stride(1), **_constants(tile),
            FOR_TOKENS=for_tokens, FOR_MASK=for_mask, FOR_SUMS=for_positions,
        )  # fmt: skip
        if for_tokens and keep:
            lost_kernel[(batch, triton.cdiv(keep, tile.block_m), strips)](
                first, dx, length, keep, prefix, dim, **_constants(tile)
            )
        if for_mask:
            _add_parts(mask_parts, dmask)
        if for_positions and groups > 1:
            _add_parts(parts, sums)
    return dx, dmask, sums


def _tile(kernel: str, kind: str, dimension: int, device: torch.device) -> Tile:
    tile = TILES.tile_for(kernel, kind, dimension, capability(device)[0])
    assert tile is not None, "the table serves any dimension"
    return tile


def _move_tile(kernel: str, x: Tensor, dim: int) -> Tile:
    return _tile(kernel, "fp32" if x.dtype == torch.float32 else "16bit", dim, x.device)


def _constants(tile: Tile) -> dict[str, int | bool]:
    return {"BLOCK_R": tile.block_m, "BLOCK_D": tile.block_n, "num_warps": tile.warps, **OPTIONS}


def _groups(images: int, programs: int, device: torch.device) -> tuple[int, int]:
    """Into how many groups images are divided so that there are programs enough, and the size of one."""
    wanted = triton.cdiv(PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(device), programs)
    per_group = triton.cdiv(images, min(wanted, images))
    return triton.cdiv(images, per_group), per_group


def _chains(ids: Tensor, targets: int) -> tuple[Tensor, Tensor]:
    """See ``chain_kernel``."""
    batch, sources = ids.shape
    first = torch.empty(batch, targets, dtype=torch.int32, device=ids.device)
    later = torch.empty(batch, sources, dtype=torch.int32, device=ids.device)
    tile = _tile("chain", "any", sources, ids.device)
    chain_kernel[(batch, triton.cdiv(max(sources, targets), tile.block_m))](
        ids.contiguous(), first, later, sources, targets,
        BLOCK=tile.block_m, BLOCK_S=tile.block_n, num_warps=tile.warps, **OPTIONS,
    )  # fmt: skip
    return first, later


def _add_parts(parts: Tensor, out: Tensor) -> None:
    numbers = out.numel()
    tile = _tile("sums", "any", numbers, out.device)
    sums_kernel[(triton.cdiv(numbers, tile.block_n),)](
        parts, out, parts.numel() // numbers, numbers,
        SLOTS=tile.block_m, BLOCK=tile.block_n, num_warps=tile.warps, **OPTIONS,
    )  # fmt: skip
