"""SigLIP: each pair of a row and a column is a yes or a no of its own, so that loss and G need no log-sum first."""

import triton
import triton.language as tl

from ..arithmetic import LN2, LOG2E, log1p_of_unit
from .common import (
    _RECTANGLE,
    DIAGONAL,
    _block_and_tile,
    _load_operand,
    _own_and_positive,
    _product,
    _range_of,
    _round_to,
    _scale,
    _schedule,
)

_LAUNCH = [*_RECTANGLE, "bias", "weight"]


@triton.jit
def _full_bias(bias, p_logit_bias, HAS_LOGIT_BIAS: tl.constexpr):
    """The number plus the learnable tensor."""
    if HAS_LOGIT_BIAS:
        return bias + tl.load(p_logit_bias).to(tl.float32)
    return bias


@triton.jit
def _pairs(b_c, s2, bias2, o_n, N, o_positive, NEAR: tl.constexpr):
    """The derivative of every pair's loss by its logit, and its loss: two tiles [BLOCK_M, BLOCK_N].

    NEAR: the tile may hold positives or padded columns.
    """
    b_x = b_c * s2 + bias2  # in base 2
    if NEAR:
        # A match is a pair whose logit has the other sign. What lies beyond the columns is certain to be none.
        m_positive = o_n[None, :] == o_positive[:, None]
        b_x = tl.where(m_positive, -b_x, b_x)
        b_x = tl.where((o_n < N)[None, :], b_x, float("-inf"))
    b_small = tl.exp2(-tl.abs(b_x))
    b_g = tl.where(b_x < 0, b_small, 1.0) / (1.0 + b_small)
    b_loss = tl.where(b_x > 0, b_x, 0.0) * LN2 + log1p_of_unit(b_small)
    if NEAR:
        b_g = tl.where(m_positive, -b_g, b_g)
    return b_g, b_loss


