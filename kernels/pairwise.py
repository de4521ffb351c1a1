"""Kernels of the pairwise log-sum-exp: every contrastive loss without its M x N matrix.

The mathematics (``q`` are M rows, ``k`` are N columns, ``c_ij = q_i . k_j``, ``x_ij = s c_ij``)::

    lse_i = log sum_j exp(x_ij)                  over the pairs that are not excluded
    dq_i  = s sum_j G_ij k_j,    G_ij = w_i exp(x_ij - lse_i) + w_j exp(x_ij - lse_j) + positives

Both are a matrix product whose result is used once and thrown away, so a tile of it never leaves the chip:
a program takes a block of rows, walks over the column tiles, and keeps only row sums (or a [BLOCK_M, D] gradient).

What every kernel here relies on:

* ``prepare_kernel`` has normalised the rows and rounded them once to the product's dtype, in a buffer padded with
  zeros to whole tiles. So the main loops load without masks; only *results* of padded columns are masked, and
  they all sit in the last tile.
* Each row has at most one column that is itself and at most one that is its positive (``_own_and_positive``).
  They lie in few tiles near the diagonal. Those tiles, and the padded one, go through a second, masked loop: an
  ``if`` inside the hot loop would cost about 50 registers. Positives given by keys can be anywhere: then every tile
  goes through the masked loop.
* Exponentials are base 2, since that is what the hardware has: ``s2 = s log2(e)``.
* FIXED shift: normalised rows have ``c <= 1``, so ``exp2(s2 c - s2)`` cannot overflow and no running maximum is
  needed. ONLINE: any magnitude, with the running maximum of online softmax.
* No atomics. Where work is split, each program writes its own partial result and a small kernel adds them in a
  fixed order: same input, same bits.
* Offsets that can pass 2^31 are 64-bit: a tile's base is a 64-bit scalar, offsets inside the tile are 32-bit.

Names: ``p_`` pointer, ``o_`` offset, ``b_`` block in registers, ``m_`` mask. Comments give shapes.
"""

# ruff: noqa: SIM108 - branches on constants stay statements: a branch that is not taken is not compiled

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
INVERSE_EPS = tl.constexpr(1e12)  # F.normalize divides by max(norm, 1e-12)

# How the positives of a row are given (the `positives` argument of the operation).
NONE = tl.constexpr(0)
DIAGONAL = tl.constexpr(1)
PAIR = tl.constexpr(2)
KEY = tl.constexpr(3)


# ----------------------------------------------------------------------------------------------- small functions


@triton.jit
def _round_mantissa(x, DROP: tl.constexpr):
    """Rounds fp32 to nearest even without its last DROP mantissa bits (13: tf32, 16: bf16). NaN stays NaN."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + ((1 << (DROP - 1)) - 1) + ((bits >> DROP) & 1)) & (-(1 << DROP))
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)


@triton.jit
def _round_to(x, dtype: tl.constexpr, ROUND: tl.constexpr, UPCAST: tl.constexpr):
    """Rounds fp32 to an operand of the product.

    ROUND 13 makes a tf32 value: the tensor core would cut the bits off, which biases every product towards zero.
    UPCAST (interpreter only) keeps the rounded value in fp32.
    """
    if ROUND > 0:
        x = _round_mantissa(x, ROUND)
    if UPCAST:
        return x.to(dtype).to(tl.float32)
    return x.to(dtype)


@triton.jit
def _load_operand(p, UPCAST: tl.constexpr):
    """Loads a tile of a padded buffer. UPCAST: the interpreter's 16-bit product is wrong, its fp32 one is right."""
    b = tl.load(p)
    if UPCAST:
        b = b.to(tl.float32)
    return b


@triton.jit
def _scale(scale, p_logit_scale, HAS_LOGIT_SCALE: tl.constexpr):
    """s: the number times the learnable tensor, which is read here so that the host never waits for it."""
    if HAS_LOGIT_SCALE:
        return scale * tl.load(p_logit_scale).to(tl.float32)
    return scale


