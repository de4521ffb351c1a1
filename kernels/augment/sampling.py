"""Draws the records of one view: Philox4x32-10 of (seed, epoch, index, view), arithmetic in fp64, rounded once.

What is drawn is defined by ``fastssl/ops/augment/reference.py``; this follows it number by number. A lane has a sample,
and the entries of the program are gone through one after the other.
"""

import triton
import triton.language as tl
from triton.language.random import philox_impl

from .record import (
    BLUR,
    BRIGHTNESS,
    CUTOUT,
    GRAYSCALE,
    HEADER,
    NOISE,
    NOTHING,
    ROTATE,
    SOBEL,
    SOLARIZE,
    STEP,
)

ENTRY = tl.constexpr(12)  # kind, probability, group, a0, ..., a8
BLOCKS = tl.constexpr(8)  # of Philox that belong to an entry
TRIES = tl.constexpr(10)  # draws of a box's size before it falls back
AREAS = tl.constexpr(1)  # first words of a box's shares, ratios and places
RATIOS = tl.constexpr(11)
PLACES = tl.constexpr(21)

# Kinds of entries.
RESIZED_CROP = tl.constexpr(0)
CENTER = tl.constexpr(2)
CROP = tl.constexpr(3)
HORIZONTAL_FLIP = tl.constexpr(10)
VERTICAL_FLIP = tl.constexpr(11)
QUARTER_TURN = tl.constexpr(12)
JITTER = tl.constexpr(20)
DRAW_GRAYSCALE = tl.constexpr(21)
DRAW_SOLARIZE = tl.constexpr(22)
DRAW_BLUR = tl.constexpr(23)
DRAW_ROTATE = tl.constexpr(24)
DRAW_CUTOUT = tl.constexpr(25)
DRAW_NOISE = tl.constexpr(26)
DRAW_SOBEL = tl.constexpr(27)


