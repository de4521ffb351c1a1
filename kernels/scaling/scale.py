"""A tensor times a number that lies on the device."""

import triton
import triton.language as tl

from ..arithmetic import round_mantissa

BLOCK = 4096  # numbers at a time; not tuned on a GPU yet
WARPS = 8


@triton.jit
def scale_kernel(p_x, p_factor, numbers: tl.int64, BLOCK: tl.constexpr, ROUND: tl.constexpr):
    """Grid (programs,), any number. x [numbers] becomes x times factor []; where that is 1, x is not touched."""
    factor = tl.load(p_factor).to(tl.float32)
    if factor != 1.0:
        step = tl.num_programs(0).to(tl.int64) * BLOCK
        for start in range(tl.program_id(0).to(tl.int64) * BLOCK, numbers, step):
            o = start + tl.arange(0, BLOCK)
            m = o < numbers
            b_x = tl.load(p_x + o, mask=m, other=0.0).to(tl.float32) * factor
            if ROUND > 0:
                b_x = round_mantissa(b_x, ROUND)
            tl.store(p_x + o, b_x.to(p_x.dtype.element_ty), mask=m)
