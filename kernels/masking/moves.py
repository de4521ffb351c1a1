"""Tokens gathered and brought back, with what is added to them; pixels of patches.

Indices are not trusted: out of range they give a row of NaN, and nothing is read.
"""

import triton
import triton.language as tl


@triton.jit
def _rows(p, o_row, o_d, D, m):
    """Rows [.., D] of contiguous fp32, zeros outside of the mask."""
    return tl.load(p + o_row[:, None].to(tl.int64) * D + o_d[None, :], mask=m, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["L", "K", "P"])
def gather_kernel(
    p_x, p_ids, p_pos, p_prefix, p_prefix_pos, p_out, L, K, P, D, stride_b: tl.int64, stride_r: tl.int64,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
    HAS_POS: tl.constexpr, HAS_PREFIX: tl.constexpr, HAS_PREFIX_POS: tl.constexpr,
):  # fmt: skip
    """out[b, r] = prefix_r for r < P, then x[b, ids] + pos[ids]. Grid (images, blocks of rows, blocks of D)."""
    b = tl.program_id(0).to(tl.int64)
    o_r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = (o_d < D)[None, :]
    m_token = (o_r >= P) & (o_r < P + K)
    b_id = tl.load(p_ids + b * K + o_r - P, mask=m_token, other=-1)
    m_valid = (b_id >= 0) & (b_id < L)
    m = m_valid[:, None] & m_d
    b_out = tl.load(p_x + b * stride_b + b_id[:, None] * stride_r + o_d[None, :], mask=m, other=0.0).to(tl.float32)
    if HAS_POS:
        b_out += _rows(p_pos, b_id, o_d, D, m)
    if HAS_PREFIX:
        m_first = (o_r < P)[:, None] & m_d
        b_out += _rows(p_prefix, o_r, o_d, D, m_first)
        if HAS_PREFIX_POS:
            b_out += _rows(p_prefix_pos, o_r, o_d, D, m_first)
    b_out = tl.where((m_valid | (o_r < P))[:, None], b_out, float("nan"))
    p = p_out + (b * (P + K) + o_r[:, None]) * D + o_d[None, :]
    tl.store(p, b_out.to(p_out.dtype.element_ty), mask=(o_r < P + K)[:, None] & m_d)


@triton.jit(do_not_specialize=["L", "K", "P"])
def unshuffle_kernel(
    p_x, p_restore, p_token, p_pos, p_prefix_pos, p_out, L, K, P, D, stride_b: tl.int64, stride_r: tl.int64,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, HAS_POS: tl.constexpr, HAS_PREFIX_POS: tl.constexpr,
):  # fmt: skip
    """out[b, P + l] = x[b, P + restore] for restore < K, else the mask token; plus pos_l. Grid as above."""
    b = tl.program_id(0).to(tl.int64)
    o_r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = (o_d < D)[None, :]
    m_place = (o_r >= P) & (o_r < P + L)
    b_from = tl.load(p_restore + b * L + o_r - P, mask=m_place, other=0)
    m_valid = (b_from >= 0) & (b_from < L)
    m_token = m_valid & ((o_r < P) | (b_from < K)) & (o_r < P + L)
    o_from = tl.where(o_r < P, o_r, P + b_from)
    p = p_x + b * stride_b + o_from[:, None] * stride_r + o_d[None, :]
    b_out = tl.load(p, mask=m_token[:, None] & m_d, other=0.0).to(tl.float32)
    b_token = tl.load(p_token + o_d, mask=o_d < D, other=0.0).to(tl.float32)
    b_out = tl.where(m_token[:, None], b_out, b_token[None, :])
    if HAS_POS:
        b_out += _rows(p_pos, o_r - P, o_d, D, m_place[:, None] & m_d)
    if HAS_PREFIX_POS:
        b_out += _rows(p_prefix_pos, o_r, o_d, D, (o_r < P)[:, None] & m_d)
    b_out = tl.where(m_valid[:, None], b_out, float("nan"))
    p = p_out + (b * (P + L) + o_r[:, None]) * D + o_d[None, :]
    tl.store(p, b_out.to(p_out.dtype.element_ty), mask=(o_r < P + L)[:, None] & m_d)


