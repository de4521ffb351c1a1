"""What both passes over the logits share: loading, potentials, the skipping of images."""

# ruff: noqa: SIM108 - branches on constants stay statements: a branch that is not taken is not compiled

import triton
import triton.language as tl

from ..arithmetic import LOG2E

# How the column potentials are given.
NONE = tl.constexpr(0)
SHARED = tl.constexpr(1)  # [K]
PER_TEACHER = tl.constexpr(2)  # [T, K]

# Sizes and places change from call to call: they are never compiled in.
SIZES = ("B", "K", "S", "entries", "student_stride", "student_row", "teacher_stride", "teacher_row")


@triton.jit
def known_multiple(K, p_student, p_teacher, ALIGNED: tl.constexpr):
    """K again. Where rows end at multiples of 16 bytes the compiler now sees that masks are equal for whole vectors."""
    if ALIGNED:
        bits: tl.constexpr = p_student.dtype.element_ty.primitive_bitwidth
        teacher_bits: tl.constexpr = p_teacher.dtype.element_ty.primitive_bitwidth
        MULTIPLE: tl.constexpr = 128 // (bits if bits < teacher_bits else teacher_bits)
        K = K // MULTIPLE * MULTIPLE
    return K


@triton.jit
def load_logits(p, mask, other, MASKED: tl.constexpr):
    """A tile of logits in fp32."""
    if MASKED:
        b = tl.load(p, mask=mask, other=other)
    else:
        b = tl.load(p)
    return b.to(tl.float32)


@triton.jit
def load_potential(p_column, o_t, o_k, K, T: tl.constexpr, POTENTIALS: tl.constexpr):
    """Column potentials in units of log 2: [1, BLOCK] or [T_PAD, BLOCK]; zero where there are none."""
    if POTENTIALS == SHARED:
        b_v = tl.load(p_column + o_k, mask=o_k < K, other=0.0) * LOG2E
    elif POTENTIALS == PER_TEACHER:
        b_v = tl.load(p_column + o_t.to(tl.int64) * K + o_k, mask=(o_t < T) & (o_k < K), other=0.0) * LOG2E
    else:
        b_v = 0.0
    return b_v
