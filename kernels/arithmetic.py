"""Numbers and rounding that the kernels of several families share."""

import triton
import triton.language as tl

# Exponentials are base 2, since that is what the hardware has.
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def round_mantissa(x, DROP: tl.constexpr):
    """Rounds fp32 to nearest even without its last DROP mantissa bits (13: tf32, 16: bf16). NaN stays NaN."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + ((1 << (DROP - 1)) - 1) + ((bits >> DROP) & 1)) & (-(1 << DROP))
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)


@triton.jit
def finite_or_zero(x):
    """x where it is above minus infinity, else 0: the shift of a sum of exponentials that may have no terms."""
    return tl.where(x == float("-inf"), 0.0, x)


@triton.jit
def log1p_of_unit(u):
    """log(1 + u) for u in [0, 1]: 2 atanh(u / (2 + u)), a series in at most 1/9, to 2e-9 of it."""
    ratio = u / (2.0 + u)
    square = ratio * ratio
    series = square * (1.0 / 15) + 1.0 / 13
    series = series * square + 1.0 / 11
    series = series * square + 1.0 / 9
    series = series * square + 1.0 / 7
    series = series * square + 1.0 / 5
    series = series * square + 1.0 / 3
    return 2.0 * ratio * (series * square + 1.0)
