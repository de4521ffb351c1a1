"""Rows against columns that want no gradient (a queue, a momentum encoder's keys): log-sum and gradient in one pass."""

import triton
import triton.language as tl

from ..arithmetic import LOG2E, finite_or_zero
from .common import (
    _RECTANGLE,
    DIAGONAL,
    INDEX,
    _load_operand,
    _own_and_positive,
    _range_of,
    _round_to,
    _scale,
    _schedule,
)


@triton.jit
def _attend(
    b_q, b_k, s2, o_n, N, o_left_out, b_sum, b_max, b_out,
    NEAR: tl.constexpr, ONLINE: tl.constexpr, PRECISION: tl.constexpr, ROUND: tl.constexpr, UPCAST: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """Adds a tile of columns: exponentials are summed up and multiplied with them, as attention does whose v is k.

    NEAR: the tile may hold columns that are left out, or padding.
    """
    b_x = tl.dot(b_q, b_k.T, input_precision=PRECISION) * s2
    if NEAR:
        m = (o_n < N)[None, :] & (o_n[None, :] != o_left_out[:, None])
        b_x = tl.where(m, b_x, float("-inf"))
    if ONLINE:
        b_new = tl.maximum(b_max, tl.max(b_x, 1))
        b_shift = finite_or_zero(b_new)
        b_factor = tl.exp2(b_max - b_shift)
        b_sum = b_sum * b_factor
        b_out = b_out * b_factor[:, None]
        b_max = b_new
        b_e = tl.exp2(b_x - b_shift[:, None])
    else:
        b_e = tl.exp2(b_x - s2)
    b_sum += tl.sum(b_e, 1)
    b_out = tl.dot(_round_to(b_e, DTYPE, ROUND, UPCAST), b_k, b_out, input_precision=PRECISION)
    return b_sum, b_max, b_out


@triton.jit(do_not_specialize=[*_RECTANGLE, "tiles_per_split"])
def bank_kernel(
    p_q, p_k, p_index, p_logit_scale, p_out, p_sums,
    M, N, M_pad, row_base, row_step, col_shift, scale, first_block, tiles_per_split,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    POSITIVES: tl.constexpr, ONLINE: tl.constexpr, HAS_LOGIT_SCALE: tl.constexpr,
    PRECISION: tl.constexpr, ROUND: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """sum_j e_ij k_j for one block of rows and one split of the columns: out [splits, M_pad, D] fp32.

    And p_sums [2, splits, M_pad]: sum_j e_ij, and the shift, in base 2, of e_ij = 2^(s c_ij log2(e) - shift). Where
    POSITIVES is DIAGONAL a row's own column is left out, where it is INDEX column index[i] is. D fits in one block.
    """
    block = first_block + tl.program_id(0)
    split = tl.program_id(1)
    s2 = _scale(scale, p_logit_scale, HAS_LOGIT_SCALE) * LOG2E

    o_m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    o_bn = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, D)
    b_q = _load_operand(
        p_q + block.to(tl.int64) * (BLOCK_M * D) + tl.arange(0, BLOCK_M)[:, None] * D + o_d[None, :], UPCAST
    )
    o_own, o_left_out = _own_and_positive(o_m, M, N, row_base, row_step, col_shift, False, DIAGONAL)
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tl.cdiv(N, BLOCK_N))
    low = N
    high = -1
    if POSITIVES == DIAGONAL:
        low, high = _range_of(o_own, o_left_out, N, False, DIAGONAL)
    elif POSITIVES == INDEX:  # they may be anywhere: every tile looks
        o_left_out = tl.load(p_index + o_m, mask=o_m < M, other=-1)
        o_left_out = tl.where((o_left_out >= 0) & (o_left_out < N), o_left_out, -1).to(tl.int32)
    else:
        o_left_out = tl.full([BLOCK_M], -1, tl.int32)
    near_first, near, plain, tail = _schedule(first, last, low, high, N, BLOCK_N, DIAGONAL)

    b_out = tl.zeros([BLOCK_M, D], tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for i in tl.range(0, near + tail, num_stages=1):
        tile = tl.where(i < near, near_first + i, N // BLOCK_N)
        b_k = _load_operand(p_k + tile.to(tl.int64) * (BLOCK_N * D) + o_bn[:, None] * D + o_d[None, :], UPCAST)
        b_sum, b_max, b_out = _attend(
            b_q, b_k, s2, tile * BLOCK_N + o_bn, N, o_left_out, b_sum, b_max, b_out,
            True, ONLINE, PRECISION, ROUND, UPCAST, p_k.dtype.element_ty,
        )  # fmt: skip
    for t in tl.range(first, first + plain, num_stages=STAGES):
        tile = tl.where(t < near_first, t, t + near)
        b_k = _load_operand(p_k + tile.to(tl.int64) * (BLOCK_N * D) + o_bn[:, None] * D + o_d[None, :], UPCAST)
        b_sum, b_max, b_out = _attend(
            b_q, b_k, s2, tile * BLOCK_N + o_bn, N, o_left_out, b_sum, b_max, b_out,
            POSITIVES == INDEX, ONLINE, PRECISION, ROUND, UPCAST, p_k.dtype.element_ty,
        )  # fmt: skip

    p_rows_out = p_out + (split.to(tl.int64) * M_pad + block * BLOCK_M) * D
    tl.store(p_rows_out + tl.arange(0, BLOCK_M)[:, None] * D + o_d[None, :], b_out)
    p_row = p_sums + split.to(tl.int64) * M_pad + o_m
    tl.store(p_row, b_sum)
    if not ONLINE:
        b_max = tl.zeros([BLOCK_M], tl.float32) + s2
    tl.store(p_row + tl.num_programs(1).to(tl.int64) * M_pad, b_max)
