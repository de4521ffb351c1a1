"""Masking of tokens with the signatures of ``lightly.models.utils``: in place of

    from lightly.models import utils

write

    from fastssl.models import masking as utils

Random masks come from PyTorch's generator, as there: the same seed gives the same masks of tokens, of cells and of
prefixes; masks of blocks have the same distribution. Masks that do not depend on a generator's state, and whole steps
fused (gather with positions, the decoder's input), are in ``fastssl.functional``: ``random_masks``, ``gather_tokens``,
``unshuffle_tokens``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import functional
from ..ops import checks
from ..ops.masking.patterns import ATTEMPTS, first_places, rectangles


def repeat_token(token: Tensor, size: tuple[int, int]) -> Tensor:
    """A token [1, 1, D] at every place: [B, L, D] for a size (B, L), without a copy of its numbers."""
    return token.expand(*size, token.shape[-1])


def expand_index_like(index: Tensor, tokens: Tensor) -> Tensor:
    """index [B, K] as [B, K, D], for tokens [B, L, D]."""
    return index[..., None].expand(-1, -1, tokens.shape[-1])


def get_at_index(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens [B, K, D] at index [B, K] of tokens [B, L, D]; NaN where an index is out of range."""
    return functional.gather_tokens(tokens, index)


def set_at_index(tokens: Tensor, index: Tensor, value: Tensor) -> Tensor:
    """Tokens [B, L, D] with value [B, K, D] at index [B, K]."""
    return torch.scatter(tokens, 1, expand_index_like(index, tokens), value)


def mask_at_index(tokens: Tensor, index: Tensor, mask_token: Tensor) -> Tensor:
    """Tokens [B, L, D] with the mask token [1, 1, D] at index [B, K]."""
    mask = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return mask_bool(tokens, mask.scatter_(1, index, True), mask_token)


def mask_bool(tokens: Tensor, mask: Tensor, mask_token: Tensor) -> Tensor:
    """Tokens [B, L, D] with the mask token [1, 1, D] where mask [B, L] is True (or not 0)."""
    return torch.where(mask.bool()[..., None], mask_token, tokens)


def apply_masks(x: Tensor, masks: Tensor | Sequence[Tensor]) -> Tensor:
    """Tokens [B, L, D] at the indices of each mask [B, K], one mask after the other: [masks * B, K, D] (I-JEPA)."""
    return torch.cat([get_at_index(x, mask) for mask in ([masks] if isinstance(masks, Tensor) else masks)])


def prepend_class_token(tokens: Tensor, class_token: Tensor) -> Tensor:
    """The class token [1, 1, D] before tokens [B, L, D]: [B, 1 + L, D]."""
    return torch.cat([class_token.expand(tokens.shape[0], -1, -1), tokens], 1)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Images [B, C, H, W] as patches [B, L, patch_size^2 C], each in the order (row, column, channel).

    Raises:
        ValueError: if ``patch_size`` does not divide the sides, which need not be equal.
    """
    checks.check_count("patchify", "patch_size", patch_size, minimum=1)
    if images.ndim != 4 or images.shape[2] % patch_size or images.shape[3] % patch_size:
        raise ValueError(
            f"patchify: images must be [B, C, H, W] with sides divisible by {patch_size}, got {tuple(images.shape)}"
        )
    grid = images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # [B, C, rows, p, columns, p]
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch_size: int, channels: int = 3) -> Tensor:
    """The opposite of :func:`patchify` for square images: [B, channels, H, H].

    Raises:
        ValueError: if the patches make no square, or have another size.
    """
    side = int(patches.shape[1] ** 0.5 + 0.5)
    if side * side != patches.shape[1] or patches.shape[2] != patch_size**2 * channels:
        raise ValueError(
            f"unpatchify: patches must be [B, n^2, {patch_size**2 * channels}] for {channels} channels and patches of "
            f"{patch_size}, got {tuple(patches.shape)}"
        )
    grid = patches.unflatten(2, (patch_size, patch_size, channels)).unflatten(1, (side, side))
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def random_token_mask(
    size: tuple[int, int],
    mask_ratio: float = 0.6,
    mask_class_token: bool = False,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Indices of tokens to keep, [B, K], and to mask, [B, L - K], for a size (B, L) with the class token first.

    Unless ``mask_class_token``, it is kept, comes first, and does not count: K = 1 + int((L - 1) (1 - mask_ratio)).
    """
    batch, length = size
    checks.check_range("random_token_mask", "mask_ratio", mask_ratio, maximum=1.0)
    noise = torch.rand(batch, length, device=device)
    keep = int((length - (not mask_class_token)) * (1 - mask_ratio))
    if not mask_class_token:
        noise[:, 0] = -1
        keep = max(1, keep + 1)
    if keep == 0:
        raise ValueError(f"random_token_mask: mask_ratio must leave a token of {length}, got {mask_ratio}")
    masks = functional.masks_from_noise(noise, keep=keep)
    return masks.keep, masks.masked


