"""Masks with a shape: of blocks (BEiT, iBOT, DINOv2), targets (I-JEPA), units (SimMIM), modalities (MultiMAE).

All are functions of (seed, epoch, index, view), as :func:`fastssl.functional.random_masks` is, by one algorithm on the
host whatever the device: masks take milliseconds per batch and depend on nothing that a GPU computes. Indices that lie
on a GPU are copied to the host, which waits for it; give them on the CPU, and move masks with the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import checks
from ..ops.masking import patterns
from ..ops.masking.patterns import Draws, Kind
from .masking import Masks, kept_patches, random_masks


def masked_counts(
    index: Tensor,
    length: int,
    *,
    share: float = 0.5,
    ratio: tuple[float, float] = (0.1, 0.5),
    seed: int,
    epoch: int = 0,
    view: int = 0,
) -> Tensor:
    """How many patches to mask in each image of a batch, as iBOT and DINOv2 have it: for :func:`block_masks`.

    ``int(B * share)`` images of the batch are masked. The interval ``ratio`` is divided into as many parts, each of
    which one of them gets, and draws its ratio from it; which one is random. So a count depends on the other indices of
    the batch, in any order.

    Args:
        index: int64 [B].
        length: number of patches of an image.
        share: of the images that are masked, 0 to 1.
        ratio: smallest and largest share of the patches.
        seed, epoch, view: as in :func:`random_masks`.

    Returns:
        int64 [B] on ``index``'s device, 0 for images that are not masked.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    name = "masked_counts"
    draws = _draws(name, Kind.SHARE, index, seed, epoch, view)
    checks.check_count(name, "length", length, minimum=1)
    checks.check_range(name, "share", share, maximum=1.0)
    low, high = _interval(name, "ratio", ratio, maximum=1.0)
    return patterns.counts_of_batch(draws, length, share, low, high).to(index.device)


