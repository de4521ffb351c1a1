"""Masks by one sort per image, and which rows go to the same target."""

import triton
import triton.language as tl
from triton.language.random import philox_impl

# Where the words of masks begin in a sample's stream (fastssl/ops/masking/reference.py).
NOISE_BLOCK = tl.constexpr(1 << 30)


@triton.jit
def _ordered(x):
    """int32 in the order of the numbers fp32; both zeros are equal, NaN is the largest."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(x == x, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits), 0x7FFFFFFF)


@triton.jit(do_not_specialize=["L", "keep", "view", "epoch", "seed_low", "seed_high"])
def masks_kernel(
    p_noise, p_index, p_kept, p_masked, p_restore, p_mask,
    L, keep, view: tl.int64, epoch: tl.int64, seed_low: tl.int64, seed_high: tl.int64,
    BLOCK: tl.constexpr, DRAWN: tl.constexpr,
):  # fmt: skip
    """Grid (images,). Places [BLOCK >= L] sorted by (noise, place) packed into one number each: a stable argsort."""
    b = tl.program_id(0).to(tl.int64)
    o = tl.arange(0, BLOCK)
    if DRAWN:
        zero = (o * 0).to(tl.uint32)
        sample = tl.load(p_index + b).to(tl.uint32)
        w_0, w_1, w_2, w_3 = philox_impl(
            (o // 4 + NOISE_BLOCK).to(tl.uint32), zero + view.to(tl.uint32), zero + sample, zero + epoch.to(tl.uint32),
            seed_low.to(tl.uint32), seed_high.to(tl.uint32),
        )  # fmt: skip
        even, odd = tl.where(o % 4 < 2, w_0, w_2), tl.where(o % 4 < 2, w_1, w_3)
        # The sign turned: in the order of unsigned numbers.
        b_key = tl.where(o % 2 == 0, even, odd).to(tl.uint32).to(tl.int32, bitcast=True) ^ (-2147483648)
    else:
        b_key = _ordered(tl.load(p_noise + b * L + o, mask=o < L, other=0.0).to(tl.float32))
    b_key = tl.where(o < L, b_key, 0x7FFFFFFF)
    order = (tl.sort((b_key.to(tl.int64) << 32) | o.to(tl.int64)) & 0xFFFFFFFF).to(tl.int32)
    tl.store(p_kept + b * keep + o, order.to(tl.int64), mask=o < keep)
    tl.store(p_masked + b * (L - keep) + o - keep, order.to(tl.int64), mask=(o >= keep) & (o < L))
    tl.store(p_restore + b * L + order, o.to(tl.int64), mask=o < L)
    tl.store(p_mask + b * L + order, tl.where(o < keep, 0.0, 1.0), mask=o < L)


@triton.jit(do_not_specialize=["sources", "targets"])
def chain_kernel(
    p_ids, p_first, p_next, sources, targets, BLOCK: tl.constexpr, BLOCK_S: tl.constexpr
):  # fmt: skip
    """Which rows go to the same target. Grid (images, blocks of sources and of targets).

    first [images, targets]: the first source that goes there; next [images, sources]: the one after a source. Where
    there is none, ``sources``.
    """
    b = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    b_own = tl.load(p_ids + b * sources + o, mask=o < sources, other=-1)
    b_first = tl.full([BLOCK], 2147483647, tl.int32)
    b_next = tl.full([BLOCK], 2147483647, tl.int32)
    for begin in range(0, sources, BLOCK_S):
        o_s = begin + tl.arange(0, BLOCK_S)
        b_id = tl.load(p_ids + b * sources + o_s, mask=o_s < sources, other=-1)
        place = tl.where(o_s < sources, o_s, 2147483647)[None, :]  # [1, BLOCK_S]
        here = tl.where(b_id[None, :] == o[:, None].to(tl.int64), place, 2147483647)
        b_first = tl.minimum(b_first, tl.min(here, 1))
        later = (b_id[None, :] == b_own[:, None]) & (o_s[None, :] > o[:, None])
        b_next = tl.minimum(b_next, tl.min(tl.where(later, place, 2147483647), 1))
    tl.store(p_first + b * targets + o, tl.minimum(b_first, sources), mask=o < targets)
    tl.store(p_next + b * sources + o, tl.minimum(b_next, sources), mask=o < sources)
