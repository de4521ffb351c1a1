"""Log-sums of rows: partial sums per block of rows and split of the columns, then their logarithm."""

# ruff: noqa: SIM108 - branches on constants stay statements: a branch that is not taken is not compiled

import triton
import triton.language as tl

from ..arithmetic import LN2, LOG2E
from .common import (
    _RECTANGLE,
    KEY,
    NONE,
    _in_log_sum,
    _load_operand,
    _own_and_positive,
    _positives,
    _product,
    _range_of,
    _scale,
    _schedule,
)


@triton.jit(do_not_specialize=[*_RECTANGLE, "tiles_per_split", "depth"])
def logsum_kernel(
    p_q, p_k, p_row_key, p_col_key, p_logit_scale, p_sum, p_max, p_positive, p_column_sum,
    M, N, M_pad, row_base, row_step, col_shift, scale, first_block, tiles_per_split, depth,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
    POSITIVES: tl.constexpr, EXCLUDE_SELF: tl.constexpr, EXCLUDE_POSITIVES: tl.constexpr,
    SYMMETRIC: tl.constexpr, ONLINE: tl.constexpr, HAS_LOGIT_SCALE: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Partial row sums of exp(x) for one block of rows and one split of the column tiles.

    Grid (row blocks, splits). Written: sum [splits, M_pad] (and max, ONLINE), positive [splits, M_pad] (sum of c).

    SYMMETRIC (q is k, FIXED, BLOCK_M == BLOCK_N): the program of row block r walks only over the tiles right of the
    diagonal tile (r, r), and a tile's column sums are the row sums of its mirror image below the diagonal. They
    go to column_sum [r - first_block, M_pad]. Split 0 also owns the diagonal tile, for its rows only.
    """
    block = first_block + tl.program_id(0)
    split = tl.program_id(1)
    s = _scale(scale, p_logit_scale, HAS_LOGIT_SCALE)
    s2 = s * LOG2E

    o_m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    p_rows = p_q + block.to(tl.int64) * (BLOCK_M * D)
    if BLOCK_D == D:
        b_q = _load_operand(p_rows + tl.arange(0, BLOCK_M)[:, None] * D + tl.arange(0, D)[None, :], UPCAST)
    else:
        b_q = 0
    o_own, o_positive = _own_and_positive(o_m, M, N, row_base, row_step, col_shift, EXCLUDE_SELF, POSITIVES)
    b_row_key = o_m
    if POSITIVES == KEY:
        b_row_key = tl.load(p_row_key + o_m, mask=o_m < M, other=0)

    first = split * tiles_per_split
    if SYMMETRIC:
        first += block + 1
    last = tl.minimum(first + tiles_per_split, tl.cdiv(N, BLOCK_N))
    if SYMMETRIC:
        near_first, near, plain, tail = _schedule(first, last, N, -1, N, BLOCK_N, POSITIVES)
        near_first = block
        near = (split == 0).to(tl.int32)
    else:
        low, high = _range_of(o_own, o_positive, N, EXCLUDE_SELF, POSITIVES)
        near_first, near, plain, tail = _schedule(first, last, low, high, N, BLOCK_N, POSITIVES)

    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_positive = tl.zeros([BLOCK_M], tl.float32)

    # Tiles that need masks: near the diagonal, and the one with padded columns.
    for i in tl.range(0, near + tail, num_stages=STAGES if POSITIVES == KEY else 1):
        tile = tl.where(i < near, near_first + i, N // BLOCK_N)
        o_n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        p_columns = p_k + tile.to(tl.int64) * (BLOCK_N * D)
        b_c = _product(b_q, p_rows, p_columns, depth, D, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION, STAGES, UPCAST)
        m_positive = _positives(o_n, N, o_own, o_positive, b_row_key, p_col_key, EXCLUDE_SELF, POSITIVES)
        m_in = _in_log_sum(o_n, N, o_own, m_positive, EXCLUDE_SELF, EXCLUDE_POSITIVES)
        if POSITIVES != NONE:
            b_positive += tl.sum(tl.where(m_positive, b_c, 0.0), 1)
        if ONLINE:
            b_x = tl.where(m_in, b_c * s2, float("-inf"))
            b_new = tl.maximum(b_max, tl.max(b_x, 1))
            b_shift = tl.where(b_new == float("-inf"), 0.0, b_new)  # nothing seen yet: exp2(-inf - 0) = 0
            b_sum = b_sum * tl.exp2(b_max - b_shift) + tl.sum(tl.exp2(b_x - b_shift[:, None]), 1)
            b_max = b_new
        else:
            b_e = tl.where(m_in, tl.exp2(b_c * s2 - s2), 0.0)
            b_sum += tl.sum(b_e, 1)
            if SYMMETRIC:
                p_out = p_column_sum + tl.program_id(0).to(tl.int64) * M_pad + o_n
                tl.store(p_out, tl.sum(b_e, 0), mask=o_n < tl.where(tile > block, N, 0))

    # All other tiles: product, exponential, sum.
    if POSITIVES != KEY:
        for t in tl.range(first, first + plain, num_stages=STAGES if BLOCK_D == D else 1):
            if SYMMETRIC:
                tile = t
            else:
                tile = tl.where(t < near_first, t, t + near)
            p_columns = p_k + tile.to(tl.int64) * (BLOCK_N * D)
            b_c = _product(b_q, p_rows, p_columns, depth, D, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION, STAGES, UPCAST)
            if ONLINE:
                b_x = b_c * s2
                b_new = tl.maximum(b_max, tl.max(b_x, 1))
                # an all-NaN tile may leave b_new at -inf; NaN - -inf is NaN, as it must be
                b_sum = b_sum * tl.exp2(b_max - b_new) + tl.sum(tl.exp2(b_x - b_new[:, None]), 1)
                b_max = b_new
            else:
                b_e = tl.exp2(b_c * s2 - s2)
                b_sum += tl.sum(b_e, 1)
                if SYMMETRIC:
                    p_out = p_column_sum + tl.program_id(0).to(tl.int64) * M_pad + tile * BLOCK_N
                    tl.store(p_out + tl.arange(0, BLOCK_N), tl.sum(b_e, 0))

    o_out = split.to(tl.int64) * M_pad + o_m
    tl.store(p_sum + o_out, b_sum)
    if ONLINE:
        tl.store(p_max + o_out, b_max)
    if POSITIVES != NONE:
        tl.store(p_positive + o_out, b_positive)


@triton.jit(do_not_specialize=["M", "M_pad", "splits", "first_block", "blocks"])
def combine_kernel(
    p_sum, p_max, p_positive, p_column_sum, p_running, p_logit_scale, p_lse, p_positive_out,
    M, M_pad, splits, first_block, blocks, scale,
    BLOCK: tl.constexpr, SLOTS: tl.constexpr, BLOCK_M: tl.constexpr,
    POSITIVES: tl.constexpr, SYMMETRIC: tl.constexpr, ONLINE: tl.constexpr, HAS_LOGIT_SCALE: tl.constexpr,
    FIRST: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Adds the partial sums of `logsum_kernel` in a fixed order and takes the logarithm; BLOCK rows per program.

    SYMMETRIC problems come in chunks of row blocks, so that the column sums stay small: `running` [2, M_pad] carries
    sums and positives from chunk to chunk (FIRST does not read it, LAST writes the results instead). Partial sums
    are read SLOTS at a time: a loop over single ones would wait for memory at every step.
    """
    o_m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    o_s = tl.arange(0, SLOTS)
    b_sum = tl.zeros([BLOCK], tl.float32)
    b_max = tl.full([BLOCK], float("-inf"), tl.float32)
    b_positive = tl.zeros([BLOCK], tl.float32)
    if not FIRST:
        b_sum += tl.load(p_running + o_m)
        b_positive += tl.load(p_running + M_pad + o_m)

    m_row = o_m < M
    if SYMMETRIC:  # only these rows were walked over in this chunk
        m_row = m_row & (o_m // BLOCK_M >= first_block) & (o_m // BLOCK_M < first_block + blocks)
    for i in range(0, splits, SLOTS):
        o_part = (i + o_s)[:, None].to(tl.int64) * M_pad + o_m[None, :]  # [SLOTS, BLOCK]
        m_part = (i + o_s < splits)[:, None] & m_row[None, :]
        b_part = tl.load(p_sum + o_part, mask=m_part, other=0.0)
        if ONLINE:
            b_part_max = tl.load(p_max + o_part, mask=m_part, other=float("-inf"))
            b_new = tl.maximum(b_max, tl.max(b_part_max, 0))
            b_shift = tl.where(b_new == float("-inf"), 0.0, b_new)
            # a NaN maximum may be dropped above, but the sum beside it is NaN too
            b_part = b_part * tl.exp2(b_part_max - b_shift[None, :])
            b_sum = b_sum * tl.exp2(b_max - b_shift)
            b_max = b_new
        b_sum += tl.sum(b_part, 0)
        if POSITIVES != NONE:
            b_positive += tl.sum(tl.load(p_positive + o_part, mask=m_part, other=0.0), 0)
    if SYMMETRIC:
        for i in range(0, blocks, SLOTS):
            o_part = (i + o_s)[:, None].to(tl.int64) * M_pad + o_m[None, :]
            # block r wrote column sums only for the tiles right of the diagonal
            m_part = (i + o_s < blocks)[:, None] & (first_block + i + o_s[:, None] < o_m[None, :] // BLOCK_M)
            b_sum += tl.sum(tl.load(p_column_sum + o_part, mask=m_part & (o_m < M)[None, :], other=0.0), 0)

    if LAST:
        s = _scale(scale, p_logit_scale, HAS_LOGIT_SCALE)
        if ONLINE:
            b_shift = tl.where(b_max == float("-inf"), 0.0, b_max)
        else:
            b_shift = tl.zeros([BLOCK], tl.float32) + s * LOG2E
        tl.store(p_lse + o_m, (b_shift + tl.log2(b_sum)) * LN2, mask=o_m < M)
        tl.store(p_positive_out + o_m, b_positive * s if POSITIVES != NONE else b_positive, mask=o_m < M)
    else:
        tl.store(p_running + o_m, b_sum)
        tl.store(p_running + M_pad + o_m, b_positive)
