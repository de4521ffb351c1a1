"""What the kernels that make views share: tiles of a view, and what is written at the end of a kernel."""

# ruff: noqa: SIM108 - branches on constants stay statements: a branch that is not taken is not compiled

import triton
import triton.language as tl

from ..arithmetic import round_mantissa
from .steps import gray


@triton.jit
def tile_of(tile, height, width, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr):
    """Rows [BLOCK_Y, 1], columns [1, BLOCK_X] and whether they are in the view [BLOCK_Y, BLOCK_X]; tiles row by row."""
    across = tl.cdiv(width, BLOCK_X)
    o_y = (tile // across) * BLOCK_Y + tl.arange(0, BLOCK_Y)[:, None]
    o_x = (tile % across) * BLOCK_X + tl.arange(0, BLOCK_X)[None, :]
    return o_y, o_x, (o_y < height) & (o_x < width)


@triton.jit
def load_channels(p, o, m, plane, CHANNELS: tl.constexpr):
    """Up to four channels, planes apart, in fp32."""
    c_0 = tl.load(p + o, mask=m, other=0.0).to(tl.float32)
    c_1 = c_0
    c_2 = c_0
    c_3 = c_0
    if CHANNELS > 1:
        c_1 = tl.load(p + plane + o, mask=m, other=0.0).to(tl.float32)
    if CHANNELS > 2:
        c_2 = tl.load(p + 2 * plane + o, mask=m, other=0.0).to(tl.float32)
    if CHANNELS > 3:
        c_3 = tl.load(p + 3 * plane + o, mask=m, other=0.0).to(tl.float32)
    return c_0, c_1, c_2, c_3


@triton.jit
def store_channels(p, o, m, plane, c_0, c_1, c_2, c_3, CHANNELS: tl.constexpr, ROUND: tl.constexpr):
    """ROUND: mantissa bits to leave out beforehand, for the interpreter, which does not round to bfloat16."""
    _store(p + o, c_0, m, ROUND)
    if CHANNELS > 1:
        _store(p + plane + o, c_1, m, ROUND)
    if CHANNELS > 2:
        _store(p + 2 * plane + o, c_2, m, ROUND)
    if CHANNELS > 3:
        _store(p + 3 * plane + o, c_3, m, ROUND)


@triton.jit
def _store(p, x, m, ROUND: tl.constexpr):
    if ROUND > 0:
        x = round_mantissa(x, ROUND)
    tl.store(p, x.to(p.dtype.element_ty), mask=m)


@triton.jit
def sum_of_gray(c_0, c_1, c_2, m, COLORS: tl.constexpr):
    if COLORS == 3:
        b_gray = gray(c_0, c_1, c_2)
    else:
        b_gray = c_0
    return tl.sum(tl.sum(tl.where(m, b_gray, 0.0), 1), 0)
