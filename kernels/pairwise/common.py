"""What the pairwise kernels share: positions of positives, masks, the product of a tile, and the prologue."""

# ruff: noqa: SIM108 - branches on constants stay statements: a branch that is not taken is not compiled

import triton
import triton.language as tl

from ..arithmetic import round_mantissa

INVERSE_EPS = tl.constexpr(1e12)  # F.normalize divides by max(norm, 1e-12)

# How the positives of a row are given (the `positives` argument of the operation).
NONE = tl.constexpr(0)
DIAGONAL = tl.constexpr(1)
PAIR = tl.constexpr(2)
KEY = tl.constexpr(3)
INDEX = tl.constexpr(4)  # of a column of this call: only where no gradient of the columns is wanted

# Sizes and offsets change from call to call: they are never compiled in.
_RECTANGLE = ["M", "N", "M_pad", "row_base", "row_step", "col_shift", "first_block"]


@triton.jit
def _round_to(x, dtype: tl.constexpr, ROUND: tl.constexpr, UPCAST: tl.constexpr):
    """Rounds fp32 to an operand of the product.

    ROUND 13 makes a tf32 value: the tensor core would cut the bits off, which biases every product towards zero.
    UPCAST (interpreter only) keeps the rounded value in fp32.
    """
    if ROUND > 0:
        x = round_mantissa(x, ROUND)
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
def _block_and_tile(blocks, tiles, GROUP: tl.constexpr):
    """This program's row block and column tile: in groups of GROUP row blocks, whose programs share tiles in L2."""
    pid = tl.program_id(0)
    group = pid // (GROUP * tiles)
    group_size = tl.minimum(blocks - group * GROUP, GROUP)
    in_group = pid - group * GROUP * tiles
    return group * GROUP + in_group % group_size, in_group // group_size


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
