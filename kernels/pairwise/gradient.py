"""Gradient for the rows: terms of every row and column, G tile by tile times the columns, and back to the input."""

import triton
import triton.language as tl

from ..arithmetic import LOG2E
from .common import (
    _RECTANGLE,
    INVERSE_EPS,
    KEY,
    NONE,
    _block_and_tile,
    _in_log_sum,
    _load_operand,
    _own_and_positive,
    _positives,
    _product,
    _range_of,
    _round_to,
    _scale,
    _schedule,
)

# ------------------------------------------------------------------------------------------------------ small functions


@triton.jit
def _pair_weights(
    b_c, s2, b_row_lse2, b_row_weight, b_col_lse2, b_col_weight,
    ONLINE: tl.constexpr, HAS_ROW: tl.constexpr, HAS_COL: tl.constexpr,
):  # fmt: skip
    """G [BLOCK_M, BLOCK_N] without masks and positives.

    With the fixed shift the weights already contain exp(s - lse), so one exponential serves rows and columns.
    """
    if ONLINE:
        b_x = b_c * s2
        b_g = tl.zeros_like(b_c)
        if HAS_ROW:
            b_g += tl.exp2(b_x - b_row_lse2[:, None]) * b_row_weight[:, None]
        if HAS_COL:
            b_g += tl.exp2(b_x - b_col_lse2[None, :]) * b_col_weight[None, :]
    else:
        if HAS_ROW and HAS_COL:
            b_g = tl.exp2(b_c * s2 - s2) * (b_row_weight[:, None] + b_col_weight[None, :])
        elif HAS_ROW:
            b_g = tl.exp2(b_c * s2 - s2) * b_row_weight[:, None]
        elif HAS_COL:
            b_g = tl.exp2(b_c * s2 - s2) * b_col_weight[None, :]
        else:
            b_g = tl.zeros_like(b_c)
    return b_g


@triton.jit
def _weights_of_positives(
    o_m, o_positive, p_row_terms, p_col_terms, M_pad, N_pad,
    POSITIVES: tl.constexpr, HAS_ROW_POSITIVE: tl.constexpr, HAS_COL_POSITIVE: tl.constexpr,
):  # fmt: skip
    """What each row's positive adds to G: [BLOCK_M].

    The column's share is gathered here, once per row, so that the inner loop needs no vector of columns for it.
    With keys a row has many positives, and the loop adds their columns' shares itself.
    """
    b_positive = tl.zeros_like(o_m).to(tl.float32)
    if HAS_ROW_POSITIVE:
        b_positive += tl.load(p_row_terms + 2 * M_pad + o_m)
    if HAS_COL_POSITIVE and POSITIVES != KEY:
        b_positive += tl.load(p_col_terms + 2 * N_pad + o_positive, mask=o_positive >= 0, other=0.0)
    return b_positive


@triton.jit
def _mask_and_add_positives(
    b_g, o_n, N, o_own, o_positive, b_positive, b_row_key, p_col_key, p_col_terms, N_pad,
    EXCLUDE_SELF: tl.constexpr, POSITIVES: tl.constexpr, EXCLUDE_POSITIVES: tl.constexpr,
    HAS_ROW_POSITIVE: tl.constexpr, HAS_COL_POSITIVE: tl.constexpr,
):  # fmt: skip
    """Zeroes what is not in the log-sum and adds the positives' weights.

    Here and not afterwards: at low loss the softmax of the positive and its weight nearly cancel, and only their
    difference survives the rounding of G to 16 bits.
    """
    m_positive = _positives(o_n, N, o_own, o_positive, b_row_key, p_col_key, EXCLUDE_SELF, POSITIVES)
    m_in = _in_log_sum(o_n, N, o_own, m_positive, EXCLUDE_SELF, EXCLUDE_POSITIVES)
    b_g = tl.where(m_in, b_g, 0.0)
    if POSITIVES != NONE and (HAS_ROW_POSITIVE or HAS_COL_POSITIVE):
        b_add = b_positive[:, None]
        if POSITIVES == KEY and HAS_COL_POSITIVE:
            b_add = b_add + tl.load(p_col_terms + 2 * N_pad + o_n)[None, :]
        b_g += tl.where(m_positive, b_add, 0.0)
    return b_g


