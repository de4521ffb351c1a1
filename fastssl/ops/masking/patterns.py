"""Masks with a shape: blocks, targets and contexts, shares of modalities. One exact algorithm for every device.

Drawn from Philox words like all masks (each kind from its own part of a sample's stream), in float64, for a whole batch
at once, and on the host: a batch takes milliseconds and depends on nothing on the device, so that a loader can draw it
ahead. Images that still look for a block go on together; each reads the words of its own attempts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from ..philox import sample_words
from .reference import NOISE_BLOCK, masks_from_noise

ATTEMPTS = 10  # to place a block, before the mask stays as it is, where nothing else is said (BEiT)
PLACES = 20  # at which a context is tried, before one target less is kept out of it (I-JEPA)
_AT_ONCE = 32  # blocks of words that are drawn together


class Kind(IntEnum):
    """Whose words: each kind has 2^20 blocks behind those of ``random_masks``, which take at most 2^22."""

    SHARE = 0
    BLOCKS = 1
    COMPLETION = 2
    SIZES = 3
    TARGETS = 4
    CONTEXT = 5
    MODALITIES = 6
    TOKENS = 7
    TIES = 8


class Draws:
    """Numbers in [0, 1) of the samples of a batch, four in a block."""

    def __init__(self, kind: Kind, index: Tensor, *, seed: int, epoch: int, view: int) -> None:
        self.index = index.cpu()
        self._first = NOISE_BLOCK + (1 << 24) + (kind << 20)
        self._key = {"seed": seed, "epoch": epoch, "view": view}
        self._drawn: dict[int, Tensor] = {}

    def of(self, kind: Kind, index: Tensor | None = None) -> Draws:
        """Those of another kind, of the same samples or of others."""
        return Draws(kind, self.index if index is None else index, **self._key)

    def words(self, count: int) -> Tensor:
        """The first words, int64 [B, count]."""
        return sample_words(count, self._first, index=self.index, **self._key)

    def block(self, number: int) -> Tensor:
        """Float64 [B, 4], multiples of 2^-24."""
        group = number // _AT_ONCE
        if group not in self._drawn:
            words = sample_words(4 * _AT_ONCE, self._first + group * _AT_ONCE, index=self.index, **self._key)
            self._drawn = {group: (words >> 8).double() * 2.0**-24}
        start = 4 * (number % _AT_ONCE)
        return self._drawn[group][:, start : start + 4]


def rectangles(height: int, width: int, top: Tensor, left: Tensor, h: Tensor, w: Tensor) -> Tensor:
    """bool [B, height, width]."""
    rows, columns = torch.arange(height), torch.arange(width)
    in_rows = (rows >= top[:, None]) & (rows < (top + h)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + w)[:, None])
    return in_rows[:, :, None] & in_columns[:, None, :]


def counts_of_batch(draws: Draws, patches: int, share: float, low: float, high: float) -> Tensor:
    """How many patches to mask in each image, int64 [B], 0 in those that stay whole (DINOv2's ``collate``)."""
    batch = len(draws.index)
    masked = int(batch * share)
    first = draws.block(0)
    rank = first[:, 0].argsort(stable=True).argsort(stable=True)  # its place among the shuffled images
    step = (high - low) / max(1, masked)
    ratio = low + step * (rank + first[:, 1])
    return torch.where(rank < masked, (patches * ratio).long(), 0)


def block_masks(
    draws: Draws,
    order: Tensor | None,
    counts: Tensor,
    height: int,
    width: int,
    *,
    smallest: int,
    largest: int | None,
    aspect: tuple[float, float],
    attempts: int,
) -> Tensor:
    """Blocks until at most ``counts`` patches are masked, bool [B, height, width]; BEiT's ``MaskingGenerator``.

    order: words [B, patches] by which masks are completed to exactly their counts; None: they are not.
    """
    batch = len(counts)
    mask = torch.zeros(batch, height, width, dtype=torch.bool)
    missing = counts.cpu().clone()
    attempt = torch.zeros_like(missing)  # at the present block
    low, high = (math.log(ratio) for ratio in aspect)
    number = 0
    while (looking := (missing > 0) & (attempt < attempts)).any():
        u = draws.block(number)
        number += 1
        room = missing if largest is None else missing.clamp(max=largest)
        area = smallest + u[:, 0] * (room - smallest)
        ratio = (low + u[:, 1] * (high - low)).exp()
        h = (area * ratio).clamp(min=0).sqrt().round().long()
        w = (area / ratio).clamp(min=0).sqrt().round().long()
        fits = looking & (h < height) & (w < width)
        top = (u[:, 2] * (height - h + 1)).long()
        left = (u[:, 3] * (width - w + 1)).long()
        block = rectangles(height, width, top, left, h, w)
        new = (block & ~mask).sum((1, 2))
        placed = fits & (new > 0) & (new <= room)
        mask |= block & placed[:, None, None]
        missing -= torch.where(placed, new, 0)
        attempt = torch.where(placed, 0, attempt + 1)
    if order is None:
        return mask
    # Masked patches first, then the others in a random order: as many as are wanted.
    flat = mask.flatten(1)
    rank = (order + (~flat).long() * 2**32).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return (rank < counts.cpu()[:, None]).unflatten(1, (height, width))


def block_size(
    u: Tensor, height: int, width: int, scale: tuple[float, float], aspect: tuple[float, float]
) -> tuple[int, int]:
    """Sides of a block of a share of the patches; one number decides about share and ratio, as published (I-JEPA)."""
    x = float(u)
    area = int(height * width * (scale[0] + x * (scale[1] - scale[0])))
    ratio = aspect[0] + x * (aspect[1] - aspect[0])
    h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    return max(1, min(h, height - 1)), max(1, min(w, width - 1))


def target_blocks(draws: Draws, height: int, width: int, size: tuple[int, int], count: int) -> Tensor:
    """``count`` blocks of one size at random places: bool [B, count, height, width]."""
    h, w = (torch.full((len(draws.index),), side) for side in size)
    blocks = []
    for number in range(count):
        u = draws.block(number)
        top, left = (u[:, 0] * (height - h + 1)).long(), (u[:, 1] * (width - w + 1)).long()
        blocks.append(rectangles(height, width, top, left, h, w))
    return torch.stack(blocks, 1)


def context_block(draws: Draws, targets: Tensor, size: tuple[int, int], smallest: int) -> Tensor:
    """A block without the targets, of more than ``smallest`` patches: bool [B, height, width].

    Another place is tried until it has that many; after ``PLACES`` of them one target less is kept out of it.
    """
    batch, count, height, width = targets.shape
    h, w = (torch.full((batch,), side) for side in size)
    context = torch.zeros(batch, height, width, dtype=torch.bool)
    looking = torch.ones(batch, dtype=torch.bool)
    for number in range(PLACES * (count + 1)):
        u = draws.block(number)
        top, left = (u[:, 0] * (height - h + 1)).long(), (u[:, 1] * (width - w + 1)).long()
        block = rectangles(height, width, top, left, h, w)
        block &= ~targets[:, : count - number // PLACES].any(1)
        found = looking & ((block.sum((1, 2)) > smallest) | (number == PLACES * (count + 1) - 1))
        context |= block & found[:, None, None]
        looking &= ~found
        if not looking.any():
            break
    return context


def first_places(mask: Tensor, count: int) -> Tensor:
    """The first places in row-major order at which a mask [..., height, width] is set: int64 [..., count]."""
    return mask.flatten(-2).long().argsort(dim=-1, descending=True, stable=True)[..., :count].contiguous()


def gammas(draws: Draws, count: int, alpha: float, tries: int = 16) -> Tensor:
    """Gamma-distributed numbers float64 [B, count] (Marsaglia and Tsang 2000): the first accepted of some tries.

    The last is taken if none is accepted, which happens once in 10^20 times.
    """
    shape = alpha if alpha >= 1 else alpha + 1
    d = shape - 1 / 3
    c = 1 / math.sqrt(9 * d)
    out = []
    for number in range(count):
        u = torch.stack([draws.block(number * (tries + 1) + i) for i in range(tries)], 1)  # [B, tries, 4]
        normal = (-2 * (1 - u[..., 0]).log()).sqrt() * (2 * math.pi * u[..., 1]).cos()
        v = (1 + c * normal) ** 3
        accepted = (v > 0) & ((1 - u[..., 2]).log() < 0.5 * normal**2 + d - d * v + d * v.clamp(min=1e-300).log())
        accepted[:, -1] |= True
        value = d * v.gather(1, accepted.long().argmax(1, keepdim=True))[:, 0].clamp(min=1e-300)
        if alpha < 1:
            value = value * (1 - draws.block(number * (tries + 1) + tries)[:, 0]) ** (1 / alpha)
        out.append(value)
    return torch.stack(out, 1)


def modality_masks(
    shares: Draws, tokens: Draws, ties: Draws, lengths: Sequence[int], keep: int, alpha: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """MultiMAE's ``generate_random_masks``: what ``masks_from_noise`` returns, of all modalities' tokens in a row."""
    share = gammas(shares, len(lengths), alpha)
    wanted = (share / share.sum(1, keepdim=True) * keep).round().long()  # [B, modalities]
    noise = tokens.words(sum(lengths)).split(list(lengths), 1)
    removed = [
        part.argsort(dim=1, stable=True).argsort(dim=1, stable=True) >= wanted[:, number : number + 1]
        for number, part in enumerate(noise)
    ]
    # Rounded shares need not add up: of all that stay, and then of the others, a random order decides.
    order = torch.cat(removed, 1).long() * 2**32 + ties.words(sum(lengths))
    return masks_from_noise(order, keep=keep)
