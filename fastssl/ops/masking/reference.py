"""The moves of masked image modelling in plain PyTorch: the definitions, as the papers' own code has them.

He et al., "Masked Autoencoders Are Scalable Vision Learners", 2022 (facebookresearch/mae): argsort of the argsort,
positions added to every token before those that stay are gathered, the mask token appended until the sequence is whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..philox import sample_words
from ..precision import widened

# Where the words of masks begin in a sample's stream: far behind those of its views.
NOISE_BLOCK = 1 << 30


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    return None


def random_masks(
    index: Tensor,  # int64 [B]
    *,
    length: int,
    keep: int,
    seed: int,
    epoch: int,
    view: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Masks from one Philox word per patch: ``masks_from_noise`` of integers."""
    words = sample_words(length, NOISE_BLOCK, seed=seed, epoch=epoch, index=index, view=view)
    return masks_from_noise(words, keep=keep)


def masks_from_noise(noise: Tensor, *, keep: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The patches with the least noise [B, L] stay, equal ones in order, NaN behind all numbers.

    Returns:
        kept [B, keep] and masked [B, L - keep], ascending in noise; restore [B, L], each patch's rank; mask [B, L],
        float32, 1 where the rank is at least ``keep``.
    """
    order = noise.argsort(dim=1, stable=True)
    restore = order.argsort(dim=1, stable=True)
    mask = torch.ones(noise.shape, device=noise.device)
    mask[:, :keep] = 0
    return order[:, :keep].contiguous(), order[:, keep:].contiguous(), restore, mask.gather(1, restore)


def visible_patches(
    images: Tensor,  # [B, C, H, W]
    ids: Tensor,  # int64 [B, K], in [0, H / patch_height * W / patch_width)
    *,
    patch_height: int,
    patch_width: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """(x - mean) / std of the patches' pixels, uint8 as x / 255: [B, K, C patch_height patch_width]."""
    wide = images.to(torch.float64 if dtype == torch.float64 else torch.float32)
    if images.dtype == torch.uint8:
        wide = wide / 255
    center, spread = (torch.tensor(v, dtype=wide.dtype, device=wide.device)[:, None, None] for v in (mean, std))
    patches = F.unfold((wide - center) / spread, (patch_height, patch_width), stride=(patch_height, patch_width))
    return rows_at(patches.mT, ids).to(dtype)


def gather_tokens(
    x: Tensor,  # [B, L, D]
    ids: Tensor,  # int64 [B, K]
    pos: Tensor | None,  # [L or P + L, D]
    prefix: Tensor | None,  # [P, D]
    *,
    dtype: torch.dtype,
) -> Tensor:
    """[B, P + K, D]: the prefix, then x_b,ids + pos_ids, each sum rounded once."""
    tokens = widened(x)
    if pos is not None:
        tokens = tokens + pos[pos.shape[0] - x.shape[1] :]
    out = rows_at(tokens, ids)
    if prefix is not None:
        first = prefix if pos is None or len(pos) == x.shape[1] else prefix + pos[: len(prefix)]
        out = torch.cat([first.expand(len(x), -1, -1), out], 1)
    return out.to(dtype)


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
    """The gradient for x [B, L, D], and the sums over images for prefix and positions [P + L, D]."""
    wide = widened(gradient)
    tokens = added_at(wide[:, prefix:], ids, length)
    sums = wide[:, :prefix].sum(0)
    if for_positions:
        sums = torch.cat([sums, tokens.sum(0)])
    return tokens.to(dtype) if for_tokens else tokens.new_empty(0, dtype=dtype), sums


def unshuffle_tokens(
    x: Tensor,  # [B, P + K, D]
    restore: Tensor,  # int64 [B, L]
    mask_token: Tensor,  # [1, D]
    pos: Tensor | None,  # [L or P + L, D]
    *,
    prefix: int,
    dtype: torch.dtype,
) -> Tensor:
    """[B, P + L, D]: the prefix, then at place l token restore_bl, or the mask token from K on; plus positions."""
    tokens = widened(x)
    missing = restore.shape[1] - (x.shape[1] - prefix)
    whole = torch.cat([tokens[:, prefix:], mask_token.expand(len(x), missing, -1)], 1)
    out = torch.cat([tokens[:, :prefix], rows_at(whole, restore)], 1)
    if pos is not None:
        out = out + F.pad(pos, (0, 0, out.shape[1] - pos.shape[0], 0))
    return out.to(dtype)


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
    """The gradients for x [B, P + K, D], the mask token [1, D] and positions [P + L, D]."""
    wide = widened(gradient)
    whole = added_at(wide[:, prefix:], restore, restore.shape[1])
    dx = torch.cat([wide[:, :prefix], whole[:, :keep]], 1)
    return (
        dx.to(dtype) if for_tokens else dx.new_empty(0, dtype=dtype),
        whole[:, keep:].sum((0, 1))[None] if for_mask else wide.new_empty(0, wide.shape[2]),
        wide.sum(0) if for_positions else wide.new_empty(0, wide.shape[2]),
    )


def rows_at(x: Tensor, ids: Tensor) -> Tensor:
    """Rows of x [B, L, D] at ids [B, K]; NaN where an index is out of range."""
    inside = (ids >= 0) & (ids < x.shape[1])
    rows = x.gather(1, ids.clamp(0, x.shape[1] - 1)[..., None].expand(-1, -1, x.shape[2]))
    return torch.where(inside[..., None], rows, torch.nan)


def added_at(rows: Tensor, ids: Tensor, length: int) -> Tensor:
    """[B, length, D], into which rows [B, K, D] are added at ids [B, K]; those out of range are left out."""
    inside = (ids >= 0) & (ids < length)
    out = rows.new_zeros(rows.shape[0], length, rows.shape[2])
    image = torch.arange(len(rows), device=rows.device)[:, None]
    # Not scatter_add_, which adds in any order on a GPU.
    return out.index_put_((image, ids.clamp(0, length - 1)), torch.where(inside[..., None], rows, 0.0), accumulate=True)


def split_positions(pos: Tensor | None, length: int) -> tuple[Tensor | None, Tensor | None]:
    """Positions of the patches and, where there are more, of the prefix; both contiguous."""
    if pos is None:
        return None, None
    first, pos = len(pos) - length, pos.contiguous()
    return pos[first:], pos[:first] if first else None
