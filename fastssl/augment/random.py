"""Random numbers as a function of (seed, epoch, sample index, view), with no hidden generator.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): counter in, four 32-bit words
out. A view can therefore be reproduced alone, on any device, in any batch, on any number of processes.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32.

    Args:
        counter: four int64 tensors of one shape, values 0 to 2^32 - 1.
        key: two integers, 0 to 2^32 - 1.

    Returns:
        Four int64 tensors of that shape, values 0 to 2^32 - 1.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 wraps, which leaves all 64 bits of the unsigned product right; the mask undoes the sign extension.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (p1 >> 32 & _WORD) ^ c1 ^ k0,
            p1 & _WORD,
            (p0 >> 32 & _WORD) ^ c3 ^ k1,
            p0 & _WORD,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def uniform(count: int, *, seed: int, epoch: int, index: Tensor, view: int) -> Tensor:
    """`count` numbers per sample, uniform in [0, 1).

    Args:
        count: numbers per sample.
        seed: 0 to 2^64 - 1.
        epoch: 0 to 2^32 - 1.
        index: int64 [B], positions of the samples in their data set, 0 to 2^32 - 1.
        view: 0 to 2^32 - 1.

    Returns:
        float32 [B, count], on the device of `index`; multiples of 2^-24.

    Raises:
        ValueError: if a number is out of range or `index` is not int64 [B].
    """
    for name, value, bits in (("seed", seed, 64), ("epoch", epoch, 32), ("view", view, 32)):
        if not 0 <= value < 2**bits:
            raise ValueError(f"uniform: {name} must be in [0, 2^{bits}), got {value}")
    if index.dtype != torch.int64 or index.ndim != 1:
        raise ValueError(f"uniform: index must be int64 [B], got {index.dtype} {tuple(index.shape)}")
    device = index.device
    if device.type not in ("cpu", "cuda"):  # where 64-bit products are known to wrap
        index = index.cpu()
    blocks = -(-count // 4)
    shape = (len(index), blocks)
    block = torch.arange(blocks, device=index.device).expand(shape)
    constant = torch.zeros(shape, dtype=torch.int64, device=index.device)
    counter = (block, constant + view, (index & _WORD)[:, None].expand(shape), constant + epoch)
    words = torch.stack(philox4x32(counter, (seed & _WORD, seed >> 32)), dim=-1).flatten(1)  # [B, 4 blocks]
    return (words[:, :count] >> 8).float().to(device) * 2.0**-24
