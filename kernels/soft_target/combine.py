"""Between the passes: losses and log-sums from the records of all chunks, column sums from those of all groups."""

import triton
import triton.language as tl

from ..arithmetic import LN2, LOG2E, finite_or_zero


@triton.jit(do_not_specialize=["B", "K", "S", "chunks", "groups", "image_programs"])
def combine_kernel(
    p_records, p_group_sums, p_row_potential, p_weight, p_loss, p_student_lse, p_teacher_lse, p_column_sum,
    B, K, S, chunks, groups, image_programs, student_scale,
    T: tl.constexpr, S_PAD: tl.constexpr, IMAGES: tl.constexpr, SLOTS: tl.constexpr, COLUMNS: tl.constexpr,
    SKIP_SAME_VIEW: tl.constexpr, HAS_ROW_POTENTIAL: tl.constexpr, HAS_WEIGHT: tl.constexpr, COLUMN_SUM: tl.constexpr,
):  # fmt: skip
    """The first ``image_programs`` programs do IMAGES images each, the others COLUMNS columns each.

    Written: loss [B], student_lse [S, B], teacher_lse [T, B], column_sum [K]. One launch for two things that have
    nothing to do with each other, because at small batches a launch takes as long as either.
    """
    program = tl.program_id(0)
    if program < image_programs:
        _combine_images(
            p_records, p_row_potential, p_weight, p_loss, p_student_lse, p_teacher_lse, program, B, S, chunks,
            student_scale, T, S_PAD, IMAGES, SLOTS, SKIP_SAME_VIEW, HAS_ROW_POTENTIAL, HAS_WEIGHT,
        )  # fmt: skip
    elif COLUMN_SUM:
        _add_groups(p_group_sums, p_column_sum, program - image_programs, K, groups, COLUMNS)


