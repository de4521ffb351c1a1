"""The few best columns of every row: per split of the columns, then of all splits."""

import triton
import triton.language as tl

NAN_RANK = tl.constexpr(2**31 - 1)
NO_RANK = tl.constexpr(-(2**31))  # below that of minus infinity


@triton.jit
def _rank(x):
    """int32 in the order of fp32: both zeros equal, NaN the largest, none as small as NO_RANK."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ NAN_RANK, bits)  # a negative number's bits grow with its size
    return tl.where(x == x, bits, NAN_RANK)


@triton.jit(do_not_specialize=["M", "N", "row_offset", "tiles_per_split"])
def nearest_kernel(
    p_q, p_k, p_rank, p_column, M, N, D, q_stride: tl.int64, k_stride: tl.int64, row_offset, tiles_per_split,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, SLOTS: tl.constexpr,
    STAGES: tl.constexpr, EXCLUDE_SELF: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The SLOTS best columns of a block of rows within a split. Grid (row blocks, splits).

    Written, in no order: rank and column [splits, M, SLOTS], int32; a slot that stayed empty has NO_RANK.
    """
    split = tl.program_id(1)
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_slot = tl.arange(0, SLOTS)[None, :]
    o_d = tl.arange(0, BLOCK_D)
    m_row = o_m < M
    p_rows = p_q + o_m.to(tl.int64)[:, None] * q_stride + o_d[None, :]  # [BLOCK_M, BLOCK_D]
    b_best = tl.full([BLOCK_M, SLOTS], NO_RANK, tl.int32)
    b_column = tl.zeros([BLOCK_M, SLOTS], tl.int32) + N + o_slot  # empty slots are told apart, too
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tl.cdiv(N, BLOCK_N))
    for tile in range(first, last):
        o_n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        m_column = o_n < N
        p_columns = p_k + o_n.to(tl.int64)[None, :] * k_stride + o_d[:, None]  # [BLOCK_D, BLOCK_N]
        b_x = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for d in tl.range(0, D, BLOCK_D, num_stages=STAGES):
            m_d = o_d < D - d
            b_q = tl.load(p_rows + d, mask=m_row[:, None] & m_d[None, :], other=0.0)
            b_k = tl.load(p_columns + d, mask=m_d[:, None] & m_column[None, :], other=0.0)
            if UPCAST:  # the interpreter's 16-bit product is wrong, its fp32 one is right
                b_q, b_k = b_q.to(tl.float32), b_k.to(tl.float32)
            b_x = tl.dot(b_q, b_k, b_x, input_precision=PRECISION)
        m_in = m_row[:, None] & m_column[None, :]
        if EXCLUDE_SELF:
            m_in = m_in & (o_n[None, :] != (o_m + row_offset)[:, None])
        b_rank = tl.where(m_in, _rank(b_x), NO_RANK)  # [BLOCK_M, BLOCK_N]

        # Columns ascend, so an equal rank that comes later never enters: a row's slot changes only for a larger one.
        b_candidate = tl.max(b_rank, 1)  # [BLOCK_M]
        b_worst = tl.min(b_best, 1)
        while tl.max((b_candidate > b_worst).to(tl.int32), 0) > 0:
            o_candidate = tl.min(tl.where(b_rank == b_candidate[:, None], o_n[None, :], 2**31 - 1), 1)
            o_worst = tl.max(tl.where(b_best == b_worst[:, None], b_column, -1), 1)  # the last of equals goes
            m_slot = (b_column == o_worst[:, None]) & (b_candidate > b_worst)[:, None]  # [BLOCK_M, SLOTS]
            b_best = tl.where(m_slot, b_candidate[:, None], b_best)
            b_column = tl.where(m_slot, o_candidate[:, None], b_column)
            b_rank = tl.where(o_n[None, :] == o_candidate[:, None], NO_RANK, b_rank)
            b_candidate = tl.max(b_rank, 1)
            b_worst = tl.min(b_best, 1)
    o_out = (split.to(tl.int64) * M + o_m)[:, None] * SLOTS + o_slot
    tl.store(p_rank + o_out, b_best, mask=m_row[:, None])
    tl.store(p_column + o_out, b_column, mask=m_row[:, None])


@triton.jit(do_not_specialize=["M", "splits", "count"])
def select_kernel(
    p_rank, p_column, p_out, M, splits, count, BLOCK_M: tl.constexpr, CANDIDATES: tl.constexpr, SLOTS: tl.constexpr
):  # fmt: skip
    """The ``count`` best of all splits, in order: out [M, count], int64. CANDIDATES: splits x SLOTS, padded."""
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_candidate = tl.arange(0, CANDIDATES)
    o_split, o_slot = o_candidate // SLOTS, o_candidate % SLOTS
    o = (o_split[None, :].to(tl.int64) * M + o_m[:, None]) * SLOTS + o_slot[None, :]
    m = (o_m < M)[:, None] & (o_split < splits)[None, :]
    b_rank = tl.load(p_rank + o, mask=m, other=NO_RANK)  # [BLOCK_M, CANDIDATES]
    b_column = tl.load(p_column + o, mask=m, other=2**31 - 1)
    for i in range(0, count):
        b_best = tl.max(b_rank, 1)
        o_best = tl.min(tl.where(b_rank == b_best[:, None], b_column, 2**31 - 1), 1)
        tl.store(p_out + o_m.to(tl.int64) * count + i, o_best.to(tl.int64), mask=o_m < M)
        b_rank = tl.where(b_column == o_best[:, None], NO_RANK, b_rank)