@triton.jit
def _own_and_positive(
    o_m, M, N, row_base, row_step, col_shift, EXCLUDE_SELF: tl.constexpr, POSITIVES: tl.constexpr
):  # fmt: skip
    """Columns (of this call, not global) of each row itself and of its positive; -1 where there is none.

    Global indices are I = row_offset + row_step i and J = col_offset + j. The launcher takes the even part of
    col_offset off both, which changes neither J == I nor J == I ^ 1; col_shift is the bit that is left.
    """
    o_global = o_m.to(tl.int64) * row_step + row_base  # [BLOCK_M]
    own = o_global - col_shift
    if POSITIVES == PAIR:
        positive = (o_global ^ 1) - col_shift
    else:
        positive = own
    m_row = o_m < M
    m_positive = m_row & (positive >= 0) & (positive < N)
    if EXCLUDE_SELF:
        m_positive = m_positive & (positive != own)
    own = tl.where(m_row & (own >= 0) & (own < N), own, -1).to(tl.int32)
    positive = tl.where(m_positive, positive, -1).to(tl.int32)
    return own, positive


@triton.jit
def _range_of(o_own, o_positive, N, EXCLUDE_SELF: tl.constexpr, POSITIVES: tl.constexpr):
    """First and last column that needs a mask in this block of rows ((N, -1) if none does)."""
    low = N
    high = -1
    if EXCLUDE_SELF:
        low = tl.minimum(low, tl.min(tl.where(o_own >= 0, o_own, N), 0))
        high = tl.maximum(high, tl.max(o_own, 0))
    if (POSITIVES == DIAGONAL) | (POSITIVES == PAIR):
        low = tl.minimum(low, tl.min(tl.where(o_positive >= 0, o_positive, N), 0))
        high = tl.maximum(high, tl.max(o_positive, 0))
    return low, high