def block_masks(
    index: Tensor,
    grid: tuple[int, int],
    *,
    count: int | Tensor,
    min_patches: int = 4,
    max_patches: int | None = None,
    aspect: tuple[float, float] | float = 0.3,
    exact: bool = False,
    attempts: int = patterns.ATTEMPTS,
    seed: int,
    epoch: int = 0,
    view: int = 0,
) -> Tensor:
    """Block-wise masks of Bao et al., "BEiT: BERT Pre-Training of Image Transformers", 2022, algorithm 1.

    Blocks are added until ``count`` patches are masked. Each has an area between ``min_patches`` and what is missing, a
    ratio of sides that is log-uniform, and a place; it is taken if it masks something new and not too much, after
    ``attempts`` of them the mask stays as it is. So ``count`` is an upper bound, as published, unless ``exact``.

    Args:
        index: int64 [B], position of each image in its data set.
        grid: rows and columns of patches.
        count: patches to mask, one number for all or int64 [B] (:func:`masked_counts`), 0 to all.
        min_patches: smallest area of a block, at least 1. BEiT: 16, iBOT and DINOv2: 4.
        max_patches: largest area of a block; None: no limit but what is missing.
        aspect: smallest and largest ratio of height to width; one number a: a to 1 / a.
        exact: mask random patches for what is missing at the end.
        attempts: at each block, at least 1.
        seed, epoch, view: as in :func:`random_masks`.

    Returns:
        bool [B, rows, columns] on ``index``'s device, True where a patch is masked.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    name = "block_masks"
    draws = _draws(name, Kind.BLOCKS, index, seed, epoch, view)
    height, width = _grid(name, grid)
    patches = height * width
    if isinstance(count, Tensor):
        checks.check_keys(name, "count", count, length=len(index), device=count.device)
        counts = count.cpu().clamp(0, patches)
    else:
        if checks.check_count(name, "count", count, minimum=0) > patches:
            raise ValueError(f"{name}: count must be at most the number of patches, {patches}, got {count}")
        counts = torch.full((len(index),), count)
    checks.check_count(name, "min_patches", min_patches, minimum=1)
    if max_patches is not None:
        checks.check_count(name, "max_patches", max_patches, minimum=min_patches)
    if isinstance(aspect, (int, float)):
        aspect = (checks.check_positive_number(name, "aspect", aspect), 1 / aspect)
    ratios = _interval(name, "aspect", aspect)
    checks.check_positive_number(name, "aspect", ratios[0])
    checks.check_count(name, "attempts", attempts, minimum=1)
    order = draws.of(Kind.COMPLETION).words(patches) if exact else None
    mask = patterns.block_masks(
        draws,
        order,
        counts,
        height,
        width,
        smallest=min_patches,
        largest=max_patches,
        aspect=ratios,
        attempts=attempts,
    )
    return mask.to(index.device)


class TargetMasks(NamedTuple):
    """What I-JEPA predicts, and from what.

    Attributes:
        context: int64 [B, K], the patches of the context, in order.
        targets: int64 [B, targets, M], the patches of each target block, in order.
    """

    context: Tensor
    targets: Tensor


def target_masks(
    index: Tensor,
    grid: tuple[int, int],
    *,
    batch: int,
    targets: int = 4,
    target_scale: tuple[float, float] = (0.15, 0.2),
    target_aspect: tuple[float, float] = (0.75, 1.5),
    context_scale: tuple[float, float] = (0.85, 1.0),
    min_keep: int = 10,
    seed: int,
    epoch: int = 0,
    view: int = 0,
) -> TargetMasks:
    """Multi-block masks of Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive
    Architecture" (I-JEPA), 2023, section 3.

    Target blocks have one size in a batch, and so has the context before targets are taken out of it. Places are
    random. Of each image as many patches of the context are kept, the first ones in order, as the smallest one has, so
    that all stack. Blocks reach every patch; as published they never reach the last row and column.

    Args:
        index: int64 [B], position of each image in its data set.
        grid: rows and columns of patches.
        batch: number of the batch, by which its sizes are drawn. 0 to 2^32 - 1.
        targets: blocks to predict.
        target_scale, target_aspect: intervals of a target's share of the patches, and of its height over its width.
        context_scale: of the context's share; its block is square.
        min_keep: a context must have more patches; where 20 places did not, it may overlap with one target more.
        seed, epoch, view: as in :func:`random_masks`.

    Returns:
        :class:`TargetMasks` on ``index``'s device.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    name = "target_masks"
    places = _draws(name, Kind.TARGETS, index, seed, epoch, view)
    height, width = _grid(name, grid)
    checks.check_count(name, "targets", targets, minimum=1)
    checks.check_count(name, "batch", batch, minimum=0)
    checks.check_count(name, "min_keep", min_keep, minimum=0)
    scale, aspect = _interval(name, "target_scale", target_scale, 1.0), _interval(name, "target_aspect", target_aspect)
    checks.check_positive_number(name, "target_aspect", aspect[0])
    around = _interval(name, "context_scale", context_scale, 1.0)
    u = places.of(Kind.SIZES, torch.tensor([batch])).block(0)[0]
    size = patterns.block_size(u[0], height, width, scale, aspect)
    blocks = patterns.target_blocks(places, height, width, size, targets)
    context = patterns.context_block(
        places.of(Kind.CONTEXT), blocks, patterns.block_size(u[1], height, width, around, (1, 1)), min_keep
    )
    kept = int(context.sum((1, 2)).min())
    device = index.device
    return TargetMasks(
        patterns.first_places(context, kept).to(device), patterns.first_places(blocks, size[0] * size[1]).to(device)
    )


