"""Crop, resize, flips and quarter turns in one reading of the image, and the steps up to the first barrier.

Resizing is torch's interpolation with antialiasing: the weights of rows and columns are known apart and multiplied, and
each output pixel gathers what it needs. Neighbouring pixels read nearly the same bytes, which the caches hold.
"""

# ruff: noqa: SIM102 - a branch on a constant stays a statement of its own: where it is not taken it is not compiled

import triton
import triton.language as tl

from .record import CONTRAST, HEADER, STEP, inside, is_set, round_of, whole
from .steps import clamp01, point_steps
from .view import store_channels, sum_of_gray, tile_of

TABLE_ROW = tl.constexpr(6)  # of a list of images: address, height, width, and the strides of channels, rows, pixels


@triton.jit
def taps_of(o, extent, size, BICUBIC: tl.constexpr):
    """Where output pixels o of ``size`` read a crop of ``extent`` pixels.

    Returns:
        the first tap (int32, like o; perhaps outside the crop), its distance from the centre in units of the filter
        (fp32, like o), the distance between taps in that unit, and the number of taps.
    """
    stretch = extent.to(tl.float32) / size
    unit = tl.maximum(stretch, 1.0)
    support = 2.0 * unit if BICUBIC else unit
    # The centre is extent (2 o + 1) / (2 size) - 1/2 in pixels. As one fp32 it would be off by a part of a pixel in a
    # large photograph: a whole number near it is taken out of the exact quotient.
    near = (stretch * (o.to(tl.float32) + 0.5)).to(tl.int32)
    rest = extent.to(tl.int64) * (2 * o + 1) - near.to(tl.int64) * (2 * size)
    centre = rest.to(tl.float32) / (2.0 * size) - 0.5  # from near
    below = tl.floor(centre - support) + 1.0
    step = 1.0 / unit
    return near + below.to(tl.int32), (below - centre) * step, step, tl.ceil(2.0 * support).to(tl.int32)


@triton.jit
def weight_of(tap, distance, extent, m, BICUBIC: tl.constexpr):
    """Weight of a tap, before normalisation; 0 outside the crop. Cubic: Keys' with a = -1/2."""
    x = tl.abs(distance)
    if BICUBIC:
        near = (1.5 * x - 2.5) * x * x + 1.0
        far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
        weight = tl.where(x < 1.0, near, tl.where(x < 2.0, far, 0.0))
    else:
        weight = tl.maximum(1.0 - x, 0.0)
    return tl.where(m & (tap >= 0) & (tap < extent), weight, 0.0)


@triton.jit
def sum_of_weights(first, distance, step, taps, extent, m, BICUBIC: tl.constexpr):
    total = tl.zeros_like(distance)
    for k in range(0, taps):
        total += weight_of(first + k, distance + k * step, extent, m, BICUBIC)
    return total


@triton.jit
def _image_of(p_images, image, H, W, image_stride, channel_stride, row_stride, pixel_stride, RAGGED: tl.constexpr):
    """Address, height, width and strides of an image of a stack, or of a list that a table describes."""
    if RAGGED:
        p = p_images + image * TABLE_ROW
        p_image = tl.load(p).to(tl.pointer_type(tl.uint8))
        H, W = tl.load(p + 1).to(tl.int32), tl.load(p + 2).to(tl.int32)
        channel_stride, row_stride, pixel_stride = tl.load(p + 3), tl.load(p + 4), tl.load(p + 5)
    else:
        p_image = p_images + image * image_stride
    return p_image, H, W, channel_stride, row_stride, pixel_stride