@triton.jit
def _add_later(b_sum, p_g, p_next, b_slot, count, m_d, stride_r):
    """The rows that follow in a chain, added to the first; ``count`` ends it. Published masks have none."""
    b_slot = tl.load(p_next + b_slot, mask=b_slot < count, other=count)
    while tl.min(b_slot) < count:
        m = (b_slot < count)[:, None] & m_d
        b_sum += tl.load(p_g + b_slot[:, None].to(tl.int64) * stride_r, mask=m, other=0.0).to(tl.float32)
        b_slot = tl.load(p_next + b_slot, mask=b_slot < count, other=count)
    return b_sum


@triton.jit(do_not_specialize=["L", "K", "P", "images", "per_group", "rows"])
def gather_grad_kernel(
    p_g, p_first, p_next, p_dx, p_sums, L, K, P, D, images, per_group, rows, stride_b: tl.int64, stride_r: tl.int64,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, FOR_TOKENS: tl.constexpr, FOR_SUMS: tl.constexpr,
):  # fmt: skip
    """dx [images, L, D], and for each group of images sums [groups, rows, D] of prefix and tokens.

    Grid (blocks of P + L rows, blocks of D, groups). ``rows`` says how many of the sums are wanted.
    """
    o_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    group = tl.program_id(2)
    m_d = (o_d < D)[None, :]
    m_token = (o_r >= P) & (o_r < P + L)
    b_total = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for image in range(0, tl.minimum(per_group, images - group * per_group)):
        b = group.to(tl.int64) * per_group + image
        b_slot = tl.load(p_first + b * L + o_r - P, mask=m_token, other=K)
        o_from = tl.where(o_r < P, o_r, P + b_slot)
        m = ((o_r < P) | (b_slot < K))[:, None] & m_d
        p = p_g + b * stride_b + o_d[None, :]
        b_g = tl.load(p + o_from[:, None].to(tl.int64) * stride_r, mask=m, other=0.0).to(tl.float32)
        b_g = _add_later(b_g, p + P * stride_r, p_next + b * K, b_slot, K, m_d, stride_r)
        if FOR_TOKENS:
            p = p_dx + (b * L + (o_r - P)[:, None]) * D + o_d[None, :]
            tl.store(p, b_g.to(p_dx.dtype.element_ty), mask=m_token[:, None] & m_d)
        if FOR_SUMS:
            b_total += b_g
    if FOR_SUMS:
        p = p_sums + (group.to(tl.int64) * rows + o_r[:, None]) * D + o_d[None, :]
        tl.store(p, b_total, mask=(o_r < rows)[:, None] & m_d)


@triton.jit(do_not_specialize=["L", "K", "P", "images", "per_group"])
def unshuffle_grad_kernel(
    p_g, p_restore, p_first, p_next, p_dx, p_mask, p_sums,
    L, K, P, D, images, per_group, stride_b: tl.int64, stride_r: tl.int64,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
    FOR_TOKENS: tl.constexpr, FOR_MASK: tl.constexpr, FOR_SUMS: tl.constexpr,
):  # fmt: skip
    """dx [images, P + K, D] where a token came to a place, and for each group of images sums of all rows
    [groups, P + L, D], and of the mask token's rows [groups, blocks of rows, D]. Grid as above."""
    block = tl.program_id(0)
    o_r = block * BLOCK_R + tl.arange(0, BLOCK_R)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    group = tl.program_id(2)
    m_d = (o_d < D)[None, :]
    m_place = (o_r >= P) & (o_r < P + L)
    b_total = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    b_masked = tl.zeros([BLOCK_D], tl.float32)
    for image in range(0, tl.minimum(per_group, images - group * per_group)):
        b = group.to(tl.int64) * per_group + image
        p = p_g + b * stride_b + o_d[None, :]
        m = (o_r < P + L)[:, None] & m_d
        b_g = tl.load(p + o_r[:, None].to(tl.int64) * stride_r, mask=m, other=0.0).to(tl.float32)
        b_to = tl.load(p_restore + b * L + o_r - P, mask=m_place, other=-1)
        if FOR_SUMS:
            b_total += b_g
        if FOR_MASK:
            b_masked += tl.sum(tl.where(((b_to >= K) & (b_to < L))[:, None], b_g, 0.0), 0)
        if FOR_TOKENS:
            m_token = (b_to >= 0) & (b_to < K)
            b_first = tl.load(p_first + b * K + b_to, mask=m_token, other=L)
            m_token = m_token & (b_first == o_r - P)  # one place writes a token's sum
            b_g = _add_later(b_g, p + P * stride_r, p_next + b * L, tl.where(m_token, b_first, L), L, m_d, stride_r)
            o_to = tl.where(o_r < P, o_r, P + b_to)
            p = p_dx + (b * (P + K) + o_to[:, None]) * D + o_d[None, :]
            tl.store(p, b_g.to(p_dx.dtype.element_ty), mask=((o_r < P) | m_token)[:, None] & m_d)
    if FOR_SUMS:
        p = p_sums + (group.to(tl.int64) * (P + L) + o_r[:, None]) * D + o_d[None, :]
        tl.store(p, b_total, mask=(o_r < P + L)[:, None] & m_d)
    if FOR_MASK:
        o = (group.to(tl.int64) * tl.num_programs(0) + block) * D + o_d
        tl.store(p_mask + o, b_masked, mask=o_d < D)