# -------------------------------------------------------------------------------------------------------------- kernels


@triton.jit(do_not_specialize=["n0", "n1", "n2", "n3"])
def weight_scale_kernel(p_w0, p_w1, p_w2, p_w3, p_out, n0, n1, n2, n3, BLOCK: tl.constexpr):
    """One power of two that brings the largest weight to 2^12 .. 2^13 (fp16 only; a single program).

    G is at most the sum of four weights, so it stays under 2^15 and does not overflow fp16, whatever a loss scaler
    multiplied the incoming gradient with; and its small entries keep clear of fp16's subnormals.
    """
    b_max = tl.zeros([BLOCK], tl.float32)
    o = tl.arange(0, BLOCK)
    for i in range(0, n0, BLOCK):
        b_max = tl.maximum(b_max, tl.abs(tl.load(p_w0 + i + o, mask=i + o < n0, other=0.0)))
    for i in range(0, n1, BLOCK):
        b_max = tl.maximum(b_max, tl.abs(tl.load(p_w1 + i + o, mask=i + o < n1, other=0.0)))
    for i in range(0, n2, BLOCK):
        b_max = tl.maximum(b_max, tl.abs(tl.load(p_w2 + i + o, mask=i + o < n2, other=0.0)))
    for i in range(0, n3, BLOCK):
        b_max = tl.maximum(b_max, tl.abs(tl.load(p_w3 + i + o, mask=i + o < n3, other=0.0)))
    largest = tl.max(b_max, 0)
    usable = (largest > 1e-30) & (largest < 1e30)
    exponent = tl.where(usable, 13.0 - tl.ceil(tl.log2(tl.where(usable, largest, 1.0))), 13.0)
    tl.store(p_out, tl.exp2(exponent))


@triton.jit(do_not_specialize=["rows"])
def terms_kernel(
    p_lse, p_weight, p_positive_weight, p_logit_scale, p_weight_scale, p_out, rows, rows_pad, scale,
    BLOCK: tl.constexpr, ONLINE: tl.constexpr, HAS_LOGSUM: tl.constexpr, HAS_POSITIVE: tl.constexpr,
    HAS_LOGIT_SCALE: tl.constexpr, HAS_WEIGHT_SCALE: tl.constexpr,
):  # fmt: skip
    """Per-row (or per-column) terms of G, ready for the inner loop: out [3, rows_pad] = lse2, weight, positive.

    FIXED: weight = w exp(s - lse), so that G needs one exponential. ONLINE: lse2 = lse log2(e). A row whose log-sum is
    empty (lse = -inf) has no gradient. Padding is zero.
    """
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = o < rows
    factor = 1.0
    if HAS_WEIGHT_SCALE:
        factor = tl.load(p_weight_scale)
    if HAS_LOGSUM:
        b_lse = tl.load(p_lse + o, mask=m, other=float("-inf"))
        b_weight = tl.load(p_weight + o, mask=m, other=0.0) * factor
        b_lse2 = tl.where(b_lse == float("-inf"), float("inf"), b_lse * LOG2E)
        if ONLINE:
            tl.store(p_out + o, b_lse2)
        else:
            s2 = _scale(scale, p_logit_scale, HAS_LOGIT_SCALE) * LOG2E
            b_weight = b_weight * tl.exp2(s2 - b_lse2)
        tl.store(p_out + rows_pad + o, b_weight)
    if HAS_POSITIVE:
        tl.store(p_out + 2 * rows_pad + o, tl.load(p_positive_weight + o, mask=m, other=0.0) * factor)


