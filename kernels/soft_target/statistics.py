"""The first pass: every logit is read once, and of each row's part in a chunk of columns a few sums remain."""

import triton
import triton.language as tl

from ..arithmetic import LOG2E, finite_or_zero
from .common import SIZES, known_multiple, load_logits, load_potential
from .views import row_of, rows_of


@triton.jit(do_not_specialize=[*SIZES, "chunks"])
def statistics_kernel(
    p_student, p_teacher, p_table, p_column, p_weight, p_records, p_group_sums,
    B, K, S, chunks, entries,
    student_stride: tl.int64, student_row: tl.int64, teacher_stride: tl.int64, teacher_row: tl.int64,
    student_scale, teacher_scale,
    T: tl.constexpr, T_PAD: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr, ONE_STUDENT: tl.constexpr,
    TABLE: tl.constexpr, ALIGNED: tl.constexpr, WHOLE: tl.constexpr,
    POTENTIALS: tl.constexpr, HAS_WEIGHT: tl.constexpr, COLUMN_SUM: tl.constexpr,
):  # fmt: skip
    """Records of one chunk of the columns, and the teacher's column sums there, for one group of images.

    Grid (chunks, groups); group g has the images g, g + groups, ... Written: records [B, chunks, 2 S + 2 T + T S] of
    student maxima [S] and sums [S], teacher maxima [T] and sums [T], dots [T, S] (``combine.py`` says of what), and
    group_sums [groups, K]. WHOLE: K is a multiple of BLOCK, so nothing is masked.
    """
    chunk = tl.program_id(0)
    group = tl.program_id(1)
    K = known_multiple(K, p_student, p_teacher, ALIGNED)
    o_k = chunk * BLOCK + tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    o_t = tl.arange(0, T_PAD)[:, None]  # [T_PAD, 1]
    b_columns = tl.zeros([1, BLOCK], tl.float32)
    for image in tl.range(group, B, tl.num_programs(1)):
        p_record = p_records + (tl.cast(image, tl.int64) * chunks + chunk) * (2 * S + 2 * T + T * S)
        if HAS_WEIGHT:
            if tl.load(p_weight + image) != 0:
                b_columns += _image(
                    p_student, p_teacher, p_table, p_column, p_record, image, o_k, o_t, K, S, entries,
                    student_stride, student_row, teacher_stride, teacher_row, student_scale, teacher_scale,
                    T, T_PAD, STAGES, ONE_STUDENT, TABLE, ALIGNED, WHOLE, POTENTIALS,
                )  # fmt: skip
        else:
            b_columns += _image(
                p_student, p_teacher, p_table, p_column, p_record, image, o_k, o_t, K, S, entries,
                student_stride, student_row, teacher_stride, teacher_row, student_scale, teacher_scale,
                T, T_PAD, STAGES, ONE_STUDENT, TABLE, ALIGNED, WHOLE, POTENTIALS,
            )  # fmt: skip
    if COLUMN_SUM:
        tl.store(p_group_sums + group.to(tl.int64) * K + o_k, b_columns, mask=o_k < K)


@triton.jit
def _image(
    p_student, p_teacher, p_table, p_column, p_record, image, o_k, o_t, K, S, entries,
    student_stride, student_row, teacher_stride, teacher_row, student_scale, teacher_scale,
    T: tl.constexpr, T_PAD: tl.constexpr, STAGES: tl.constexpr, ONE_STUDENT: tl.constexpr,
    TABLE: tl.constexpr, ALIGNED: tl.constexpr, WHOLE: tl.constexpr, POTENTIALS: tl.constexpr,
):  # fmt: skip
    """Writes one image's record of this chunk. Returns the sum of the teachers' raw logits [1, BLOCK]."""
    STUDENT_MULTIPLE: tl.constexpr = 128 // p_student.dtype.element_ty.primitive_bitwidth if ALIGNED else 1
    TEACHER_MULTIPLE: tl.constexpr = 128 // p_teacher.dtype.element_ty.primitive_bitwidth if ALIGNED else 1
    m_k = o_k < K
    if ONE_STUDENT:  # before the teacher's sums wait for the teacher
        o_row = row_of(p_table, entries, 0, 0, image, student_stride, student_row, TABLE, STUDENT_MULTIPLE)
        b_x = load_logits(p_student + o_row + o_k, m_k, float("-inf"), not WHOLE)

    o_rows = rows_of(
        p_table, entries, S, o_t, T, image, teacher_stride, teacher_row, TABLE, TEACHER_MULTIPLE
    )  # [T_PAD, 1]
    m_teacher = m_k & (o_t < T)
    MASKED: tl.constexpr = not WHOLE or T_PAD != T
    b_y = load_logits(p_teacher + o_rows + o_k, m_teacher, float("-inf"), MASKED)  # [T_PAD, BLOCK]
    b_sum_y = tl.sum(tl.where(m_teacher, b_y, 0.0) if MASKED else b_y, 0, keep_dims=True)
    # from the cache for every image: in registers the potentials would take the place of other programs
    b_y = b_y * (teacher_scale * LOG2E) - load_potential(p_column, o_t, o_k, K, T, POTENTIALS)
    b_max = tl.max(b_y, 1)  # [T_PAD]
    b_e = tl.exp2(b_y - finite_or_zero(b_max)[:, None])
    o_column = tl.arange(0, T_PAD)
    p_maxima = p_record + 2 * S + o_column
    tl.store(p_maxima, b_max, mask=o_column < T)
    tl.store(p_maxima + T, tl.sum(b_e, 1), mask=o_column < T)

    if ONE_STUDENT:
        _student(b_x, b_e, p_record, 0, 1, m_k, student_scale, T, T_PAD, WHOLE)
    else:
        for s in tl.range(0, S, num_stages=STAGES):
            o_row = row_of(p_table, entries, s, s, image, student_stride, student_row, TABLE, STUDENT_MULTIPLE)
            b_x = load_logits(p_student + o_row + o_k, m_k, float("-inf"), not WHOLE)
            _student(b_x, b_e, p_record, s, S, m_k, student_scale, T, T_PAD, WHOLE)
    return b_sum_y


@triton.jit
def _student(
    b_x, b_e, p_record, s, S, m_k, student_scale, T: tl.constexpr, T_PAD: tl.constexpr, WHOLE: tl.constexpr
):  # fmt: skip
    """One student's maximum, sum of exponentials, and dots with the teachers' exponentials."""
    b_max = tl.max(b_x, 1)  # [1]
    b_below = b_x - finite_or_zero(b_max)[:, None]  # before the scale: a product of large logits would be rounded
    b_sum = tl.sum(tl.exp2(b_below * (student_scale * LOG2E)), 1)
    if not WHOLE:  # minus infinity there, and 0 among the teacher's exponentials
        b_below = tl.where(m_k, b_below, 0.0)
    b_dot = tl.sum(b_e * b_below, 1)  # [T_PAD]
    p = p_record + s + tl.arange(0, 1)
    tl.store(p, b_max)
    tl.store(p + S, b_sum)
    o_t = tl.arange(0, T_PAD)
    tl.store(p_record + 2 * S + 2 * T + o_t * S + s, b_dot, mask=o_t < T)
