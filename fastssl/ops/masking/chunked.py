"""The moves of masked image modelling in plain PyTorch, some images at a time: bounded memory on any device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..precision import accumulator
from . import reference
from .reference import masks_from_noise, random_masks, rows_at

__all__ = [
    "gather_tokens",
    "gather_tokens_grad",
    "masks_from_noise",
    "random_masks",
    "unshuffle_tokens",
    "unshuffle_tokens_grad",
    "unsupported_reason",
    "visible_patches",
]

BLOCK_NUMBERS = 1 << 22


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    return None


def _blocks(batch: int, numbers: int) -> Iterator[slice]:
    """Blocks of images, each of which stores so many numbers."""
    size = max(1, BLOCK_NUMBERS // max(1, numbers))
    return (slice(start, min(start + size, batch)) for start in range(0, batch, size))


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
    """See ``reference.visible_patches``: only pixels that are asked for are normalised."""
    channels = images.shape[1]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    center, spread = (torch.tensor(v, dtype=wide, device=images.device)[:, None] for v in (mean, std))
    out = torch.empty(*ids.shape, channels * patch_height * patch_width, dtype=dtype, device=images.device)
    for block in _blocks(len(images), images[0].numel()):
        grid = images[block].unflatten(3, (-1, patch_width)).unflatten(2, (-1, patch_height))
        patches = grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [b, L, C, p q], a view where it can be
        patches = patches.flatten(2)
        inside = (ids[block] >= 0) & (ids[block] < patches.shape[1])
        places = ids[block].clamp(0, patches.shape[1] - 1)[..., None].expand(-1, -1, patches.shape[2])
        pixels = patches.gather(1, places).to(wide).unflatten(2, (channels, -1))
        if images.dtype == torch.uint8:
            pixels = pixels / 255
        out[block] = torch.where(inside[..., None], ((pixels - center) / spread).flatten(2), torch.nan)
    return out


def gather_tokens(
    x: Tensor,  # [B, L, D]
    ids: Tensor,  # int64 [B, K]
    pos: Tensor | None,  # [L or P + L, D]
    prefix: Tensor | None,  # [P, D]
    *,
    dtype: torch.dtype,
) -> Tensor:
    """See ``reference.gather_tokens``: positions are added to the tokens that stay."""
    (batch, length, dim), first = x.shape, 0 if prefix is None else prefix.shape[0]
    out = torch.empty(batch, first + ids.shape[1], dim, dtype=dtype, device=x.device)
    if prefix is not None:
        out[:, :first] = prefix if pos is None or len(pos) == length else prefix + pos[:first]
    for block in _blocks(batch, ids.shape[1] * dim):
        tokens = rows_at(x[block], ids[block])
        if pos is not None:
            tokens = tokens.to(pos.dtype) + pos[len(pos) - length :][ids[block].clamp(0, length - 1)]
        out[block, first:] = tokens
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
    batch, _, dim = gradient.shape
    dx = torch.empty((batch, length, dim) if for_tokens else (0,), dtype=dtype, device=gradient.device)
    sums = torch.zeros(
        prefix + (length if for_positions else 0), dim, dtype=accumulator(gradient), device=gradient.device
    )
    for block in _blocks(batch, (prefix + length) * dim):
        part, added = reference.gather_tokens_grad(
            gradient[block], ids[block], length=length, prefix=prefix, dtype=dtype, for_tokens=for_tokens,
            for_positions=for_positions,
        )  # fmt: skip
        if for_tokens:
            dx[block] = part
        sums += added
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
    (batch, _, dim), rows = x.shape, prefix + restore.shape[1]
    out = torch.empty(batch, rows, dim, dtype=dtype, device=x.device)
    for block in _blocks(batch, rows * dim):
        out[block] = reference.unshuffle_tokens(x[block], restore[block], mask_token, pos, prefix=prefix, dtype=dtype)
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
    (batch, rows, dim), device, wide = gradient.shape, gradient.device, accumulator(gradient)
    dx = torch.empty((batch, prefix + keep, dim) if for_tokens else (0,), dtype=dtype, device=device)
    dmask = torch.zeros(1 if for_mask else 0, dim, dtype=wide, device=device)
    sums = torch.zeros(rows if for_positions else 0, dim, dtype=wide, device=device)
    for block in _blocks(batch, rows * dim):
        part, of_mask, of_positions = reference.unshuffle_tokens_grad(
            gradient[block], restore[block], keep=keep, prefix=prefix, dtype=dtype, for_tokens=for_tokens,
            for_mask=for_mask, for_positions=for_positions,
        )  # fmt: skip
        if for_tokens:
            dx[block] = part
        dmask += of_mask
        sums += of_positions
    return dx, dmask, sums
