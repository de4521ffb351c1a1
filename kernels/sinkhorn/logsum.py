"""Maxima and sums of exponentials of parts of rows or columns, and their logarithms."""

# ruff: noqa: SIM108 - branches on constants stay statements: a branch that is not taken is not compiled

import triton
import triton.language as tl

from ..arithmetic import LN2, LOG2E, finite_or_zero


@triton.jit
def _load(p, mask, other, MASKED: tl.constexpr):
    if MASKED:
        b = tl.load(p, mask=mask, other=other)
    else:
        b = tl.load(p)
    return b.to(tl.float32)


@triton.jit(do_not_specialize=["R"])
def row_parts_kernel(
    p_x, p_potential, p_max, p_sum, R, K, stride: tl.int64, scale,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, HAS_POTENTIAL: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """dim 1: one chunk of the columns of a group of rows. Grid (chunks, groups).

    A chunk of a row fits in registers, so its maximum is known before its exponentials are taken. The chunk's
    potentials serve all rows of the group. Written: max and sum [chunks, R], of logits in units of log 2.
    """
    chunk = tl.program_id(0)
    o_k = chunk * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]  # [1, BLOCK_K]
    m_k = o_k < K
    b_v = tl.zeros([1, BLOCK_K], tl.float32)
    if HAS_POTENTIAL:
        b_v = tl.load(p_potential + o_k, mask=m_k, other=0.0) * LOG2E
    for block in tl.range(tl.program_id(1), tl.cdiv(R, BLOCK_R), tl.num_programs(1)):
        o_r = block * BLOCK_R + tl.arange(0, BLOCK_R)
        m = m_k & (o_r < R)[:, None]
        p = p_x + tl.minimum(o_r, R - 1)[:, None] * stride + o_k
        b_x = _load(p, m, float("-inf"), not WHOLE) * (scale * LOG2E) - b_v  # [BLOCK_R, BLOCK_K]
        b_max = tl.max(b_x, 1)
        b_sum = tl.sum(tl.exp2(b_x - finite_or_zero(b_max)[:, None]), 1)
        o_out = chunk.to(tl.int64) * R + o_r
        tl.store(p_max + o_out, b_max, mask=o_r < R)
        tl.store(p_sum + o_out, b_sum, mask=o_r < R)


@triton.jit(do_not_specialize=["R", "rows_per_part"])
def column_parts_kernel(
    p_x, p_potential, p_max, p_sum, R, K, stride: tl.int64, rows_per_part, scale,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, HAS_POTENTIAL: tl.constexpr,
):  # fmt: skip
    """dim 0: a block of columns of one part of the rows. Grid (column blocks, parts).

    A thread has its columns to itself: running maxima and sums need no exchange. Written: max and sum [parts, K].
    """
    part = tl.program_id(1)
    o_k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    b_max = tl.full([BLOCK_K], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_K], tl.float32)
    last = tl.minimum((part + 1) * rows_per_part, R)
    for first in tl.range(part * rows_per_part, last, BLOCK_R):
        o_r = first + tl.arange(0, BLOCK_R)
        m_r = (o_r < last)[:, None]
        p = p_x + o_r[:, None] * stride + o_k[None, :]
        b_x = tl.load(p, mask=m_r & (o_k < K)[None, :], other=0.0).to(tl.float32) * (scale * LOG2E)
        if HAS_POTENTIAL:
            b_x -= (tl.load(p_potential + o_r, mask=o_r < last, other=0.0) * LOG2E)[:, None]
        b_x = tl.where(m_r, b_x, float("-inf"))  # [BLOCK_R, BLOCK_K]
        b_new = tl.maximum(b_max, tl.max(b_x, 0))
        b_shift = finite_or_zero(b_new)
        b_sum = b_sum * tl.exp2(b_max - b_shift) + tl.sum(tl.exp2(b_x - b_shift[None, :]), 0)
        b_max = b_new
    o_out = part.to(tl.int64) * K + o_k
    tl.store(p_max + o_out, b_max, mask=o_k < K)
    tl.store(p_sum + o_out, b_sum, mask=o_k < K)


@triton.jit(do_not_specialize=["parts", "N"])
def combine_kernel(p_max, p_sum, p_out, parts, N, SLOTS: tl.constexpr, BLOCK: tl.constexpr):
    """Log-sums [N] from max and sum [parts, N]; SLOTS parts at a time, because single ones would wait for memory."""
    o_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_max = tl.full([BLOCK], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK], tl.float32)
    for first in range(0, parts, SLOTS):
        o_part = first + tl.arange(0, SLOTS)
        o = o_part[:, None].to(tl.int64) * N + o_n[None, :]  # [SLOTS, BLOCK]
        m = (o_part < parts)[:, None] & (o_n < N)[None, :]
        b_part = tl.load(p_max + o, mask=m, other=float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_part, 0))
        b_shift = finite_or_zero(b_new)
        # a NaN maximum may be dropped above, but the sum beside it is NaN too
        b_part = tl.load(p_sum + o, mask=m, other=0.0) * tl.exp2(b_part - b_shift[None, :])
        b_sum = b_sum * tl.exp2(b_max - b_shift) + tl.sum(b_part, 0)
        b_max = b_new
    tl.store(p_out + o_n, (finite_or_zero(b_max) + tl.log2(b_sum)) * LN2, mask=o_n < N)
