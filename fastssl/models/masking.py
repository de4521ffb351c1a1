"""Masking of tokens with the signatures of ``lightly.models.utils``: in place of

    from lightly.models import utils

write

    from fastssl.models import masking as utils

Random masks come from PyTorch's generator, as there: the same seed gives the same token masks. Masks that do not depend
on a generator's state, and whole steps fused (gather with positions, the decoder's input), are in
``fastssl.functional``: ``random_masks``, ``gather_tokens``, ``unshuffle_tokens``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import functional
from ..ops import checks


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


def random_block_mask(
    size: tuple[int, int, int],
    batch_mask_ratio: float = 0.5,
    min_image_mask_ratio: float = 0.1,
    max_image_mask_ratio: float = 0.5,
    min_num_masks_per_block: int = 4,
    max_num_masks_per_block: int | None = None,
    min_block_aspect_ratio: float = 0.3,
    max_block_aspect_ratio: float | None = None,
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
    highest = 1 / min_block_aspect_ratio if max_block_aspect_ratio is None else max_block_aspect_ratio
    return functional.block_masks(
        index, (rows, columns), count=counts, min_patches=min_num_masks_per_block,
        max_patches=max_num_masks_per_block, aspect=(min_block_aspect_ratio, highest), seed=seed,
    ).to(device)  # fmt: skip