def unit_masks(
    index: Tensor,
    grid: tuple[int, int],
    *,
    unit: int | tuple[int, int],
    mask_ratio: float,
    seed: int,
    epoch: int = 0,
    view: int = 0,
) -> Tensor:
    """Random masks of units larger than a patch: Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling",
    2022.

    There units have 32 x 32 pixels, whatever the patches: 2 x 2 patches of 16 pixels, 8 x 8 of 4.

    Args:
        index: int64 [B], position of each image in its data set.
        grid: rows and columns of patches.
        unit: rows and columns of patches in a unit, which divide the grid; or one number for both.
        mask_ratio: share of the units to mask, in [0, 1), rounded up as published.
        seed, epoch, view: as in :func:`random_masks`.

    Returns:
        bool [B, rows, columns] on ``index``'s device, True where a patch is masked.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    name = "unit_masks"
    height, width = _grid(name, grid)
    rows, columns = (unit, unit) if isinstance(unit, int) else unit
    for side, size in ((rows, height), (columns, width)):
        if checks.check_count(name, "unit", side, minimum=1) and size % side:
            raise ValueError(f"{name}: unit must divide the grid {grid}, got {unit}")
    down, across = height // rows, width // columns
    checks.check_range(name, "mask_ratio", mask_ratio, maximum=1.0)
    keep = int(down * across * (1 - mask_ratio) + 1e-9)
    if keep == 0:
        raise ValueError(f"{name}: mask_ratio must leave a unit of {down * across}, got {mask_ratio}")
    masks = random_masks(index, down * across, keep=keep, seed=seed, epoch=epoch, view=view)
    coarse = masks.mask.bool().unflatten(1, (down, across))
    return coarse.repeat_interleave(rows, 1).repeat_interleave(columns, 2)


def grid_mask(grid: tuple[int, int], step: int = 2, *, device: torch.device | str | None = None) -> Tensor:
    """Grid-wise mask of He et al. 2022, figure 6: one patch of every ``step`` x ``step`` stays. Nothing is random.

    Args:
        grid: rows and columns of patches.
        step: distance of the patches that stay, at least 1.
        device: of the result.

    Returns:
        bool [rows, columns], True where a patch is masked.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    height, width = _grid("grid_mask", grid)
    checks.check_count("grid_mask", "step", step, minimum=1)
    mask = torch.ones(height, width, dtype=torch.bool, device=device)
    mask[::step, ::step] = False
    return mask


def modality_masks(
    index: Tensor,
    lengths: Sequence[int],
    *,
    mask_ratio: float | None = None,
    keep: int | None = None,
    alpha: float = 1.0,
    seed: int,
    epoch: int = 0,
    view: int = 0,
) -> Masks:
    """Masks over several modalities: Bachmann et al., "MultiMAE: Multi-modal Multi-task Masked Autoencoders", 2022.

    Each image's shares of the tokens that stay come from a symmetric Dirichlet distribution; as many of a modality's
    tokens, rounded, stay at random. Where rounded shares do not add up to ``keep``, random tokens go or come.

    Args:
        index: int64 [B], position of each image in its data set.
        lengths: tokens of each modality; masks are over all of them in this order.
        mask_ratio, keep: as in :func:`random_masks`, of all tokens together.
        alpha: concentration, above 0: small ones take most tokens from one modality, large ones the same from each.
        seed, epoch, view: as in :func:`random_masks`.

    Returns:
        :class:`Masks` on ``index``'s device, L the sum of ``lengths``.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    name = "modality_masks"
    shares = _draws(name, Kind.MODALITIES, index, seed, epoch, view)
    if len(lengths) == 0:
        raise ValueError(f"{name}: lengths must have a number for each modality, got none")
    for length in lengths:
        checks.check_count(name, "lengths", length, minimum=1)
    total = sum(lengths)
    kept = kept_patches(name, total, mask_ratio, keep)
    if kept > total:
        raise ValueError(f"{name}: keep must be at most the number of tokens, {total}, got {kept}")
    checks.check_positive_number(name, "alpha", alpha)
    tokens, ties = (shares.of(kind) for kind in (Kind.TOKENS, Kind.TIES))
    return Masks(
        *(part.to(index.device) for part in patterns.modality_masks(shares, tokens, ties, lengths, kept, alpha))
    )


def _draws(name: str, kind: Kind, index: Tensor, seed: int, epoch: int, view: int) -> Draws:
    checks.check_is_tensor(name, "index", index, "int64 [B]")
    key = checks.philox_key(name, seed=seed, epoch=epoch, view=view)
    checks.check_samples(name, index, epoch=epoch, view=view)
    return Draws(kind, index, **key)


def _grid(name: str, grid: tuple[int, int]) -> tuple[int, int]:
    rows, columns = grid
    return checks.check_count(name, "grid", rows, minimum=1), checks.check_count(name, "grid", columns, minimum=1)


def _interval(
    name: str, argument: str, value: tuple[float, float], maximum: float = float("inf")
) -> tuple[float, float]:
    low, high = (checks.check_range(name, argument, end, maximum=maximum) for end in value)
    if low > high:
        raise ValueError(f"{name}: {argument} must be an interval, got {value}")
    return low, high
