"""The steps that change a pixel by itself, after torchvision.transforms.v2.functional on images in [0, 1].

A pixel's channels are up to four blocks of one shape; where CHANNELS is smaller, the rest are passed on as they come.
"""

import triton
import triton.language as tl
from triton.language.random import philox_impl

from .record import (
    BRIGHTNESS,
    CUTOUT,
    GRAYSCALE,
    HEADER,
    HUE,
    NOISE,
    SATURATION,
    SOLARIZE,
    STEP,
    is_finite,
    is_set,
    whole,
)


@triton.jit
def clamp01(x):
    """NaN stays NaN."""
    return tl.clamp(x, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def gray(r, g, b):
    return 0.2989 * r + 0.587 * g + 0.114 * b


@triton.jit
def blend(x, other, share):
    """clamp(share x + (1 - share) other): contrast, with the mean of the view's gray, and saturation."""
    return clamp01(share * x + (1.0 - share) * other)


@triton.jit
def _hue_channel(which: tl.constexpr, sixths, value, chroma):
    """One channel of a color of that hue: the value, less the chroma over a third of the circle, between two ramps."""
    k = sixths + which
    k -= 6.0 * tl.floor(k * (1.0 / 6.0))
    return value - chroma * tl.clamp(tl.minimum(k, 4.0 - k), 0.0, 1.0)


@triton.jit
def hue(r, g, b, shift):
    """The hue turned by so many turns at constant value and saturation (HSV)."""
    value = tl.maximum(tl.maximum(r, g), b)
    chroma = value - tl.minimum(tl.minimum(r, g), b)
    scale = 1.0 / tl.where(chroma > 0.0, chroma, 1.0)
    others = tl.where(value == g, 2.0 + (b - r) * scale, 4.0 + (r - g) * scale)
    sixths = tl.where(value == r, (g - b) * scale, others) + 6.0 * shift
    return (
        _hue_channel(5.0, sixths, value, chroma),
        _hue_channel(3.0, sixths, value, chroma),
        _hue_channel(1.0, sixths, value, chroma),
    )


@triton.jit
def sine_and_cosine(quarters, part):
    """sin and cos of quarters + part quarter turns, |part| <= 1/2; quarters int32, part fp32 or fp64.

    Taylor series: a library's functions, made for angles of any size, spill. Exact where part is 0.
    """
    x = part * 1.5707963267948966
    xx = x * x
    s = x * (1 + xx * (-1 / 6 + xx * (1 / 120 + xx * (-1 / 5040 + xx * (1 / 362880)))))
    c = 1 + xx * (-1 / 2 + xx * (1 / 24 + xx * (-1 / 720 + xx * (1 / 40320 - xx * (1 / 3628800)))))
    odd = (quarters & 1) != 0
    sine, cosine = tl.where(odd, c, s), tl.where(odd, s, c)
    return tl.where((quarters & 2) != 0, -sine, sine), tl.where(((quarters + 1) & 2) != 0, -cosine, cosine)


@triton.jit
def _box_muller(word_0, word_1):
    """Two standard normal numbers from two words, u = ((word >> 8) + 1/2) 2^-24."""
    UNIT: tl.constexpr = 2.0**-24
    o_0 = (word_0 >> 8).to(tl.int32)
    # above 1/2, u has more bits than fp32, but its distance from 1 has not
    near_1 = (((1 << 24) - o_0).to(tl.float32) - 0.5) * UNIT
    log_near_1 = -near_1 * (1.0 + near_1 * (0.5 + near_1 * (1 / 3)))
    log_u = tl.where(near_1 < 0.001, log_near_1, tl.log((o_0.to(tl.float32) + 0.5) * UNIT))
    radius = tl.sqrt(-2.0 * log_u)
    # u of the angle likewise, from the nearest quarter turn
    o_1 = (word_1 >> 8).to(tl.int32)
    quarters = (o_1 + (1 << 21)) >> 22
    sine, cosine = sine_and_cosine(quarters, ((o_1 - (quarters << 22)).to(tl.float32) + 0.5) * (4 * UNIT))
    return radius * cosine, radius * sine


@triton.jit
def key_word(x):
    """A word of a noise step's key, which is stored as a number."""
    return tl.clamp(tl.where(is_finite(x), x, 0.0), 0.0, 4294967040.0).to(tl.int64).to(tl.uint32)


@triton.jit
def normals(o_pixel, group, key_0, key_1):
    """Standard normal numbers of the pixels o_pixel = y width + x for four channels."""
    o = o_pixel.to(tl.uint32)
    zero = o * 0
    w_0, w_1, w_2, w_3 = philox_impl(o, zero + group.to(tl.uint32), zero, zero, key_word(key_0), key_word(key_1))
    n_0, n_1 = _box_muller(w_0, w_1)
    n_2, n_3 = _box_muller(w_2, w_3)
    return n_0, n_1, n_2, n_3


@triton.jit
def _brighten(x, factor):
    return clamp01(x * factor)


@triton.jit
def _solarize(x, threshold):
    return tl.where(x >= threshold, 1.0 - x, x)


@triton.jit
def _add(x, noise, clamped):
    x += noise
    return tl.where(clamped, clamp01(x), x)


@triton.jit
def each(function: tl.constexpr, c_0, c_1, c_2, c_3, number, CHANNELS: tl.constexpr):
    """function(channel, number) of each channel."""
    c_0 = function(c_0, number)
    if CHANNELS > 1:
        c_1 = function(c_1, number)
    if CHANNELS > 2:
        c_2 = function(c_2, number)
    if CHANNELS > 3:
        c_3 = function(c_3, number)
    return c_0, c_1, c_2, c_3


@triton.jit
def point_steps(
    p_record, first, after, c_0, c_1, c_2, c_3, o_y, o_x, width, group, mean_0, mean_1, mean_2, mean_3,
    CHANNELS: tl.constexpr, COLOR: tl.constexpr,
):  # fmt: skip
    """Steps first, ..., after - 1 of a record; barriers and unknown codes do nothing.

    o_y, o_x: place of the pixels in the view, broadcast to the channels' shape. group: number of channels before these,
    divided by four. COLOR: whether they are red, green and blue.
    """
    for i in range(first, after):
        p = p_record + HEADER + STEP * i
        code = whole(tl.load(p))
        a = tl.load(p + 1)
        if code == BRIGHTNESS:
            c_0, c_1, c_2, c_3 = each(_brighten, c_0, c_1, c_2, c_3, a, CHANNELS)
        elif code == SOLARIZE:
            c_0, c_1, c_2, c_3 = each(_solarize, c_0, c_1, c_2, c_3, a, CHANNELS)
        elif code == CUTOUT:
            top, left, value = whole(a), whole(tl.load(p + 2)), tl.load(p + 5)
            m_y = (o_y >= top) & (o_y < top + whole(tl.load(p + 3)))
            m = m_y & (o_x >= left) & (o_x < left + whole(tl.load(p + 4)))
            c_0 = tl.where(m, tl.where(value < 0.0, mean_0, value), c_0)
            if CHANNELS > 1:
                c_1 = tl.where(m, tl.where(value < 0.0, mean_1, value), c_1)
            if CHANNELS > 2:
                c_2 = tl.where(m, tl.where(value < 0.0, mean_2, value), c_2)
            if CHANNELS > 3:
                c_3 = tl.where(m, tl.where(value < 0.0, mean_3, value), c_3)
        elif code == NOISE:
            offset, clamped = tl.load(p + 2), is_set(tl.load(p + 5))
            n_0, n_1, n_2, n_3 = normals(o_y * width + o_x, group, tl.load(p + 3), tl.load(p + 4))
            c_0 = _add(c_0, offset + a * n_0, clamped)
            if CHANNELS > 1:
                c_1 = _add(c_1, offset + a * n_1, clamped)
            if CHANNELS > 2:
                c_2 = _add(c_2, offset + a * n_2, clamped)
            if CHANNELS > 3:
                c_3 = _add(c_3, offset + a * n_3, clamped)
        elif COLOR:
            if code == SATURATION:
                b_gray = gray(c_0, c_1, c_2)
                c_0, c_1, c_2 = blend(c_0, b_gray, a), blend(c_1, b_gray, a), blend(c_2, b_gray, a)
            elif code == HUE:
                c_0, c_1, c_2 = hue(c_0, c_1, c_2, a)
            elif code == GRAYSCALE:
                c_0 = gray(c_0, c_1, c_2)
                c_1 = c_0
                c_2 = c_0
    return c_0, c_1, c_2, c_3
