"""Random words as a function of a key and a counter, with no hidden generator.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): counter in, four 32-bit words
out. What is drawn for a sample can therefore be drawn again alone, on any device, in any batch, by any process.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WORD = 0xFFFFFFFF


def philox4x32(counter: Sequence[Tensor], key: Sequence[int | Tensor]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32.

    Args:
        counter: four int64 tensors of one shape, values 0 to 2^32 - 1.
        key: two integers, or int64 tensors that broadcast with the counter, 0 to 2^32 - 1.

    Returns:
        Four int64 tensors of that shape, values 0 to 2^32 - 1.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 wraps, which leaves all 64 bits of the unsigned product right; the mask undoes the sign extension.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (p1 >> 32 & WORD) ^ c1 ^ k0,
            p1 & WORD,
            (p0 >> 32 & WORD) ^ c3 ^ k1,
            p0 & WORD,
        )
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c0, c1, c2, c3


def sample_words(count: int, first_block: int, *, seed: int, epoch: int, index: Tensor, view: int) -> Tensor:
    """The first ``count`` words for each sample from blocks ``first_block``, ``first_block + 1``, ...

    Args:
        count: words per sample; a block has four.
        first_block: position in the sample's stream.
        seed: any integer; its lowest 64 bits are the key.
        epoch: 0 to 2^32 - 1; ``view`` likewise.
        index: int64 [B], position of each sample in its data set; the lowest 32 bits count.

    Returns:
        int64 [B, count], values 0 to 2^32 - 1.
    """
    blocks = -(-count // 4)
    block = torch.arange(first_block, first_block + blocks, device=index.device).expand(len(index), -1)
    zero = torch.zeros_like(block)
    counter = (block, zero + view, (index & WORD)[:, None].expand_as(block), zero + epoch)
    return torch.stack(philox4x32(counter, (seed & WORD, seed >> 32 & WORD)), dim=-1).flatten(1)[:, :count]