@triton.jit(
    do_not_specialize=[
        "first_image", "group", "channels", "steps", "passes", "H", "W", "image_stride", "channel_stride", "row_stride",
        "pixel_stride", "height",
    ]
)  # fmt: skip
def resample_kernel(
    p_images, p_records, p_buffers, p_sums, p_out,
    first_image, group, channels, steps, passes, H, W,
    image_stride: tl.int64, channel_stride: tl.int64, row_stride: tl.int64, pixel_stride: tl.int64, height, width,
    plane: tl.int64, mean_0, mean_1, mean_2, mean_3, scale_0, scale_1, scale_2, scale_3,
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr, COLORS: tl.constexpr,
    RAGGED: tl.constexpr, BICUBIC: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """Grid (parts of a view, images). Images count from first_image, but from 0 in the buffers.

    Args:
        p_images: the stack, uint8, or for a list a table, int64 [B, 6].
        p_records: fp32 [B, 8 + 6 steps].
        p_buffers: [2, images, CHANNELS, height, width]; the first is written where a barrier follows.
        p_sums: fp32 [images, parts], sums of gray for a view whose first barrier is contrast.
        p_out: [B, channels, height, width], written where no barrier follows; NaN where more follow than ``passes``.
        group: number of channels before these, divided by four.
        plane: height width.
        mean_0, ..., scale_0, ...: of the normalisation, out = (x - mean) scale.
    """
    part, slot = tl.program_id(0), tl.program_id(1)
    parts = tl.num_programs(0)
    image = (first_image + slot).to(tl.int64)
    p_record = p_records + image * (HEADER + STEP * steps)
    _, after, barriers, _ = round_of(p_record, steps, 0, STEPS)
    sums = whole(tl.load(p_record + HEADER + STEP * after, mask=after < steps, other=0.0)) == CONTRAST
    sums = sums & (barriers <= passes)
    p_image, H, W, channel_stride, row_stride, pixel_stride = _image_of(
        p_images, image, H, W, image_stride, channel_stride, row_stride, pixel_stride, RAGGED
    )
    top, crop_height = inside(tl.load(p_record), tl.load(p_record + 2), H)
    left, crop_width = inside(tl.load(p_record + 1), tl.load(p_record + 3), W)
    flip_x, flip_y = is_set(tl.load(p_record + 4)), is_set(tl.load(p_record + 5))
    turns = whole(tl.load(p_record + 6)) & 3
    turns = tl.where((height != width) & ((turns & 1) != 0), 0, turns)
    # Odd turns exchange rows and columns: i runs along the view's rows, j along its columns, wherever those lie.
    odd = (turns & 1) != 0
    extent_i, extent_j = tl.where(odd, crop_width, crop_height), tl.where(odd, crop_height, crop_width)
    stride_i, stride_j = tl.where(odd, pixel_stride, row_stride), tl.where(odd, row_stride, pixel_stride)
    reverse_i = tl.where(odd, (turns == 1) ^ flip_x, (turns == 2) ^ flip_y)
    reverse_j = tl.where(odd, (turns == 3) ^ flip_y, (turns == 2) ^ flip_x)
    p_crop = p_image + 4 * group * channel_stride + top * row_stride + left * pixel_stride
    p_buffer = p_buffers + slot.to(tl.int64) * CHANNELS * plane
    p_view = p_out + (image * channels + 4 * group) * plane

    total = 0.0
    for tile in range(part, tl.cdiv(height, BLOCK_Y) * tl.cdiv(width, BLOCK_X), parts):
        o_y, o_x, m = tile_of(tile, height, width, BLOCK_Y, BLOCK_X)
        o_i, o_j = tl.where(reverse_i, height - 1 - o_y, o_y), tl.where(reverse_j, width - 1 - o_x, o_x)
        first_i, distance_i, step_i, taps_i = taps_of(o_i, extent_i, height, BICUBIC)  # [BLOCK_Y, 1]
        first_j, distance_j, step_j, taps_j = taps_of(o_j, extent_j, width, BICUBIC)  # [1, BLOCK_X]
        c_0 = tl.zeros([BLOCK_Y, BLOCK_X], tl.float32)
        c_1 = c_0
        c_2 = c_0
        c_3 = c_0
        for k in range(0, taps_i):
            w_i = weight_of(first_i + k, distance_i + k * step_i, extent_i, o_y < height, BICUBIC)
            p_row = p_crop + (first_i + k) * stride_i
            for n in range(0, taps_j):
                w_j = weight_of(first_j + n, distance_j + n * step_j, extent_j, o_x < width, BICUBIC)
                w = w_i * w_j
                p = p_row + (first_j + n) * stride_j
                c_0 += w * tl.load(p, mask=w != 0.0, other=0).to(tl.float32)
                if CHANNELS > 1:
                    c_1 += w * tl.load(p + channel_stride, mask=w != 0.0, other=0).to(tl.float32)
                if CHANNELS > 2:
                    c_2 += w * tl.load(p + 2 * channel_stride, mask=w != 0.0, other=0).to(tl.float32)
                if CHANNELS > 3:
                    c_3 += w * tl.load(p + 3 * channel_stride, mask=w != 0.0, other=0).to(tl.float32)
        sum_i = sum_of_weights(first_i, distance_i, step_i, taps_i, extent_i, o_y < height, BICUBIC)
        sum_j = sum_of_weights(first_j, distance_j, step_j, taps_j, extent_j, o_x < width, BICUBIC)
        norm = 1.0 / (255.0 * sum_i * sum_j)
        c_0 = clamp01(c_0 * norm)  # bicubic weights may be negative, and sums a rounding above 1
        if CHANNELS > 1:
            c_1 = clamp01(c_1 * norm)
        if CHANNELS > 2:
            c_2 = clamp01(c_2 * norm)
        if CHANNELS > 3:
            c_3 = clamp01(c_3 * norm)

        c_0, c_1, c_2, c_3 = point_steps(
            p_record, 0, after, c_0, c_1, c_2, c_3, o_y, o_x, width, group, mean_0, mean_1, mean_2, mean_3,
            CHANNELS, COLORS == 3,
        )  # fmt: skip
        o = o_y * width + o_x
        if barriers == 0:
            store_channels(
                p_view, o, m, plane, (c_0 - mean_0) * scale_0, (c_1 - mean_1) * scale_1, (c_2 - mean_2) * scale_2,
                (c_3 - mean_3) * scale_3, CHANNELS, ROUND,
            )  # fmt: skip
        elif barriers > passes:
            nan = tl.full([BLOCK_Y, BLOCK_X], float("nan"), tl.float32)
            store_channels(p_view, o, m, plane, nan, nan, nan, nan, CHANNELS, ROUND)
        else:
            store_channels(p_buffer, o, m, plane, c_0, c_1, c_2, c_3, CHANNELS, 0)
        if COLORS > 0:
            if sums:
                total += sum_of_gray(c_0, c_1, c_2, m, COLORS)
    if sums:
        tl.store(p_sums + slot * parts + part, total)
