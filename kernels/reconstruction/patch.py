"""Loss and gradient of one row of the predictions."""

import triton
import triton.language as tl

from ..arithmetic import round_mantissa

EPSILON = tl.constexpr(1e-6)  # beside the variance
SQUARED, ABSOLUTE, SMOOTH = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _of_channel(o_c, v0, v1, v2, v3, C: tl.constexpr):
    """v_c for each channel."""
    b = tl.zeros(o_c.shape, tl.float32) + v0
    if C > 1:
        b = tl.where(o_c == 1, v1, b)
    if C > 2:
        b = tl.where(o_c == 2, v2, b)
    if C > 3:
        b = tl.where(o_c == 3, v3, b)
    return b


@triton.jit
def _pixels(
    p_patch, start, channel_stride, row_stride, pixel_stride, length,
    scale0, scale1, scale2, scale3, shift0, shift1, shift2, shift3,
    P: tl.constexpr, C: tl.constexpr, CHANNELS_FIRST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Numbers start, start + 1, ... of a patch in the order of the prediction, and which are below length, [BLOCK]."""
    o = start + tl.arange(0, BLOCK)
    if CHANNELS_FIRST:
        o_c, o_y, o_x = o // (P * P), o // P % P, o % P
    else:
        o_c, o_y, o_x = o % C, o // (C * P), o // C % P
    m = o < length
    p = p_patch + o_c * channel_stride + o_y * row_stride + o_x * pixel_stride
    b = tl.load(p, mask=m, other=0).to(tl.float32)
    scale = _of_channel(o_c, scale0, scale1, scale2, scale3, C)
    return b * scale + _of_channel(o_c, shift0, shift1, shift2, shift3, C), m


@triton.jit(do_not_specialize=["L", "TOKENS", "COLUMNS"])
def patch_kernel(
    p_prediction, p_image, p_weight, p_factor, p_loss, p_gradient, L, TOKENS, COLUMNS,
    prediction_stride: tl.int64, patch_stride: tl.int64,
    image_stride: tl.int64, channel_stride: tl.int64, row_stride: tl.int64, pixel_stride: tl.int64,
    scale0, scale1, scale2, scale3, shift0, shift1, shift2, shift3, beta,
    P: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr, NORMALIZE: tl.constexpr, ERROR: tl.constexpr,
    CHANNELS_FIRST: tl.constexpr, LOSS: tl.constexpr, GRADIENT: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """One row of one image, tokens included, whose gradient is 0. Grid (B (TOKENS + L),).

    Written: the weighted mean error [B, L]; the gradient times the factor, [B, TOKENS + L, P P C].
    """
    N: tl.constexpr = P * P * C
    ONE: tl.constexpr = N <= BLOCK
    row = tl.program_id(0)
    image = (row // (TOKENS + L)).to(tl.int64)
    place = row % (TOKENS + L)
    patch = place - TOKENS
    at = image * L + patch
    weight = tl.load(p_weight + at, mask=patch >= 0, other=0.0)
    taken = weight != 0.0  # NaN is taken
    length = tl.where(taken, N, 0)
    p_patch = p_image + image * image_stride + (patch // COLUMNS) * P * row_stride + patch % COLUMNS * P * pixel_stride
    p_row = p_prediction + image * prediction_stride + place * patch_stride

    mean = 0.0
    inverse = 1.0
    b_x, m_x = _pixels(
        p_patch, 0, channel_stride, row_stride, pixel_stride, length,
        scale0, scale1, scale2, scale3, shift0, shift1, shift2, shift3, P, C, CHANNELS_FIRST, BLOCK,
    )  # fmt: skip
    if NORMALIZE:
        b_sum = tl.where(m_x, b_x, 0.0)
        for start in range(BLOCK, N, BLOCK):
            b_more, m_more = _pixels(
                p_patch, start, channel_stride, row_stride, pixel_stride, length,
                scale0, scale1, scale2, scale3, shift0, shift1, shift2, shift3, P, C, CHANNELS_FIRST, BLOCK,
            )  # fmt: skip
            b_sum += tl.where(m_more, b_more, 0.0)
        mean = tl.sum(b_sum, 0) / N
        b_square = tl.where(m_x, (b_x - mean) * (b_x - mean), 0.0)
        for start in range(BLOCK, N, BLOCK):
            b_more, m_more = _pixels(
                p_patch, start, channel_stride, row_stride, pixel_stride, length,
                scale0, scale1, scale2, scale3, shift0, shift1, shift2, shift3, P, C, CHANNELS_FIRST, BLOCK,
            )  # fmt: skip
            b_square += tl.where(m_more, (b_more - mean) * (b_more - mean), 0.0)
        inverse = 1.0 / tl.sqrt(tl.sum(b_square, 0) / (N - 1) + EPSILON)

    b_error = tl.zeros([BLOCK], tl.float32)
    if GRADIENT:
        factor = tl.load(p_factor + at, mask=taken, other=0.0) / N
    for start in range(0, N, BLOCK):
        if not ONE:
            b_x, m_x = _pixels(
                p_patch, start, channel_stride, row_stride, pixel_stride, length,
                scale0, scale1, scale2, scale3, shift0, shift1, shift2, shift3, P, C, CHANNELS_FIRST, BLOCK,
            )  # fmt: skip
        o = start + tl.arange(0, BLOCK)
        b_d = tl.load(p_row + o, mask=m_x, other=0.0).to(tl.float32) - (b_x - mean) * inverse  # [BLOCK]
        if ERROR == SQUARED:
            b_e = b_d * b_d
            b_slope = 2.0 * b_d
        elif ERROR == ABSOLUTE:
            b_e = tl.abs(b_d)
            b_slope = tl.where(b_d > 0, 1.0, tl.where(b_d < 0, -1.0, b_d))  # of NaN: NaN
        else:
            b_slope = b_d / beta
            b_e = tl.where(tl.abs(b_d) < beta, 0.5 * b_d * b_slope, tl.abs(b_d) - 0.5 * beta)
            b_slope = tl.where(b_slope > 1, 1.0, tl.where(b_slope < -1, -1.0, b_slope))
        b_error += tl.where(m_x, b_e, 0.0)
        if GRADIENT:
            b_g = tl.where(taken, b_slope * factor, 0.0)
            if ROUND > 0:
                b_g = round_mantissa(b_g, ROUND)
            p_out = p_gradient + row.to(tl.int64) * N + o
            tl.store(p_out, b_g.to(p_gradient.dtype.element_ty), mask=o < N)
    if LOSS:
        loss = tl.where(taken, weight * (tl.sum(b_error, 0) / N), 0.0)
        tl.store(p_loss + at, loss, mask=patch >= 0)
