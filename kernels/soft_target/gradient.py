"""The second pass: every logit is read again, and the students' gradient is written."""

import triton
import triton.language as tl

from ..arithmetic import LOG2E, round_mantissa
from .common import SIZES, known_multiple, load_logits, load_potential
from .views import row_of, rows_of


@triton.jit(do_not_specialize=[*SIZES, "gradient_stride", "gradient_row"])
def gradient_kernel(
    p_student, p_teacher, p_gradient, p_table, p_column, p_row_potential, p_weight,
    p_student_lse, p_teacher_lse, p_d_loss,
    B, K, S, entries,
    student_stride: tl.int64, student_row: tl.int64, teacher_stride: tl.int64, teacher_row: tl.int64,
    gradient_stride: tl.int64, gradient_row: tl.int64,
    student_scale, teacher_scale,
    T: tl.constexpr, T_PAD: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
    TABLE: tl.constexpr, ALIGNED: tl.constexpr, WHOLE: tl.constexpr, POTENTIALS: tl.constexpr,
    SKIP_SAME_VIEW: tl.constexpr, HAS_ROW_POTENTIAL: tl.constexpr, HAS_WEIGHT: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """Gradient of the students in one chunk of the columns, for one group of images; may take the logits' place.

    Grid (chunks, groups); group g has the images g, g + groups, ... Each element is read and written by one thread, so
    p_gradient may be p_student. Rows of images of weight 0 become zero. ROUND (interpreter only): mantissa bits
    that the conversion to 16 bits would cut off there instead of rounding.
    """
    chunk = tl.program_id(0)
    group = tl.program_id(1)
    GRADIENT_MULTIPLE: tl.constexpr = 128 // p_gradient.dtype.element_ty.primitive_bitwidth if ALIGNED else 1
    K = known_multiple(K, p_student, p_teacher, ALIGNED)
    o_k = chunk * BLOCK + tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    o_t = tl.arange(0, T_PAD)[:, None]  # [T_PAD, 1]
    b_v = load_potential(p_column, o_t, o_k, K, T, POTENTIALS)
    for image in tl.range(group, B, tl.num_programs(1)):
        factor = tl.load(p_d_loss + image) * student_scale
        if HAS_WEIGHT:
            weight = tl.load(p_weight + image)
            if weight != 0:
                _image(
                    p_student, p_teacher, p_gradient, p_table, p_row_potential, p_student_lse, p_teacher_lse,
                    image, factor * weight, o_k, o_t, b_v, B, K, S, entries,
                    student_stride, student_row, teacher_stride, teacher_row, gradient_stride, gradient_row,
                    student_scale, teacher_scale, T, T_PAD, STAGES, TABLE, ALIGNED, WHOLE,
                    SKIP_SAME_VIEW, HAS_ROW_POTENTIAL, ROUND,
                )  # fmt: skip
            else:
                for s in tl.range(0, S):
                    o_row = row_of(
                        p_table, entries, S + T + s, s, image, gradient_stride, gradient_row, TABLE, GRADIENT_MULTIPLE
                    )
                    b_zero = tl.zeros([1, o_k.shape[1]], p_gradient.dtype.element_ty)
                    tl.store(p_gradient + o_row + o_k, b_zero, mask=o_k < K)
        else:
            _image(
                p_student, p_teacher, p_gradient, p_table, p_row_potential, p_student_lse, p_teacher_lse,
                image, factor, o_k, o_t, b_v, B, K, S, entries,
                student_stride, student_row, teacher_stride, teacher_row, gradient_stride, gradient_row,
                student_scale, teacher_scale, T, T_PAD, STAGES, TABLE, ALIGNED, WHOLE,
                SKIP_SAME_VIEW, HAS_ROW_POTENTIAL, ROUND,
            )  # fmt: skip


@triton.jit
def _image(
    p_student, p_teacher, p_gradient, p_table, p_row_potential, p_student_lse, p_teacher_lse,
    image, factor, o_k, o_t, b_v, B, K, S, entries,
    student_stride, student_row, teacher_stride, teacher_row, gradient_stride, gradient_row,
    student_scale, teacher_scale,
    T: tl.constexpr, T_PAD: tl.constexpr, STAGES: tl.constexpr,
    TABLE: tl.constexpr, ALIGNED: tl.constexpr, WHOLE: tl.constexpr,
    SKIP_SAME_VIEW: tl.constexpr, HAS_ROW_POTENTIAL: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """The gradients of one image's students: factor (mass softmax(x) - target)."""
    STUDENT_MULTIPLE: tl.constexpr = 128 // p_student.dtype.element_ty.primitive_bitwidth if ALIGNED else 1
    TEACHER_MULTIPLE: tl.constexpr = 128 // p_teacher.dtype.element_ty.primitive_bitwidth if ALIGNED else 1
    GRADIENT_MULTIPLE: tl.constexpr = 128 // p_gradient.dtype.element_ty.primitive_bitwidth if ALIGNED else 1
    m_k = o_k < K
    o_rows = rows_of(p_table, entries, S, o_t, T, image, teacher_stride, teacher_row, TABLE, TEACHER_MULTIPLE)
    MASKED: tl.constexpr = not WHOLE or T_PAD != T
    b_y = load_logits(p_teacher + o_rows + o_k, m_k & (o_t < T), float("-inf"), MASKED)  # [T_PAD, BLOCK]
    o_pair = o_t * tl.cast(B, tl.int64) + image
    b_u = tl.load(p_teacher_lse + o_pair, mask=o_t < T, other=0.0) * LOG2E  # [T_PAD, 1]
    b_mass = tl.full([T_PAD, 1], 1.0, tl.float32)
    if HAS_ROW_POTENTIAL:
        b_lse_t = b_u
        b_u = tl.load(p_row_potential + o_pair, mask=o_t < T, other=0.0) * LOG2E
        b_mass = tl.exp2(b_lse_t - b_u)
    b_p = tl.exp2(b_y * (teacher_scale * LOG2E) - b_v - b_u)

    for s in tl.range(0, S, num_stages=STAGES):
        o_row = row_of(p_table, entries, s, s, image, student_stride, student_row, TABLE, STUDENT_MULTIPLE)
        b_x = load_logits(p_student + o_row + o_k, m_k, 0.0, not WHOLE)  # [1, BLOCK]
        lse2 = tl.load(p_student_lse + s * tl.cast(B, tl.int64) + image) * LOG2E
        m_pair = o_t < T
        if SKIP_SAME_VIEW:
            m_pair = m_pair & (o_t != s)
        # masked, not subtracted from the sum over all teachers: what is left could be small against what is taken off
        b_target = tl.sum(tl.where(m_pair, b_p, 0.0), 0, keep_dims=True)  # [1, BLOCK]
        b_sum_mass = tl.sum(tl.where(m_pair, b_mass, 0.0), 0, keep_dims=True)  # [1, 1]
        b_g = (b_sum_mass * tl.exp2(b_x * (student_scale * LOG2E) - lse2) - b_target) * factor
        if ROUND > 0:
            b_g = round_mantissa(b_g, ROUND)
        o_row = row_of(
            p_table, entries, S + T + s, s, image, gradient_stride, gradient_row, TABLE, GRADIENT_MULTIPLE
        )  # fmt: skip
        tl.store(p_gradient + o_row + o_k, b_g.to(p_gradient.dtype.element_ty), mask=m_k)