@triton.jit(do_not_specialize=["L", "K", "P"])
def lost_kernel(
    p_first, p_dx, L, K, P, D, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Zeros for tokens that came to no place: first = L. Grid (images, blocks of K, blocks of D)."""
    b = tl.program_id(0).to(tl.int64)
    o_k = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    m = (tl.load(p_first + b * K + o_k, mask=o_k < K, other=0) == L)[:, None] & (o_d < D)[None, :]
    b_zero = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    p = p_dx + (b * (P + K) + P + o_k[:, None]) * D + o_d[None, :]
    tl.store(p, b_zero.to(p_dx.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["parts", "N"])
def sums_kernel(
    p_parts, p_out, parts, N: tl.int64, SLOTS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """out [N] of parts [parts, N], in order. Grid (blocks of N,)."""
    o_n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_sum = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, parts, SLOTS):
        o_part = begin + tl.arange(0, SLOTS)
        p = p_parts + o_part[:, None].to(tl.int64) * N + o_n[None, :]
        b_sum += tl.sum(tl.load(p, mask=(o_part < parts)[:, None] & (o_n < N)[None, :], other=0.0), 0)
    tl.store(p_out + o_n, b_sum, mask=o_n < N)


@triton.jit
def _of_channel(c, v_0, v_1, v_2, v_3):
    return tl.where(c == 0, v_0, tl.where(c == 1, v_1, tl.where(c == 2, v_2, v_3)))


@triton.jit(do_not_specialize=["K", "patches", "columns"])
def patches_kernel(
    p_images, p_ids, p_out, K, N, patches, columns,
    stride_b: tl.int64, stride_c: tl.int64, stride_y: tl.int64, stride_x: tl.int64,
    mean_0, mean_1, mean_2, mean_3, factor_0, factor_1, factor_2, factor_3,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(pixel - mean) factor of up to four channels, [images, K, N], N = channels HEIGHT WIDTH.

    Grid (images K, blocks of N).
    """
    row = tl.program_id(0).to(tl.int64)
    o_n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    c, y, x = o_n // (HEIGHT * WIDTH), o_n // WIDTH % HEIGHT, o_n % WIDTH
    patch = tl.load(p_ids + row)
    is_valid = (patch >= 0) & (patch < patches)
    p = p_images + row // K * stride_b + patch // columns * HEIGHT * stride_y + patch % columns * WIDTH * stride_x
    b_x = tl.load(p + c * stride_c + y * stride_y + x * stride_x, mask=o_n < tl.where(is_valid, N, 0), other=0).to(
        tl.float32
    )
    b_out = (b_x - _of_channel(c, mean_0, mean_1, mean_2, mean_3)) * _of_channel(
        c, factor_0, factor_1, factor_2, factor_3
    )
    b_out = tl.where(is_valid, b_out, float("nan"))
    tl.store(p_out + row * N + o_n, b_out.to(p_out.dtype.element_ty), mask=o_n < N)
