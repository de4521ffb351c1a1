"""A barrier of each image, the steps after it, and the end: normalised views.

Barrier number ``number`` of one image may be a blur and that of the next image contrast: every program reads its own.
"""

# ruff: noqa: SIM102 - a branch on a constant stays a statement of its own: where it is not taken it is not compiled

import triton
import triton.language as tl

from ..arithmetic import LOG2E
from .record import BLUR, CONTRAST, HEADER, ROTATE, STEP, is_finite, is_set, round_of, whole
from .steps import blend, point_steps, sine_and_cosine
from .view import load_channels, store_channels, sum_of_gray, tile_of


@triton.jit
def _reflected(o, size):
    """At the border without repeating it, for -size < o < 2 size - 1."""
    o = tl.abs(o)
    return tl.where(o < size, o, 2 * size - 2 - o)


@triton.jit
def _radius_of(sigma, taps, height, width):
    """Taps on each side of a blur's centre, at most what can be reflected; 0: it does nothing."""
    radius = tl.minimum(whole(taps) // 2, tl.minimum(height, width) - 1)
    radius = tl.where(whole(taps) > 1, radius, 0)
    reach = tl.ceil(tl.minimum(5.0 * sigma, 1e6)).to(tl.int32)  # beyond it lies less than 1e-6 of the weight
    return tl.where((sigma > 0.0) & is_finite(sigma), tl.minimum(radius, reach), 0)


@triton.jit
def _blurred(p, o_y, o_x, m, height, width, plane, sigma, radius, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Blurred along the rows, or along the columns."""
    c_0, c_1, c_2, c_3 = load_channels(p, o_y * width + o_x, m, plane, CHANNELS)
    total = 1.0
    for t in range(1, radius + 1):
        x = t / sigma
        weight = tl.exp2(x * x * (-0.5 * LOG2E))
        total += 2.0 * weight
        if ROWS:
            o_1, o_2 = o_y * width + _reflected(o_x - t, width), o_y * width + _reflected(o_x + t, width)
        else:
            o_1, o_2 = _reflected(o_y - t, height) * width + o_x, _reflected(o_y + t, height) * width + o_x
        a_0, a_1, a_2, a_3 = load_channels(p, o_1, m, plane, CHANNELS)
        b_0, b_1, b_2, b_3 = load_channels(p, o_2, m, plane, CHANNELS)
        c_0 += weight * (a_0 + b_0)
        if CHANNELS > 1:
            c_1 += weight * (a_1 + b_1)
        if CHANNELS > 2:
            c_2 += weight * (a_2 + b_2)
        if CHANNELS > 3:
            c_3 += weight * (a_3 + b_3)
    norm = 1.0 / total
    return c_0 * norm, c_1 * norm, c_2 * norm, c_3 * norm


@triton.jit(do_not_specialize=["number", "first_image", "images", "steps", "passes", "height"])
def blur_rows_kernel(
    p_records, p_buffers, number, first_image, images, steps, passes, height, width, plane: tl.int64,
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The first half of every blur that is its image's barrier ``number``: from one buffer into the other.

    Grid (parts of a view, images); arguments as in ``barrier_kernel``.
    """
    slot = tl.program_id(1)
    p_record = p_records + (first_image + slot).to(tl.int64) * (HEADER + STEP * steps)
    first, _, barriers, buffer = round_of(p_record, steps, number, STEPS)
    p = p_record + HEADER + STEP * first
    code = whole(tl.load(p, mask=first < steps, other=0.0))
    if (code == BLUR) & (barriers <= passes):
        sigma = tl.load(p + 1)
        radius = _radius_of(sigma, tl.load(p + 2), height, width)
        p_from = p_buffers + (buffer.to(tl.int64) * images + slot) * CHANNELS * plane
        p_to = p_buffers + ((1 - buffer).to(tl.int64) * images + slot) * CHANNELS * plane
        tiles = tl.cdiv(height, BLOCK_Y) * tl.cdiv(width, BLOCK_X)
        for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
            o_y, o_x, m = tile_of(tile, height, width, BLOCK_Y, BLOCK_X)
            c_0, c_1, c_2, c_3 = _blurred(p_from, o_y, o_x, m, height, width, plane, sigma, radius, True, CHANNELS)
            store_channels(p_to, o_y * width + o_x, m, plane, c_0, c_1, c_2, c_3, CHANNELS, 0)


@triton.jit
def _add_pixels(
    p, y, x, weight, c_0, c_1, c_2, c_3, covered, height, width, plane, m, CHANNELS: tl.constexpr
):  # fmt: skip
    """Adds weight times the pixels [BLOCK_Y, BLOCK_X] at y, x, where those are in the view, and weight to covered."""
    m = m & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    weight = tl.where(m, weight, 0.0)
    a_0, a_1, a_2, a_3 = load_channels(p, y * width + x, m, plane, CHANNELS)
    c_0 += weight * a_0
    if CHANNELS > 1:
        c_1 += weight * a_1
    if CHANNELS > 2:
        c_2 += weight * a_2
    if CHANNELS > 3:
        c_3 += weight * a_3
    return c_0, c_1, c_2, c_3, covered + weight


@triton.jit
def _rotated(p, o_y, o_x, m, height, width, plane, p_step, CHANNELS: tl.constexpr):
    """By a degrees counter-clockwise; b bilinear or nearest; c where nothing was."""
    degrees, bilinear, fill = tl.load(p_step + 1), is_set(tl.load(p_step + 2)), tl.load(p_step + 3)
    turns = tl.where(is_finite(degrees), degrees, 0.0).to(tl.float64) / 360.0  # exact enough for wide views in fp64
    quarters = 4.0 * (turns - tl.floor(turns))
    nearest = tl.floor(quarters + 0.5)
    sine, cosine = sine_and_cosine(nearest.to(tl.int32), quarters - nearest)
    sine, cosine = sine.to(tl.float32), cosine.to(tl.float32)
    half_x, half_y = 0.5 * (width - 1), 0.5 * (height - 1)
    x, y = o_x.to(tl.float32) - half_x, o_y.to(tl.float32) - half_y
    column, row = cosine * x - sine * y + half_x, sine * x + cosine * y + half_y  # [BLOCK_Y, BLOCK_X]
    c_0 = tl.zeros_like(column)
    c_1 = c_0
    c_2 = c_0
    c_3 = c_0
    covered = c_0
    if bilinear:
        left, top = tl.floor(column), tl.floor(row)
        right_weight, low_weight = column - left, row - top
        for corner in range(4):
            down, right = corner // 2, corner % 2
            weight_y = tl.where(down == 1, low_weight, 1.0 - low_weight)
            weight = weight_y * tl.where(right == 1, right_weight, 1.0 - right_weight)
            o_row, o_column = top.to(tl.int32) + down, left.to(tl.int32) + right
            c_0, c_1, c_2, c_3, covered = _add_pixels(
                p, o_row, o_column, weight, c_0, c_1, c_2, c_3, covered, height, width, plane, m, CHANNELS
            )
    else:
        o_row, o_column = _nearest(row), _nearest(column)
        c_0, c_1, c_2, c_3, covered = _add_pixels(
            p, o_row, o_column, 1.0, c_0, c_1, c_2, c_3, covered, height, width, plane, m, CHANNELS
        )
    # torchvision's blend: what is partly covered fades twice
    c_0, c_1 = (c_0 - fill) * covered + fill, (c_1 - fill) * covered + fill
    c_2, c_3 = (c_2 - fill) * covered + fill, (c_3 - fill) * covered + fill
    return c_0, c_1, c_2, c_3


@triton.jit
def _nearest(x):
    """Ties to even, as fp32 rounds once there is no room for a fraction."""
    MAGIC: tl.constexpr = 1.5 * 2.0**23
    return ((x + MAGIC) - MAGIC).to(tl.int32)


@triton.jit
def _sobel(p, y_0, o_y, y_2, x_0, o_x, x_2, m, width):
    """sqrt(gx^2 + gy^2 + 1e-6) of a channel, kernels of norm 1, the border repeated: kornia.filters.sobel."""
    a_0 = tl.load(p + y_0 * width + x_0, mask=m, other=0.0).to(tl.float32)
    a_1 = tl.load(p + y_0 * width + o_x, mask=m, other=0.0).to(tl.float32)
    a_2 = tl.load(p + y_0 * width + x_2, mask=m, other=0.0).to(tl.float32)
    b_0 = tl.load(p + o_y * width + x_0, mask=m, other=0.0).to(tl.float32)
    b_2 = tl.load(p + o_y * width + x_2, mask=m, other=0.0).to(tl.float32)
    c_0 = tl.load(p + y_2 * width + x_0, mask=m, other=0.0).to(tl.float32)
    c_1 = tl.load(p + y_2 * width + o_x, mask=m, other=0.0).to(tl.float32)
    c_2 = tl.load(p + y_2 * width + x_2, mask=m, other=0.0).to(tl.float32)
    gx = 0.125 * ((a_2 - a_0) + (c_2 - c_0)) + 0.25 * (b_2 - b_0)
    gy = 0.125 * ((c_0 - a_0) + (c_2 - a_2)) + 0.25 * (c_1 - a_1)
    return tl.sqrt(gx * gx + gy * gy + 1e-6)


@triton.jit(
    do_not_specialize=[
        "number", "first_image", "images", "group", "channels", "steps", "passes", "height",
    ]
)  # fmt: skip
def barrier_kernel(
    p_records, p_buffers, p_sums, p_out,
    number, first_image, images, group, channels, steps, passes, height, width, plane: tl.int64,
    mean_0, mean_1, mean_2, mean_3, scale_0, scale_1, scale_2, scale_3,
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr, COLORS: tl.constexpr,
    PARTS: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """Barrier ``number`` (from 1) of each image that has one, and the steps up to the next. Grid (parts, images).

    Args:
        p_buffers: [2, images, CHANNELS, height, width].
        p_sums: fp32 [2, images, parts]: of the views before odd barriers, and before even ones.
        others: as in ``resample_kernel``.
    """
    part, slot = tl.program_id(0), tl.program_id(1)
    parts = tl.num_programs(0)
    image = (first_image + slot).to(tl.int64)
    p_record = p_records + image * (HEADER + STEP * steps)
    first, after, barriers, buffer = round_of(p_record, steps, number, STEPS)
    if (first < steps) & (barriers <= passes):
        p_step = p_record + HEADER + STEP * first
        code, a = whole(tl.load(p_step)), tl.load(p_step + 1)
        sums = whole(tl.load(p_record + HEADER + STEP * after, mask=after < steps, other=0.0)) == CONTRAST
        radius = _radius_of(a, tl.load(p_step + 2), height, width)
        # a blur's first half lies in the other buffer, and comes back
        source = tl.where(code == BLUR, 1 - buffer, buffer).to(tl.int64)
        p_from = p_buffers + (source * images + slot) * CHANNELS * plane
        p_to = p_buffers + ((1 - source) * images + slot) * CHANNELS * plane
        p_view = p_out + (image * channels + 4 * group) * plane
        p_mean = p_sums + (((number - 1) & 1) * images + slot).to(tl.int64) * parts
        mean = 0.0
        if COLORS > 0:
            if code == CONTRAST:
                o = tl.arange(0, PARTS)
                pixels = height * width
                mean = tl.sum(tl.load(p_mean + o, mask=o < parts, other=0.0), 0) / pixels.to(tl.float32)
        total = 0.0
        for tile in range(part, tl.cdiv(height, BLOCK_Y) * tl.cdiv(width, BLOCK_X), parts):
            o_y, o_x, m = tile_of(tile, height, width, BLOCK_Y, BLOCK_X)
            o = o_y * width + o_x
            if code == BLUR:
                c_0, c_1, c_2, c_3 = _blurred(p_from, o_y, o_x, m, height, width, plane, a, radius, False, CHANNELS)
            elif code == ROTATE:
                c_0, c_1, c_2, c_3 = _rotated(p_from, o_y, o_x, m, height, width, plane, p_step, CHANNELS)
            elif code == CONTRAST:
                c_0, c_1, c_2, c_3 = load_channels(p_from, o, m, plane, CHANNELS)
                if COLORS > 0:
                    c_0 = blend(c_0, mean, a)
                if COLORS == 3:
                    c_1, c_2 = blend(c_1, mean, a), blend(c_2, mean, a)
            else:  # Sobel
                y_0, y_2 = tl.maximum(o_y - 1, 0), tl.minimum(o_y + 1, height - 1)
                x_0, x_2 = tl.maximum(o_x - 1, 0), tl.minimum(o_x + 1, width - 1)
                c_0 = _sobel(p_from, y_0, o_y, y_2, x_0, o_x, x_2, m, width)
                c_1 = c_0
                c_2 = c_0
                c_3 = c_0
                if CHANNELS > 1:
                    c_1 = _sobel(p_from + plane, y_0, o_y, y_2, x_0, o_x, x_2, m, width)
                if CHANNELS > 2:
                    c_2 = _sobel(p_from + 2 * plane, y_0, o_y, y_2, x_0, o_x, x_2, m, width)
                if CHANNELS > 3:
                    c_3 = _sobel(p_from + 3 * plane, y_0, o_y, y_2, x_0, o_x, x_2, m, width)
            c_0, c_1, c_2, c_3 = point_steps(
                p_record, first + 1, after, c_0, c_1, c_2, c_3, o_y, o_x, width, group, mean_0, mean_1, mean_2, mean_3,
                CHANNELS, COLORS == 3,
            )  # fmt: skip
            if after == steps:
                store_channels(
                    p_view, o, m, plane, (c_0 - mean_0) * scale_0, (c_1 - mean_1) * scale_1, (c_2 - mean_2) * scale_2,
                    (c_3 - mean_3) * scale_3, CHANNELS, ROUND,
                )  # fmt: skip
            else:
                store_channels(p_to, o, m, plane, c_0, c_1, c_2, c_3, CHANNELS, 0)
            if COLORS > 0:
                if sums:
                    total += sum_of_gray(c_0, c_1, c_2, m, COLORS)
        if sums:
            tl.store(p_sums + ((number & 1) * images + slot).to(tl.int64) * parts + part, total)