@triton.jit(do_not_specialize=[*_RECTANGLE, "tiles_per_split"])
def gradient_kernel(
    p_q, p_k, p_row_key, p_col_key, p_logit_scale, p_row_terms, p_col_terms, p_out,
    M, N, M_pad, N_pad, row_base, row_step, col_shift, scale, first_block, tiles_per_split,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    POSITIVES: tl.constexpr, EXCLUDE_SELF: tl.constexpr, EXCLUDE_POSITIVES: tl.constexpr,
    ONLINE: tl.constexpr, HAS_LOGIT_SCALE: tl.constexpr,
    HAS_ROW: tl.constexpr, HAS_COL: tl.constexpr, HAS_ROW_POSITIVE: tl.constexpr, HAS_COL_POSITIVE: tl.constexpr,
    PRECISION: tl.constexpr, ROUND: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """sum_j G_ij k_j for one block of rows and one split of the columns: out [splits, M_pad, D] fp32.

    Two products per tile, as in the backward of flash attention, but with rows as the owner of the accumulator:
    c = q k', then G from c in registers, then G k. D fits in one block (up to 256).
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
    b_row_lse2 = tl.zeros([BLOCK_M], tl.float32)
    b_row_weight = b_row_lse2
    if HAS_ROW:
        if ONLINE:
            b_row_lse2 = tl.load(p_row_terms + o_m)
        b_row_weight = tl.load(p_row_terms + M_pad + o_m)
    b_col_lse2 = tl.zeros([BLOCK_N], tl.float32)
    b_col_weight = b_col_lse2

    o_own, o_positive = _own_and_positive(o_m, M, N, row_base, row_step, col_shift, EXCLUDE_SELF, POSITIVES)
    b_row_key = o_m
    if POSITIVES == KEY:
        b_row_key = tl.load(p_row_key + o_m, mask=o_m < M, other=0)
    b_positive = _weights_of_positives(
        o_m, o_positive, p_row_terms, p_col_terms, M_pad, N_pad, POSITIVES, HAS_ROW_POSITIVE, HAS_COL_POSITIVE
    )
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tl.cdiv(N, BLOCK_N))
    low, high = _range_of(o_own, o_positive, N, EXCLUDE_SELF, POSITIVES)
    near_first, near, plain, tail = _schedule(first, last, low, high, N, BLOCK_N, POSITIVES)

    b_out = tl.zeros([BLOCK_M, D], tl.float32)
    for i in tl.range(0, near + tail, num_stages=STAGES if POSITIVES == KEY else 1):
        tile = tl.where(i < near, near_first + i, N // BLOCK_N)
        o_n = tile * BLOCK_N + o_bn
        b_k = _load_operand(
            p_k + tile.to(tl.int64) * (BLOCK_N * D) + o_bn[:, None] * D + o_d[None, :], UPCAST
        )  # [BLOCK_N, D]
        if HAS_COL:
            if ONLINE:
                b_col_lse2 = tl.load(p_col_terms + o_n)
            b_col_weight = tl.load(p_col_terms + N_pad + o_n)
        b_c = tl.dot(b_q, b_k.T, input_precision=PRECISION)
        b_g = _pair_weights(b_c, s2, b_row_lse2, b_row_weight, b_col_lse2, b_col_weight, ONLINE, HAS_ROW, HAS_COL)
        b_g = _mask_and_add_positives(
            b_g, o_n, N, o_own, o_positive, b_positive, b_row_key, p_col_key, p_col_terms, N_pad,
            EXCLUDE_SELF, POSITIVES, EXCLUDE_POSITIVES, HAS_ROW_POSITIVE, HAS_COL_POSITIVE,
        )  # fmt: skip
        b_g = _round_to(b_g, p_k.dtype.element_ty, ROUND, UPCAST)
        b_out = tl.dot(b_g, b_k, b_out, input_precision=PRECISION)

    if (POSITIVES != KEY) & (HAS_ROW | HAS_COL):
        for t in tl.range(first, first + plain, num_stages=STAGES):
            tile = tl.where(t < near_first, t, t + near)
            o_n = tile * BLOCK_N + o_bn
            b_k = _load_operand(p_k + tile.to(tl.int64) * (BLOCK_N * D) + o_bn[:, None] * D + o_d[None, :], UPCAST)
            if HAS_COL:
                if ONLINE:
                    b_col_lse2 = tl.load(p_col_terms + o_n)
                b_col_weight = tl.load(p_col_terms + N_pad + o_n)
            b_c = tl.dot(b_q, b_k.T, input_precision=PRECISION)
            b_g = _pair_weights(b_c, s2, b_row_lse2, b_row_weight, b_col_lse2, b_col_weight, ONLINE, HAS_ROW, HAS_COL)
            b_g = _round_to(b_g, p_k.dtype.element_ty, ROUND, UPCAST)
            b_out = tl.dot(b_g, b_k, b_out, input_precision=PRECISION)

    p_rows_out = p_out + (split.to(tl.int64) * M_pad + block * BLOCK_M) * D
    tl.store(p_rows_out + tl.arange(0, BLOCK_M)[:, None] * D + o_d[None, :], b_out)


@triton.jit(do_not_specialize=[*_RECTANGLE, "blocks", "depth"])
def pair_weights_kernel(
    p_q, p_k, p_row_key, p_col_key, p_logit_scale, p_row_terms, p_col_terms, p_out,
    M, N, M_pad, N_pad, row_base, row_step, col_shift, scale, first_block, blocks, depth,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
    POSITIVES: tl.constexpr, EXCLUDE_SELF: tl.constexpr, EXCLUDE_POSITIVES: tl.constexpr,
    ONLINE: tl.constexpr, HAS_LOGIT_SCALE: tl.constexpr,
    HAS_ROW: tl.constexpr, HAS_COL: tl.constexpr, HAS_ROW_POSITIVE: tl.constexpr, HAS_COL_POSITIVE: tl.constexpr,
    PRECISION: tl.constexpr, ROUND: tl.constexpr, UPCAST: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """G of a chunk of rows, written out: out [blocks * BLOCK_M, N_pad]; a library product then gives the gradient.

    For D where an accumulator [BLOCK_M, D] does not fit in registers. A product-shaped kernel: one tile per program,
    a loop over D, programs ordered in groups of GROUP row blocks so that neighbours share tiles in the L2 cache.
    """
    tiles = N_pad // BLOCK_N
    block_in_chunk, tile = _block_and_tile(blocks, tiles, GROUP)
    block = first_block + block_in_chunk

    s2 = _scale(scale, p_logit_scale, HAS_LOGIT_SCALE) * LOG2E
    o_m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    p_rows = p_q + block.to(tl.int64) * (BLOCK_M * D)
    p_columns = p_k + tile.to(tl.int64) * (BLOCK_N * D)
    if BLOCK_D == D:
        b_q = _load_operand(p_rows + tl.arange(0, BLOCK_M)[:, None] * D + tl.arange(0, D)[None, :], UPCAST)
    else:
        b_q = 0
    b_c = _product(b_q, p_rows, p_columns, depth, D, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION, STAGES, UPCAST)

    b_row_lse2 = tl.zeros([BLOCK_M], tl.float32)
    b_row_weight = b_row_lse2
    b_col_lse2 = tl.zeros([BLOCK_N], tl.float32)
    b_col_weight = b_col_lse2
    if HAS_ROW:
        if ONLINE:
            b_row_lse2 = tl.load(p_row_terms + o_m)
        b_row_weight = tl.load(p_row_terms + M_pad + o_m)
    if HAS_COL:
        if ONLINE:
            b_col_lse2 = tl.load(p_col_terms + o_n)
        b_col_weight = tl.load(p_col_terms + N_pad + o_n)
    b_row_key = o_m
    if POSITIVES == KEY:
        b_row_key = tl.load(p_row_key + o_m, mask=o_m < M, other=0)

    b_g = _pair_weights(b_c, s2, b_row_lse2, b_row_weight, b_col_lse2, b_col_weight, ONLINE, HAS_ROW, HAS_COL)
    o_own, o_positive = _own_and_positive(o_m, M, N, row_base, row_step, col_shift, EXCLUDE_SELF, POSITIVES)
    b_positive = _weights_of_positives(
        o_m, o_positive, p_row_terms, p_col_terms, M_pad, N_pad, POSITIVES, HAS_ROW_POSITIVE, HAS_COL_POSITIVE
    )
    low, high = _range_of(o_own, o_positive, N, EXCLUDE_SELF, POSITIVES)
    padded = (tile + 1) * BLOCK_N > N
    if padded | ((low < (tile + 1) * BLOCK_N) & (high >= tile * BLOCK_N)) | (POSITIVES == KEY):
        b_g = _mask_and_add_positives(
            b_g, o_n, N, o_own, o_positive, b_positive, b_row_key, p_col_key, p_col_terms, N_pad,
            EXCLUDE_SELF, POSITIVES, EXCLUDE_POSITIVES, HAS_ROW_POSITIVE, HAS_COL_POSITIVE,
        )  # fmt: skip
    b_g = _round_to(b_g, p_out.dtype.element_ty, ROUND, UPCAST)
    p_tile = p_out + (block_in_chunk * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None] * N_pad
    tl.store(p_tile + o_n[None, :], b_g.to(p_out.dtype.element_ty))


@triton.jit(do_not_specialize=["rows", "rows_pad", "columns", "splits"])
def finalize_kernel(
    p_partial, p_x, p_inverse, p_logit_scale, p_weight_scale, p_out, p_radial,
    rows, rows_pad, columns, stride, splits, scale,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    NORMALIZE: tl.constexpr, HAS_LOGIT_SCALE: tl.constexpr, HAS_WEIGHT_SCALE: tl.constexpr,
):  # fmt: skip
    """Adds the splits, goes back through the normalisation and rounds once: out [rows, columns].

    Also writes radial_i = sum_j G_ij c_ij = q^_i . sum_j G_ij k^_j: the part of the gradient that the normalisation
    removes, and, summed over the rows, the gradient of the scale. Both use the unrounded q^ = x / norm, so that
    the result is orthogonal to x. Rows with a clamped norm have no radial part to remove (F.normalize).
    """
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_row = o_m.to(tl.int64)[:, None]
    m_row = o_m < rows
    b_inverse = tl.full([BLOCK_M], 1.0, tl.float32)
    if NORMALIZE:
        b_inverse = tl.load(p_inverse + o_m, mask=m_row, other=1.0)
    factor = 1.0
    if HAS_WEIGHT_SCALE:
        factor = 1.0 / tl.load(p_weight_scale)

    b_products = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for d in range(0, D, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)[None, :]
        m = m_row[:, None] & (o_d < columns)
        b_x = tl.load(p_x + o_row * stride + o_d, mask=m, other=0.0).to(tl.float32) * b_inverse[:, None]
        for i in range(0, splits):
            b_products += tl.load(p_partial + (o_row + i * rows_pad) * D + o_d, mask=m, other=0.0) * b_x
    b_radial = tl.sum(b_products, 1) * factor  # [BLOCK_M]
    tl.store(p_radial + o_m, b_radial, mask=m_row)

    b_removed = b_radial
    if NORMALIZE:
        b_removed = tl.where(b_inverse == INVERSE_EPS, 0.0, b_radial)
    s = _scale(scale, p_logit_scale, HAS_LOGIT_SCALE)
    for d in range(0, D, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)[None, :]
        m = m_row[:, None] & (o_d < columns)
        b_sum = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for i in range(0, splits):
            b_sum += tl.load(p_partial + (o_row + i * rows_pad) * D + o_d, mask=m, other=0.0)
        b_sum = b_sum * factor
        if NORMALIZE:
            b_x = tl.load(p_x + o_row * stride + o_d, mask=m, other=0.0).to(tl.float32) * b_inverse[:, None]
            b_sum = (b_sum - b_removed[:, None] * b_x) * b_inverse[:, None]
        tl.store(p_out + o_row * columns + o_d, (b_sum * s).to(p_out.dtype.element_ty), mask=m)