@triton.jit
def _word(number, entry, b_index, view, epoch, key_0, key_1):
    """Word ``number`` of what an entry draws, uint32 [BLOCK]."""
    zero = b_index * 0
    w_0, w_1, w_2, w_3 = philox_impl(
        zero + (BLOCKS * entry + number // 4), zero + view, b_index, zero + epoch, key_0, key_1
    )
    w_0, w_2 = tl.where(number % 2 == 0, w_0, w_1), tl.where(number % 2 == 0, w_2, w_3)
    return tl.where(number % 4 < 2, w_0, w_2)


@triton.jit
def _uniform(number, entry, b_index, view, epoch, key_0, key_1):
    """In [0, 1), a multiple of 2^-24, fp64 [BLOCK]."""
    return (_word(number, entry, b_index, view, epoch, key_0, key_1) >> 8).to(tl.float64) * (2.0**-24)


@triton.jit
def _rounded(x):
    """Ties to even, as fp64 rounds once there is no room for a fraction; 0 <= x < 2^52."""
    ROOM: tl.constexpr = 2.0**52
    return (x + ROOM) - ROOM


@triton.jit
def _place(u, room):
    """A start for a length that leaves so much room."""
    return tl.floor(u * (room + 1.0))


@triton.jit
def _box(p_a, b_height, b_width, OPEN: tl.constexpr, entry, b_index, view, epoch, key_0, key_1):
    """A box of a share of the area in [a0, a1] and a ratio of sides in [a2, a3] (log-uniform), of the first try to fit.

    OPEN: the box must leave something (cutout, where the ratio is height to width), else it may be the whole (crop,
    where it is width to height).

    Returns:
        height, width, and whether any try fits.
    """
    low, high = tl.load(p_a), tl.load(p_a + 1)
    log_low, log_high = tl.log(tl.load(p_a + 2)), tl.log(tl.load(p_a + 3))
    b_pixels = b_height * b_width
    b_h = b_pixels * 0.0
    b_w = b_h
    b_fit = b_h != b_h
    for t in range(TRIES):
        u_area = _uniform(AREAS + t, entry, b_index, view, epoch, key_0, key_1)
        u_ratio = _uniform(RATIOS + t, entry, b_index, view, epoch, key_0, key_1)
        area = b_pixels * (low + (high - low) * u_area)
        ratio = tl.exp(log_low + (log_high - log_low) * u_ratio)
        along, across = _rounded(tl.sqrt(area * ratio)), _rounded(tl.sqrt(area / ratio))
        if OPEN:
            h, w = along, across
            fits = (h > 0.0) & (h < b_height) & (w > 0.0) & (w < b_width)
        else:
            h, w = across, along
            fits = (h > 0.0) & (h <= b_height) & (w > 0.0) & (w <= b_width)
        b_h, b_w = tl.where(fits & ~b_fit, h, b_h), tl.where(fits & ~b_fit, w, b_w)
        b_fit = b_fit | fits
    return b_h, b_w, b_fit


@triton.jit
def _crop(kind, p_a, b_height, b_width, out_height, out_width, entry, b_index, view, epoch, key_0, key_1):
    """top, left, height, width: fp64 [BLOCK]."""
    b_h, b_w = b_height, b_width
    b_top = b_height * 0.0
    b_left = b_top
    if kind == RESIZED_CROP:
        low, high = tl.load(p_a + 2), tl.load(p_a + 3)
        b_h, b_w, b_fit = _box(p_a, b_height, b_width, False, entry, b_index, view, epoch, key_0, key_1)
        # none fits: the largest central crop of an allowed ratio
        b_ratio = b_width / b_height
        b_h = tl.where(b_fit, b_h, tl.where(b_ratio < low, _rounded(b_width / low), b_height))
        b_w = tl.where(b_fit, b_w, tl.where(b_ratio > high, _rounded(b_height * high), b_width))
        b_h, b_w = tl.clamp(b_h, 1.0, b_height), tl.clamp(b_w, 1.0, b_width)
        u_top = _uniform(PLACES, entry, b_index, view, epoch, key_0, key_1)
        u_left = _uniform(PLACES + 1, entry, b_index, view, epoch, key_0, key_1)
        b_top = tl.where(b_fit, _place(u_top, b_height - b_h), tl.floor((b_height - b_h) * 0.5))
        b_left = tl.where(b_fit, _place(u_left, b_width - b_w), tl.floor((b_width - b_w) * 0.5))
    elif kind == CENTER:
        stretch = tl.minimum(b_height / out_height, b_width / out_width) * tl.load(p_a)
        b_h = tl.clamp(_rounded(stretch * out_height), 1.0, b_height)
        b_w = tl.clamp(_rounded(stretch * out_width), 1.0, b_width)
        b_top, b_left = tl.floor((b_height - b_h) * 0.5), tl.floor((b_width - b_w) * 0.5)
    elif kind == CROP:
        b_h, b_w = tl.minimum(b_height, out_height), tl.minimum(b_width, out_width)
        b_top = _place(_uniform(1, entry, b_index, view, epoch, key_0, key_1), b_height - b_h)
        b_left = _place(_uniform(2, entry, b_index, view, epoch, key_0, key_1), b_width - b_w)
    return b_top, b_left, b_h, b_w


@triton.jit
def _store_step(p_slot, m, drawn, code, a, b, c, d, e):
    """A step where it is drawn, zeros elsewhere; fp32 from here on."""
    tl.store(p_slot, tl.where(drawn, code, 0).to(tl.float32), mask=m)
    tl.store(p_slot + 1, tl.where(drawn, a, 0.0).to(tl.float32), mask=m)
    tl.store(p_slot + 2, tl.where(drawn, b, 0.0).to(tl.float32), mask=m)
    tl.store(p_slot + 3, tl.where(drawn, c, 0.0).to(tl.float32), mask=m)
    tl.store(p_slot + 4, tl.where(drawn, d, 0.0).to(tl.float32), mask=m)
    tl.store(p_slot + 5, tl.where(drawn, e, 0.0).to(tl.float32), mask=m)


@triton.jit
def _draw_jitter(p_slot, p_a, m, applied, entry, b_index, view, epoch, key_0, key_1):
    """Brightness, contrast, saturation, hue in the order of a permutation, numbered as itertools.permutations does."""
    left = (24.0 * _uniform(1, entry, b_index, view, epoch, key_0, key_1)).to(tl.int32)
    remaining = left * 0 + 0x3210  # what has no place yet, four bits each
    rest: tl.constexpr = (6, 2, 1, 1)
    for place in tl.static_range(4):
        choice = left // rest[place]
        left -= choice * rest[place]
        shift = 4 * choice
        which = (remaining >> shift) & 15
        below = (1 << shift) - 1
        remaining = (remaining & below) | ((remaining >> 4) & ~below)
        low, high = tl.load(p_a + 2 * which, mask=m, other=0.0), tl.load(p_a + 2 * which + 1, mask=m, other=0.0)
        value = low  # of the component, whose word depends on the sample
        for component in tl.static_range(4):
            u = _uniform(2 + component, entry, b_index, view, epoch, key_0, key_1)
            value = tl.where(which == component, low + (high - low) * u, value)
        neutral = tl.where(which == 3, 0.0, 1.0)
        drawn = applied & ((low != neutral) | (high != neutral))
        _store_step(p_slot + STEP * place, m, drawn, BRIGHTNESS + which, value, 0.0, 0.0, 0.0, 0.0)


@triton.jit(
    do_not_specialize=[
        "batch", "entries", "record", "height", "width", "out_height", "out_width", "seed_low", "seed_high", "epoch",
        "view",
    ]
)  # fmt: skip
def draw_kernel(
    p_index, p_sizes, p_program, p_out, batch, entries, record, height, width, out_height, out_width,
    seed_low: tl.int64, seed_high: tl.int64, epoch: tl.int64, view: tl.int64, HAS_SIZES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of samples).

    Args:
        p_index: int64 [batch], of which the lowest 32 bits count.
        p_sizes: int64 [batch, 2], heights and widths of the images; None: all are height x width.
        p_program: fp64 [entries, 12].
        p_out: fp32 [batch, record].
    """
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = o < batch
    b_index = tl.load(p_index + o, mask=m, other=0).to(tl.uint32)
    key_0, key_1 = seed_low.to(tl.uint32), seed_high.to(tl.uint32)
    view, epoch = view.to(tl.uint32), epoch.to(tl.uint32)
    if HAS_SIZES:
        b_height = tl.load(p_sizes + 2 * o, mask=m, other=1).to(tl.float64)
        b_width = tl.load(p_sizes + 2 * o + 1, mask=m, other=1).to(tl.float64)
    else:
        b_height = (tl.zeros([BLOCK], tl.int32) + height).to(tl.float64)
        b_width = (tl.zeros([BLOCK], tl.int32) + width).to(tl.float64)
    out_height, out_width = out_height.to(tl.float64), out_width.to(tl.float64)
    p_record = p_out + o.to(tl.int64) * record
    for place in tl.static_range(8):
        tl.store(p_record + place, tl.zeros([BLOCK], tl.float32), mask=m)
    p_slot = p_record + HEADER
    for entry in range(0, entries):
        p_entry = p_program + ENTRY * entry
        p_a = p_entry + 3
        kind, group = tl.load(p_entry).to(tl.int32), tl.load(p_entry + 2).to(tl.int32)
        applied = _uniform(0, group, b_index, view, epoch, key_0, key_1) < tl.load(p_entry + 1)
        if kind < HORIZONTAL_FLIP:
            b_top, b_left, b_h, b_w = _crop(
                kind, p_a, b_height, b_width, out_height, out_width, entry, b_index, view, epoch, key_0, key_1
            )
            tl.store(p_record, b_top.to(tl.float32), mask=m)
            tl.store(p_record + 1, b_left.to(tl.float32), mask=m)
            tl.store(p_record + 2, b_h.to(tl.float32), mask=m)
            tl.store(p_record + 3, b_w.to(tl.float32), mask=m)
        elif kind == HORIZONTAL_FLIP:
            tl.store(p_record + 4, applied.to(tl.float32), mask=m)
        elif kind == VERTICAL_FLIP:
            tl.store(p_record + 5, applied.to(tl.float32), mask=m)
        elif kind == QUARTER_TURN:
            turns = 1.0 + tl.floor(3.0 * _uniform(1, entry, b_index, view, epoch, key_0, key_1))
            tl.store(p_record + 6, tl.where(applied, turns, 0.0).to(tl.float32), mask=m)
        elif kind == JITTER:
            _draw_jitter(p_slot, p_a, m, applied, entry, b_index, view, epoch, key_0, key_1)
            p_slot += 4 * STEP
        else:
            a_0, a_1, a_2 = tl.load(p_a), tl.load(p_a + 1), tl.load(p_a + 2)
            drawn = a_0 + (a_1 - a_0) * _uniform(1, entry, b_index, view, epoch, key_0, key_1)
            if kind == DRAW_GRAYSCALE:
                _store_step(p_slot, m, applied, GRAYSCALE, 0.0, 0.0, 0.0, 0.0, 0.0)
            elif kind == DRAW_SOLARIZE:
                _store_step(p_slot, m, applied, SOLARIZE, a_0, 0.0, 0.0, 0.0, 0.0)
            elif kind == DRAW_BLUR:
                _store_step(p_slot, m, applied, BLUR, drawn, a_2, 0.0, 0.0, 0.0)
            elif kind == DRAW_ROTATE:
                _store_step(p_slot, m, applied, ROTATE, drawn, a_2, tl.load(p_a + 3), 0.0, 0.0)
            elif kind == DRAW_CUTOUT:
                b_out_height, b_out_width = b_height * 0.0 + out_height, b_width * 0.0 + out_width
                b_h, b_w, b_fit = _box(p_a, b_out_height, b_out_width, True, entry, b_index, view, epoch, key_0, key_1)
                u_top = _uniform(PLACES, entry, b_index, view, epoch, key_0, key_1)
                u_left = _uniform(PLACES + 1, entry, b_index, view, epoch, key_0, key_1)
                b_top, b_left = _place(u_top, b_out_height - b_h), _place(u_left, b_out_width - b_w)
                _store_step(p_slot, m, applied & b_fit, CUTOUT, b_top, b_left, b_h, b_w, tl.load(p_a + 4))
            elif kind == DRAW_NOISE:
                word_0 = _word(1, entry, b_index, view, epoch, key_0, key_1) >> 8
                word_1 = _word(2, entry, b_index, view, epoch, key_0, key_1) >> 8
                _store_step(p_slot, m, applied, NOISE, a_1, a_0, word_0, word_1, a_2)
            elif kind == DRAW_SOBEL:
                _store_step(p_slot, m, applied, SOBEL, 0.0, 0.0, 0.0, 0.0, 0.0)
            else:
                _store_step(p_slot, m, applied, NOTHING, 0.0, 0.0, 0.0, 0.0, 0.0)
            p_slot += STEP