@triton.jit
def _combine_images(
    p_records, p_row_potential, p_weight, p_loss, p_student_lse, p_teacher_lse, program, B, S, chunks, student_scale,
    T: tl.constexpr, S_PAD: tl.constexpr, IMAGES: tl.constexpr, SLOTS: tl.constexpr,
    SKIP_SAME_VIEW: tl.constexpr, HAS_ROW_POTENTIAL: tl.constexpr, HAS_WEIGHT: tl.constexpr,
):  # fmt: skip
    """Rows are pairs of an image and a student, ROWS = IMAGES * S_PAD; SLOTS chunks are read at a time.

    A chunk's record holds the maximum m of x and the sum z of exp(a (x - m)) of each student; with y = c y_tbk - v in
    units of log 2, the maximum n of y and the sum q of 2^(y - n) of each teacher; the dots d = sum 2^(y - n) (x - m).
    The loss is made of what is left when M, the maximum over all chunks, is taken off x:  log sum z exp(a (m - M))
    of the log-sum, and  sum p (x - M) = sum over chunks of 2^(n - u) (d + (m - M) q).
    """
    ROWS: tl.constexpr = IMAGES * S_PAD
    o_row = tl.arange(0, ROWS)
    o_image = (program * IMAGES + o_row // S_PAD).to(tl.int64)  # [ROWS]
    o_student = o_row % S_PAD
    m_row = (o_image < B) & (o_student < S)
    m_taken = m_row
    b_weight = tl.full([ROWS], 1.0, tl.float32)
    if HAS_WEIGHT:
        b_weight = tl.load(p_weight + o_image, mask=m_row, other=0.0)
        m_taken = m_row & (b_weight != 0)  # of the others there are no records
    record = 2 * S + 2 * T + T * S
    p_rows = p_records + (o_image * chunks * record)[:, None]  # [ROWS, 1]
    o_slot = tl.arange(0, SLOTS)
    a2 = student_scale * LOG2E

    b_max = tl.full([ROWS], float("-inf"), tl.float32)
    b_sum = tl.zeros([ROWS], tl.float32)
    for i in range(0, chunks, SLOTS):
        o_record = (i + o_slot)[None, :] * record
        m = m_taken[:, None] & (i + o_slot < chunks)[None, :]  # [ROWS, SLOTS]
        p = p_rows + o_record + o_student[:, None]
        b_m = tl.load(p, mask=m, other=float("-inf"))
        b_z = tl.load(p + S, mask=m, other=0.0)
        b_new = tl.maximum(b_max, tl.max(b_m, 1))
        b_shift = finite_or_zero(b_new)
        b_sum = b_sum * tl.exp2((b_max - b_shift) * a2) + tl.sum(b_z * tl.exp2((b_m - b_shift[:, None]) * a2), 1)
        b_max = b_new
    b_max = finite_or_zero(b_max)
    b_lse = tl.log2(b_sum) * LN2  # less a M
    p_lse = p_student_lse + o_student * B.to(tl.int64) + o_image
    tl.store(p_lse, tl.where(m_taken, student_scale * b_max + b_lse, 0.0), mask=m_row)

    b_loss = tl.zeros([ROWS], tl.float32)
    for t in tl.static_range(T):
        b_n_max = tl.full([ROWS], float("-inf"), tl.float32)
        b_q_sum = tl.zeros([ROWS], tl.float32)
        for i in range(0, chunks, SLOTS):
            o_record = (i + o_slot)[None, :] * record
            m = m_taken[:, None] & (i + o_slot < chunks)[None, :]
            p = p_rows + o_record + 2 * S + t
            b_n = tl.load(p, mask=m, other=float("-inf"))
            b_q = tl.load(p + T, mask=m, other=0.0)
            b_new = tl.maximum(b_n_max, tl.max(b_n, 1))
            b_shift = finite_or_zero(b_new)
            b_q_sum = b_q_sum * tl.exp2(b_n_max - b_shift) + tl.sum(b_q * tl.exp2(b_n - b_shift[:, None]), 1)
            b_n_max = b_new
        b_lse_t = finite_or_zero(b_n_max) + tl.log2(b_q_sum)
        p_lse = p_teacher_lse + t * B.to(tl.int64) + o_image
        tl.store(p_lse, tl.where(m_taken, b_lse_t * LN2, 0.0), mask=m_row & (o_student == 0))
        if HAS_ROW_POTENTIAL:
            b_u = tl.load(p_row_potential + t * B.to(tl.int64) + o_image, mask=m_taken, other=0.0) * LOG2E
            b_mass = tl.exp2(b_lse_t - b_u)
        else:
            b_u = b_lse_t
            b_mass = 1.0

        b_dot = tl.zeros([ROWS], tl.float32)
        for i in range(0, chunks, SLOTS):
            o_record = (i + o_slot)[None, :] * record
            m = m_taken[:, None] & (i + o_slot < chunks)[None, :]
            p = p_rows + o_record
            b_m = tl.load(p + o_student[:, None], mask=m, other=0.0)
            b_n = tl.load(p + 2 * S + t, mask=m, other=float("-inf"))
            b_q = tl.load(p + 2 * S + T + t, mask=m, other=0.0)
            b_d = tl.load(p + 2 * S + 2 * T + t * S + o_student[:, None], mask=m, other=0.0)
            b_d = tl.exp2(b_n - b_u[:, None]) * (b_d + (finite_or_zero(b_m) - b_max[:, None]) * b_q)
            b_dot += tl.sum(tl.where(m, b_d, 0.0), 1)
        b_pair = b_mass * b_lse - student_scale * b_dot
        if SKIP_SAME_VIEW:
            b_pair = tl.where(o_student == t, 0.0, b_pair)
        b_loss += b_pair
    b_loss = tl.where(m_taken, b_loss * b_weight, 0.0)
    o_loss = program * IMAGES + tl.arange(0, IMAGES)
    tl.store(p_loss + o_loss, tl.sum(tl.reshape(b_loss, [IMAGES, S_PAD]), 1), mask=o_loss < B)


@triton.jit
def _add_groups(p_group_sums, p_column_sum, block, K, groups, COLUMNS: tl.constexpr):
    """column_sum of COLUMNS columns: the sums of all groups, eight at a time."""
    o_k = block * COLUMNS + tl.arange(0, COLUMNS)
    o_group = tl.arange(0, 8)
    b_sum = tl.zeros([COLUMNS], tl.float32)
    for i in range(0, groups, 8):
        p = p_group_sums + (i + o_group)[:, None].to(tl.int64) * K + o_k[None, :]
        m = (i + o_group < groups)[:, None] & (o_k < K)[None, :]
        b_sum += tl.sum(tl.load(p, mask=m, other=0.0), 0)
    tl.store(p_column_sum + o_k, b_sum, mask=o_k < K)