@triton.jit
def _schedule(first, last, low, high, N, BLOCK_N: tl.constexpr, POSITIVES: tl.constexpr):
    """Divides tiles [first, last) into plain ones, near ones (columns low..high) and the padded last one.

    Returns (near_first, near, plain, tail). Plain tile number t is `t if t < near_first else t + near`.
    """
    whole = tl.minimum(last, N // BLOCK_N)  # tiles without padded columns
    if POSITIVES == KEY:
        near_first = tl.minimum(first, whole)
        near_last = whole
    else:
        near_first = tl.minimum(tl.maximum(low // BLOCK_N, first), whole)
        near_last = tl.minimum(tl.maximum((high + BLOCK_N) // BLOCK_N, near_first), whole)
    near = near_last - near_first
    plain = tl.maximum(whole - first - near, 0)
    tail = ((last > N // BLOCK_N) & (last > first)).to(tl.int32)
    return near_first, near, plain, tail


@triton.jit
def _in_log_sum(
    o_n, N, o_own, m_positive,
    EXCLUDE_SELF: tl.constexpr, EXCLUDE_POSITIVES: tl.constexpr,
):  # fmt: skip
    """Which pairs of a tile are in the log-sum: [BLOCK_M, BLOCK_N]."""
    m_in = (o_n < N)[None, :] & (o_own == o_own)[:, None]
    if EXCLUDE_SELF:
        m_in = m_in & (o_n[None, :] != o_own[:, None])
    if EXCLUDE_POSITIVES:
        m_in = m_in & (m_positive == 0)
    return m_in


@triton.jit
def _positives(
    o_n, N, o_own, o_positive, b_row_key, p_col_key,
    EXCLUDE_SELF: tl.constexpr, POSITIVES: tl.constexpr,
):  # fmt: skip
    """Which pairs of a tile are positives: [BLOCK_M, BLOCK_N]. A positive never lies in padding."""
    if POSITIVES == KEY:
        b_col_key = tl.load(p_col_key + o_n, mask=o_n < N, other=0)
        m_positive = (b_row_key[:, None] == b_col_key[None, :]) & (o_n < N)[None, :]
        if EXCLUDE_SELF:
            m_positive = m_positive & (o_n[None, :] != o_own[:, None])
    else:
        m_positive = o_n[None, :] == o_positive[:, None]
    return m_positive


@triton.jit
def _product(
    b_q, p_q, p_k, depth,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """c [BLOCK_M, BLOCK_N] of the rows at p_q and the columns at p_k.

    One product if the whole of D fits (then b_q holds the rows already), otherwise a loop over D in BLOCK_D steps. Its
    end is `depth`, which equals D but is no constant: an unrolled loop compiles slowly and can spill.
    """
    o_d = tl.arange(0, BLOCK_D)
    p_k = p_k + tl.arange(0, BLOCK_N)[:, None] * D + o_d[None, :]  # [BLOCK_N, BLOCK_D]
    if BLOCK_D == D:
        b_c = tl.dot(b_q, _load_operand(p_k, UPCAST).T, input_precision=PRECISION)
    else:
        p_q = p_q + tl.arange(0, BLOCK_M)[:, None] * D + o_d[None, :]  # [BLOCK_M, BLOCK_D]
        b_c = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for d in tl.range(0, depth, BLOCK_D, num_stages=STAGES):
            b_a = _load_operand(p_q + d, UPCAST)
            b_b = _load_operand(p_k + d, UPCAST)
            b_c = tl.dot(b_a, b_b.T, b_c, input_precision=PRECISION)
    return b_c


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


# ------------------------------------------------------------------------------------------------------- prologue


@triton.jit(do_not_specialize=["rows", "columns"])
def prepare_kernel(
    p_x, p_out, p_inverse, rows, columns, stride,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    NORMALIZE: tl.constexpr, ROUND: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Rows x [rows, columns] (any row stride) -> normalised, rounded, padded with zeros [padded rows, D].

    Also writes 1 / max(norm, 1e-12) [padded rows]. One program per BLOCK_M rows; two passes over a row, of which
    the second finds it in the cache.
    """
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    p_row = p_x + o_m.to(tl.int64)[:, None] * stride  # [BLOCK_M, 1]
    p_row_out = p_out + o_m.to(tl.int64)[:, None] * D
    m_row = (o_m < rows)[:, None]

    if NORMALIZE:
        b_squares = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for d in range(0, D, BLOCK_D):
            o_d = d + tl.arange(0, BLOCK_D)[None, :]
            b_x = tl.load(p_row + o_d, mask=m_row & (o_d < columns), other=0.0).to(tl.float32)
            b_squares += b_x * b_x
        b_norm = tl.sqrt_rn(tl.sum(b_squares, 1))  # [BLOCK_M]
        # written so that a NaN norm takes the second branch: tl.maximum would drop it
        b_inverse = tl.where(b_norm * INVERSE_EPS < 1.0, INVERSE_EPS, 1.0 / b_norm)
        tl.store(p_inverse + o_m, b_inverse)
    for d in range(0, D, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)[None, :]
        b_x = tl.load(p_row + o_d, mask=m_row & (o_d < columns), other=0.0).to(tl.float32)
        if NORMALIZE:
            b_x = b_x * b_inverse[:, None]
        b_x = _round_to(b_x, p_out.dtype.element_ty, ROUND, UPCAST)
        tl.store(p_row_out + o_d, b_x.to(p_out.dtype.element_ty), mask=o_d < D)


# ------------------------------------------------------------------------------------------------------- log-sums

# Sizes and offsets change from call to call: they are never compiled in.
_RECTANGLE = ["M", "N", "M_pad", "row_base", "row_step", "col_shift", "first_block"]


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


# ------------------------------------------------------------------------------------------------------- gradient


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
    pid = tl.program_id(0)
    group = pid // (GROUP * tiles)
    group_size = tl.minimum(blocks - group * GROUP, GROUP)
    in_group = pid - group * GROUP * tiles
    block_in_chunk = group * GROUP + in_group % group_size
    tile = in_group // group_size
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