@triton.jit(do_not_specialize=[*_LAUNCH, "tiles_per_split"])
def sigmoid_kernel(
    p_q, p_k, p_logit_scale, p_logit_bias, p_out, p_sums,
    M, N, M_pad, row_base, row_step, col_shift, scale, bias, weight, first_block, tiles_per_split,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    HAS_LOGIT_SCALE: tl.constexpr, HAS_LOGIT_BIAS: tl.constexpr, SUMS: tl.constexpr,
    PRECISION: tl.constexpr, ROUND: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """weight sum_j G_ij k_j for one block of rows and one split of the columns: out [splits, M_pad, D] fp32.

    SUMS: also the rows' sums of losses and of G, without the weight: p_sums [2, splits, M_pad]. D fits in one block.
    """
    block = first_block + tl.program_id(0)
    split = tl.program_id(1)
    s2 = _scale(scale, p_logit_scale, HAS_LOGIT_SCALE) * LOG2E
    bias2 = _full_bias(bias, p_logit_bias, HAS_LOGIT_BIAS) * LOG2E

    o_m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    o_bn = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, D)
    b_q = _load_operand(
        p_q + block.to(tl.int64) * (BLOCK_M * D) + tl.arange(0, BLOCK_M)[:, None] * D + o_d[None, :], UPCAST
    )
    o_own, o_positive = _own_and_positive(o_m, M, N, row_base, row_step, col_shift, False, DIAGONAL)
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tl.cdiv(N, BLOCK_N))
    low, high = _range_of(o_own, o_positive, N, False, DIAGONAL)
    near_first, near, plain, tail = _schedule(first, last, low, high, N, BLOCK_N, DIAGONAL)

    b_out = tl.zeros([BLOCK_M, D], tl.float32)
    b_losses = tl.zeros([BLOCK_M], tl.float32)
    b_slopes = tl.zeros([BLOCK_M], tl.float32)
    for i in tl.range(0, near + tail, num_stages=1):
        tile = tl.where(i < near, near_first + i, N // BLOCK_N)
        b_k = _load_operand(p_k + tile.to(tl.int64) * (BLOCK_N * D) + o_bn[:, None] * D + o_d[None, :], UPCAST)
        b_c = tl.dot(b_q, b_k.T, input_precision=PRECISION)
        b_g, b_loss = _pairs(b_c, s2, bias2, tile * BLOCK_N + o_bn, N, o_positive, True)
        if SUMS:
            b_losses += tl.sum(b_loss, 1)
            b_slopes += tl.sum(b_g, 1)
        b_out = tl.dot(_round_to(b_g, p_k.dtype.element_ty, ROUND, UPCAST), b_k, b_out, input_precision=PRECISION)
    for t in tl.range(first, first + plain, num_stages=STAGES):
        tile = tl.where(t < near_first, t, t + near)
        b_k = _load_operand(p_k + tile.to(tl.int64) * (BLOCK_N * D) + o_bn[:, None] * D + o_d[None, :], UPCAST)
        b_c = tl.dot(b_q, b_k.T, input_precision=PRECISION)
        b_g, b_loss = _pairs(b_c, s2, bias2, tile * BLOCK_N + o_bn, N, o_positive, False)
        if SUMS:
            b_losses += tl.sum(b_loss, 1)
            b_slopes += tl.sum(b_g, 1)
        b_out = tl.dot(_round_to(b_g, p_k.dtype.element_ty, ROUND, UPCAST), b_k, b_out, input_precision=PRECISION)

    p_rows_out = p_out + (split.to(tl.int64) * M_pad + block * BLOCK_M) * D
    tl.store(p_rows_out + tl.arange(0, BLOCK_M)[:, None] * D + o_d[None, :], b_out * weight)
    if SUMS:
        p_row = p_sums + split.to(tl.int64) * M_pad + o_m
        tl.store(p_row, b_losses)
        tl.store(p_row + tl.num_programs(1).to(tl.int64) * M_pad, b_slopes)


@triton.jit(do_not_specialize=[*_LAUNCH, "blocks", "depth"])
def sigmoid_weights_kernel(
    p_q, p_k, p_logit_scale, p_logit_bias, p_out, p_sums,
    M, N, M_pad, N_pad, row_base, row_step, col_shift, scale, bias, weight, first_block, blocks, depth,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
    HAS_LOGIT_SCALE: tl.constexpr, HAS_LOGIT_BIAS: tl.constexpr, SUMS: tl.constexpr, WEIGHTS: tl.constexpr,
    PRECISION: tl.constexpr, ROUND: tl.constexpr, UPCAST: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """weight G of a chunk of rows, written out: out [blocks * BLOCK_M, N_pad], as ``pair_weights_kernel`` does.

    SUMS: also the rows' sums of each tile: p_sums [2, N_pad / BLOCK_N, M_pad]. WEIGHTS false: those alone.
    """
    tiles = N_pad // BLOCK_N
    block_in_chunk, tile = _block_and_tile(blocks, tiles, GROUP)
    block = first_block + block_in_chunk

    s2 = _scale(scale, p_logit_scale, HAS_LOGIT_SCALE) * LOG2E
    bias2 = _full_bias(bias, p_logit_bias, HAS_LOGIT_BIAS) * LOG2E
    o_m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    p_rows = p_q + block.to(tl.int64) * (BLOCK_M * D)
    p_columns = p_k + tile.to(tl.int64) * (BLOCK_N * D)
    if BLOCK_D == D:
        b_q = _load_operand(p_rows + tl.arange(0, BLOCK_M)[:, None] * D + tl.arange(0, D)[None, :], UPCAST)
    else:
        b_q = 0
    b_c = _product(b_q, p_rows, p_columns, depth, D, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION, STAGES, UPCAST)
    _, o_positive = _own_and_positive(o_m, M, N, row_base, row_step, col_shift, False, DIAGONAL)
    b_g, b_loss = _pairs(b_c, s2, bias2, o_n, N, o_positive, True)
    if SUMS:
        p_row = p_sums + tile.to(tl.int64) * M_pad + o_m
        tl.store(p_row, tl.sum(b_loss, 1))
        tl.store(p_row + tiles.to(tl.int64) * M_pad, tl.sum(b_g, 1))
    if WEIGHTS:
        b_g = _round_to(b_g * weight, p_out.dtype.element_ty, ROUND, UPCAST)
        p_tile = p_out + (block_in_chunk * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None] * N_pad
        tl.store(p_tile + o_n[None, :], b_g.to(p_out.dtype.element_ty))