def random_grid_token_mask(
    size: tuple[int, int],
    mask_ratio: float = 0.75,
    grid_size: int = 4,
    num_prefix_tokens: int = 1,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`random_token_mask`, with cells of ``grid_size``^2 patches kept or masked together (Pixio).

    Tokens before the patches are kept and come first; of the cells ``int(cells * (1 - mask_ratio))`` are kept.

    Raises:
        ValueError: if a number is out of range, or the patches make no square that ``grid_size`` divides.
    """
    name = "random_grid_token_mask"
    batch, side = size[0], _side(name, size[1], num_prefix_tokens)
    checks.check_range(name, "mask_ratio", mask_ratio, maximum=1.0)
    if checks.check_count(name, "grid_size", grid_size, minimum=1) > side or side % grid_size:
        raise ValueError(f"{name}: grid_size must divide the side of the patches' square, {side}, got {grid_size}")
    cells = (side // grid_size) ** 2
    places = torch.arange(side * side, device=device).view(1, 1, side, side)
    places = torch.nn.functional.pixel_unshuffle(places, grid_size)[0].flatten(1).T + num_prefix_tokens
    order = functional.masks_from_noise(torch.rand(batch, cells, device=device), keep=cells).keep
    tokens = places[order].flatten(1)  # [B, L]
    kept = int(cells * (1 - mask_ratio)) * grid_size**2
    return _behind_prefix(tokens[:, :kept], num_prefix_tokens), tokens[:, kept:]


def random_inverse_block_mask(
    size: tuple[int, int],
    mask_ratio: float = 0.65,
    num_prefix_tokens: int = 1,
    min_aspect: float = 0.5,
    max_aspect: float | None = None,
    roll: bool = True,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`random_token_mask`, with one block of patches kept and ``int(L * mask_ratio)`` masked (CAPI).

    The block's ratio of sides is log-uniform between ``min_aspect`` and ``max_aspect`` (None: its inverse); what of its
    last rows is too much is masked. With ``roll`` it goes on at the opposite side where it leaves the image.

    Raises:
        ValueError: if a number is out of range, or the patches make no square.
    """
    name = "random_inverse_block_mask"
    batch, side = size[0], _side(name, size[1], num_prefix_tokens)
    checks.check_range(name, "mask_ratio", mask_ratio, maximum=1.0)
    checks.check_positive_number(name, "min_aspect", min_aspect)
    max_aspect = 1 / min_aspect if max_aspect is None else max_aspect
    if max_aspect < min_aspect:
        raise ValueError(f"{name}: max_aspect must be at least min_aspect, {min_aspect}, got {max_aspect}")
    patches = side * side
    kept = patches - int(patches * mask_ratio)
    # A block of that ratio has to fit.
    low = max(math.log(min_aspect), math.log(max(kept, 1) / patches))
    high = max(low, min(math.log(max_aspect), math.log(patches / max(kept, 1))))
    u = torch.rand(5, batch, dtype=torch.float64)
    ratio = (low + u[0] * (high - low)).exp()
    h, w = ((kept * value).sqrt().ceil().long().clamp(max=side) for value in (ratio, 1 / ratio))
    top, left = ((value * (side - length + 1)).long() for value, length in ((u[1], h), (u[2], w)))
    visible = first_places(rectangles(side, side, top, left, h, w), kept)
    if roll:
        down, right = ((value * side).long()[:, None] for value in u[3:])
        visible = (visible // side + down) % side * side + (visible + right) % side
    mask = torch.ones(batch, patches, dtype=torch.bool).scatter_(1, visible, False).unflatten(1, (side, side))
    kept_ids, masked_ids = (
        first_places(part, count).to(device) + num_prefix_tokens
        for part, count in ((~mask, kept), (mask, patches - kept))
    )
    return _behind_prefix(kept_ids, num_prefix_tokens), masked_ids


def random_prefix_mask(
    size: tuple[int, int], max_prefix_length: int, device: torch.device | str | None = None
) -> Tensor:
    """bool [B, L] for a size (B, L), True behind a prefix whose length is from 0 to ``max_prefix_length`` - 1 (AIM)."""
    checks.check_count("random_prefix_mask", "max_prefix_length", max_prefix_length, minimum=1)
    prefix = torch.randint(0, max_prefix_length, (size[0], 1), device=device)
    return torch.arange(size[1], device=device) >= prefix


def random_block_mask(
    size: tuple[int, int, int],
    batch_mask_ratio: float = 0.5,
    min_image_mask_ratio: float = 0.1,
    max_image_mask_ratio: float = 0.5,
    min_num_masks_per_block: int = 4,
    max_num_masks_per_block: int | None = None,
    min_block_aspect_ratio: float = 0.3,
    max_block_aspect_ratio: float | None = None,
    max_attempts_per_block: int = ATTEMPTS,
    device: torch.device | str | None = None,
) -> Tensor:
    """DINOv2's block masks, bool [B, rows, columns] for a size (B, rows, columns), True where masked.

    See :func:`fastssl.functional.masked_counts` and :func:`fastssl.functional.block_masks`, which take a key instead of
    a seed from PyTorch's generator.
    """
    batch, rows, columns = size
    index, seed = torch.arange(batch), int(torch.randint(2**62, ()))
    counts = functional.masked_counts(
        index, rows * columns, share=batch_mask_ratio, ratio=(min_image_mask_ratio, max_image_mask_ratio), seed=seed
    )
    return functional.block_masks(
        index, (rows, columns), count=counts, min_patches=min_num_masks_per_block,
        max_patches=max_num_masks_per_block, aspect=_aspect(min_block_aspect_ratio, max_block_aspect_ratio),
        attempts=max_attempts_per_block, seed=seed,
    ).to(device)  # fmt: skip


def random_block_mask_image(
    size: tuple[int, int],
    num_masks: int,
    min_num_masks_per_block: int = 4,
    max_num_masks_per_block: int | None = None,
    min_block_aspect_ratio: float = 0.3,
    max_block_aspect_ratio: float | None = None,
    max_attempts_per_block: int = ATTEMPTS,
    device: torch.device | str | None = None,
) -> Tensor:
    """Blocks of one image, bool [rows, columns] for a size (rows, columns), True in up to ``num_masks`` patches."""
    return functional.block_masks(
        torch.zeros(1, dtype=torch.int64), size, count=num_masks, min_patches=min_num_masks_per_block,
        max_patches=max_num_masks_per_block, aspect=_aspect(min_block_aspect_ratio, max_block_aspect_ratio),
        attempts=max_attempts_per_block, seed=int(torch.randint(2**62, ())),
    )[0].to(device)  # fmt: skip


def _aspect(lowest: float, highest: float | None) -> tuple[float, float]:
    return lowest, 1 / lowest if highest is None else highest


def _side(name: str, length: int, prefix: int) -> int:
    """Of the square that patches make behind the tokens before them."""
    patches = length - checks.check_count(name, "num_prefix_tokens", prefix, minimum=0)
    side = math.isqrt(max(0, patches))
    if patches < 1 or side * side != patches:
        raise ValueError(
            f"{name}: size must be (B, num_prefix_tokens + n^2), got {length} tokens with {prefix} before the patches"
        )
    return side


def _behind_prefix(ids: Tensor, prefix: int) -> Tensor:
    return torch.cat([torch.arange(prefix, device=ids.device).expand(len(ids), -1), ids], 1)
