"""Records: what is at which place (``fastssl/ops/augment/record.py``), and how bad numbers are made harmless."""

import triton
import triton.language as tl

HEADER = tl.constexpr(8)  # top, left, height, width, horizontal flip, vertical flip, quarter turns, 0
STEP = tl.constexpr(6)  # code, a, b, c, d, e

NOTHING = tl.constexpr(0)
BRIGHTNESS = tl.constexpr(1)
CONTRAST = tl.constexpr(2)
SATURATION = tl.constexpr(3)
HUE = tl.constexpr(4)
GRAYSCALE = tl.constexpr(5)
SOLARIZE = tl.constexpr(6)
BLUR = tl.constexpr(7)
ROTATE = tl.constexpr(8)
CUTOUT = tl.constexpr(9)
NOISE = tl.constexpr(10)
SOBEL = tl.constexpr(11)


@triton.jit
def is_finite(x):
    return tl.abs(x) < float("inf")  # false for NaN too


@triton.jit
def whole(x):
    """The number without its fraction, int32; 0 for NaN and infinities. The limit leaves room for sums."""
    return tl.clamp(tl.where(is_finite(x), x, 0.0), -1e9, 1e9).to(tl.int32)


@triton.jit
def inside(start, length, size):
    """Start and length of what a record asks for, made to lie in [0, size)."""
    first = tl.minimum(tl.maximum(whole(start), 0), size - 1)
    return first, tl.minimum(tl.maximum(whole(length), 1), size - first)


@triton.jit
def is_set(x):
    return is_finite(x) & (x != 0.0)


@triton.jit
def round_of(p_record, steps, number, STEPS: tl.constexpr):
    """Where barrier ``number`` (from 1) of a record is, and what follows from counting.

    ``number`` 0 is the beginning, before which there is no barrier.

    Returns:
        position of that barrier, position of the next (``steps`` where there is none), the number of all barriers, and
        which of the two buffers holds the view before the barrier.
    """
    o = tl.arange(0, STEPS)
    b_code = whole(tl.load(p_record + HEADER + STEP * o, mask=o < steps, other=0.0))
    b_moves = (b_code == CONTRAST) | (b_code == ROTATE) | (b_code == SOBEL)
    b_count = tl.cumsum((b_moves | (b_code == BLUR)).to(tl.int32), 0)  # barriers up to here, this one included
    first = tl.minimum(tl.sum((b_count < number).to(tl.int32), 0), steps)
    after = tl.minimum(tl.sum((b_count < number + 1).to(tl.int32), 0), steps)
    moved = tl.sum((b_moves & (b_count < number)).to(tl.int32), 0)
    return first, after, tl.max(b_count, 0), moved & 1
