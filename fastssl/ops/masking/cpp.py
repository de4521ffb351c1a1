"""Moves of masked image modelling on the CPU: tensors in, addresses to the compiled kernels, tensors out.

See ``csrc/cpu/masking/kernels.h``. Large outputs keep their memory between calls (``ops/outputs.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import cpp
from ..cpp import address, kernels
from ..layout import contiguous, unit_stride
from ..outputs import empty
from ..precision import accumulator
from .reference import split_positions

# The numbers that csrc/cpu/masking/masking.h knows: kUint8 too.
DTYPES = {**cpp.DTYPES, torch.uint8: 4}


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    """Why the compiled kernels cannot serve such tensors here; None if they can. Images and indices are integers."""
    return cpp.unsupported_reason(device_type, torch.float32 if dtype in (torch.uint8, torch.int64) else dtype)


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
    index = index.contiguous()
    key = {"index": index.data_ptr(), "seed": seed % 2**64, "epoch": epoch, "view": view}
    return _masks(len(index), length, keep, noise=0, dtype=0, **key)


def masks_from_noise(noise: Tensor, *, keep: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``reference.masks_from_noise``."""
    noise = noise.contiguous()
    key = {"index": 0, "seed": 0, "epoch": 0, "view": 0}
    return _masks(noise.shape[0], noise.shape[1], keep, noise=noise.data_ptr(), dtype=DTYPES[noise.dtype], **key)


def _masks(batch: int, length: int, keep: int, **source: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kept, masked, restore = (torch.empty(batch, n, dtype=torch.int64) for n in (keep, length - keep, length))
    mask = torch.empty(batch, length)
    kernels().random_masks(
        **source,
        batch=batch,
        length=length,
        keep=keep,
        threads=torch.get_num_threads(),
        kept=kept.data_ptr(),
        masked=masked.data_ptr(),
        restore=restore.data_ptr(),
        mask=mask.data_ptr(),
    )
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
    ids = ids.contiguous()
    out = empty((*ids.shape, images.shape[1] * patch_height * patch_width), dtype)
    kernels().visible_patches(
        images=images.data_ptr(),
        pixel_type=DTYPES[images.dtype],
        shape=images.shape,
        strides=images.stride(),
        ids=ids.data_ptr(),
        kept=ids.shape[1],
        patch_height=patch_height,
        patch_width=patch_width,
        mean=mean,
        std=std,
        threads=torch.get_num_threads(),
        out=out.data_ptr(),
        dtype=DTYPES[dtype],
    )
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
    x, ids, prefix = unit_stride(x), ids.contiguous(), contiguous(prefix)
    positions, added = split_positions(pos, length)
    out = empty((batch, before + kept, dim), dtype)
    kernels().gather_tokens(
        x=_tokens(x),
        ids=ids.data_ptr(),
        positions=address(positions),
        prefix_rows=address(prefix),
        prefix_added=address(added),
        **_sizes(batch, length, kept, before, dim),
        out=out.data_ptr(),
        dtype=DTYPES[dtype],
    )
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
    gradient, ids = unit_stride(gradient), ids.contiguous()
    dx = empty((batch, length, dim) if for_tokens else (0,), dtype)
    sums = torch.empty(prefix + (length if for_positions else 0), dim, dtype=accumulator(gradient))
    kernels().gather_tokens_grad(
        gradient=_tokens(gradient),
        ids=ids.data_ptr(),
        **_sizes(batch, length, ids.shape[1], prefix, dim),
        dx=dx.data_ptr() if for_tokens else 0,
        dtype=DTYPES[dtype],
        mask=0,
        sums=sums.data_ptr(),
        with_positions=for_positions,
    )
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
    x, restore, mask_token = unit_stride(x), restore.contiguous(), mask_token.contiguous()
    positions, added = split_positions(pos, length)
    out = empty((batch, prefix + length, dim), dtype)
    kernels().unshuffle_tokens(
        x=_tokens(x),
        restore=restore.data_ptr(),
        mask_token=mask_token.data_ptr(),
        positions=address(positions),
        prefix_added=address(added),
        **_sizes(batch, length, rows - prefix, prefix, dim),
        out=out.data_ptr(),
        dtype=DTYPES[dtype],
    )
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
    (batch, rows, dim), wide = gradient.shape, accumulator(gradient)
    gradient, restore = unit_stride(gradient), restore.contiguous()
    dx = empty((batch, prefix + keep, dim) if for_tokens else (0,), dtype)
    dmask = torch.empty(1 if for_mask else 0, dim, dtype=wide)
    sums = torch.empty(rows if for_positions else 0, dim, dtype=wide)
    kernels().unshuffle_tokens_grad(
        gradient=_tokens(gradient),
        ids=restore.data_ptr(),
        **_sizes(batch, restore.shape[1], keep, prefix, dim),
        dx=dx.data_ptr() if for_tokens else 0,
        dtype=DTYPES[dtype],
        mask=dmask.data_ptr() if for_mask else 0,
        sums=sums.data_ptr(),
        with_positions=for_positions,
    )
    return dx, dmask, sums


def _tokens(x: Tensor) -> tuple[int, int, int, int]:
    return x.data_ptr(), DTYPES[x.dtype], x.stride(0), x.stride(1)


def _sizes(batch: int, length: int, kept: int, prefix: int, dim: int) -> dict[str, int]:
    return {
        "batch": batch, "length": length, "kept": kept, "prefix": prefix, "dim": dim,
        "threads": torch.get_num_threads(),
    }  # fmt: skip
