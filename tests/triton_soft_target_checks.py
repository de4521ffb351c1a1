"""Statements about the soft-target Triton kernels; run by ``test_triton_interpreter.py`` under TRITON_INTERPRET=1.

Truth is ``reference.py`` in float64, and the error allowed is relative to what the same reference makes in float32
(``soft_target_problems.judge``). Scratch and outputs are filled with NaN before the kernels run, inputs lie inside NaN,
and so do the logits of images that are left out: a missing write or a stray read shows.
"""

from __future__ import annotations

import os

import pytest
import torch

assert os.environ.get("TRITON_INTERPRET") == "1", "run tests/test_triton_interpreter.py"

from harness import poisoned_outputs  # noqa: E402

from fastssl.benchmarks.soft_target_problems import LAYOUTS, Problem, judge, solve  # noqa: E402
from fastssl.kernels.soft_target.config import TILES  # noqa: E402
from fastssl.kernels.tiles import Tile  # noqa: E402
from fastssl.ops.soft_target import reference, triton, triton_views  # noqa: E402

# the interpreter computes in NumPy, which warns where the kernels rely on IEEE rules: log(0), inf - inf
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Small tiles, so that small problems have many chunks; of different widths, so that none fits by accident.
SMALL_TILES = {"statistics": Tile(1, 32, 0, 1, 2), "gradient": Tile(1, 64, 0, 4, 2)}


@pytest.fixture(autouse=True)
def small_tiles_and_poisoned_memory():
    with poisoned_outputs(), TILES.override(**SMALL_TILES):
        yield


def assert_accurate(problem):
    ratios = judge(problem, solve(problem, triton))
    assert all(ratio <= 1 for ratio in ratios.values()), ratios


@pytest.mark.parametrize(
    "s, t, b, k, dtype",
    [
        *((5, 2, 2, 100, dtype) for dtype in DTYPES),
        (4, 2, 3, 128, torch.float32),
        (2, 1, 4, 33, torch.bfloat16),
        (2, 3, 2, 65, torch.float32),
        (1, 1, 7, 31, torch.float16),
    ],
)
def test_sizes_that_fit_the_tiles_and_sizes_that_do_not(s, t, b, k, dtype):
    assert_accurate(Problem(s=s, t=t, b=b, k=k, dtype=dtype, skip_same_view=s > 1))


@pytest.mark.parametrize("k", [1, 2, 32])
def test_few_columns(k):
    # K = 1: softmax of one number; the loss is exactly 0, and so is the gradient
    problem = Problem(k=k, b=2, skip_same_view=False)
    loss, *_, gradient = results = solve(problem, triton)
    if k == 1:
        assert not loss.any() and gradient.abs().max() <= 1e-5
    else:
        ratios = judge(problem, results)
        assert all(ratio <= 1 for ratio in ratios.values()), ratios


@pytest.mark.parametrize("potential", [None, "shared", "per teacher"])
@pytest.mark.parametrize("row_potential", [False, True])
@pytest.mark.parametrize("weight", [False, True])
def test_every_combination_of_what_may_be_given(potential, row_potential, weight):
    skip_same_view = row_potential != weight  # both with each of the others
    given = {"potential": potential, "row_potential": row_potential, "weight": weight}
    assert_accurate(Problem(s=2, b=2, k=40, skip_same_view=skip_same_view, **given))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_views_that_lie_anywhere(layout):
    dtypes = [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)]
    dtype, teacher_dtype = dtypes[LAYOUTS.index(layout) % 2]  # in turn
    assert_accurate(Problem(s=5, b=2, k=48, dtype=dtype, teacher_dtype=teacher_dtype, layout=layout, weight=True))


def test_more_views_than_one_launch_writes_into_the_table():
    assert_accurate(Problem(s=14, t=3, b=1, k=20, layout="apart"))
    assert_accurate(Problem(s=13, t=1, b=1, k=20, layout="uneven"))


def test_views_of_one_tensor_need_no_table_and_no_view_is_copied():
    def kind(layout):
        return triton_views.Views.of(Problem(s=5, layout=layout).student).table_kind

    from fastssl.kernels.soft_target import views

    assert kind("stack") == kind("chunks") == views.UNIFORM.value
    assert kind("uneven") == views.OFFSETS_AND_STRIDES.value
    stacks = Problem(s=5, layout="apart").student
    far = [stacks[i] for i in (0, 3, 1, 4, 2)]
    found = triton_views.Views.of(far)
    assert [found.base.data_ptr() + 4 * offset for offset in found.offsets] == [x.data_ptr() for x in far]


def test_only_rows_that_begin_and_end_at_16_bytes_are_called_aligned():
    logits = torch.zeros(2, 3, 64, dtype=torch.bfloat16)
    assert triton_views.Views.of([logits]).aligned
    assert triton_views.Views.of([logits[:, :, :56]]).aligned
    for odd in (logits[:, :, 1:57], logits[:, :, :60], torch.zeros(2, 3, 68, dtype=torch.bfloat16)[:, :, :64]):
        assert not triton_views.Views.of([odd]).aligned


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_chosen_by_weights_as_ibot_has_them(dtype):
    assert_accurate(Problem(s=1, t=1, b=11, k=70, dtype=dtype, weight=True, skip_same_view=False))


def test_many_groups_of_images_and_many_slots_of_records(monkeypatch):
    monkeypatch.setattr(triton, "PROGRAMS_PER_MULTIPROCESSOR", 60)
    monkeypatch.setattr(triton, "COMBINED_NUMBERS", 32)  # two of seven chunks at a time
    assert_accurate(Problem(s=3, b=10, k=200, layout="apart"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_place_the_gradients_stand_where_the_logits_stood_and_nowhere_else(layout):
    problem = Problem(s=4, k=70, dtype=torch.bfloat16, layout=layout, weight=True)
    inputs, teacher = problem.inputs(wide=True), [stack.clone() for stack in problem.teacher]
    results = solve(problem, triton, inplace=True)
    assert [a.data_ptr() for a in results[4:]] == [b.data_ptr() for b in problem.student]
    ratios = judge(problem, results, inputs)
    assert all(ratio <= 1 for ratio in ratios.values()), ratios
    if layout != "transposed":
        around = problem.student[0]._base
        assert around.isfinite().sum() == problem.student[0].numel() * (4 if layout == "chunks" else 1)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(teacher, problem.teacher, strict=True))


@pytest.mark.parametrize("offset, row_potential", [(1e4, False), (-1e4, True)])
def test_a_common_offset_of_the_students_logits_changes_nothing(offset, row_potential):
    assert_accurate(Problem(s=3, k=100, offset=offset, row_potential=row_potential))


def test_a_common_offset_costs_the_loss_no_accuracy():
    # 2^13, which float32 logits of this size bear without being rounded
    logits = (torch.randn(3, 2, 100) * 64).round() / 256
    losses = []
    for offset in (0.0, 8192.0):
        problem = Problem(s=3, b=2)
        problem.student = [logits + offset]
        losses.append(solve(problem, triton)[0])
    assert torch.allclose(*losses, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_spread_of_10_at_a_temperature_of_0_04(dtype):
    assert_accurate(Problem(s=2, k=70, spread=10.0, dtype=dtype))


def test_the_first_chunk_far_below_the_others_and_the_last_one_too():
    problem = Problem(s=3, k=100)
    for stack in (*problem.student, *problem.teacher):
        stack[..., :32] -= 1e5
        stack[..., 96:] -= 2e5
    assert_accurate(problem)


def test_prototypes_masked_by_minus_infinity_in_the_teacher():
    problem = Problem(s=3, k=100)
    problem.teacher[0][..., :40] = -torch.inf
    loss, _, teacher_lse, _, gradient = solve(problem, triton)
    inputs = problem.inputs(wide=True)
    inputs[1][0][..., :40] = -torch.inf
    truth = reference.soft_target_cross_entropy(*inputs, column_sum=True, **problem.rules)
    assert torch.allclose(loss.double(), truth[0], rtol=1e-5) and torch.allclose(
        teacher_lse.double(), truth[2], rtol=1e-5
    )
    assert gradient.isfinite().all()


@pytest.mark.parametrize("chunk", [0, 3])
def test_nan_reaches_its_image_and_no_other(chunk):
    problem = Problem(s=3, k=100)
    problem.student[0][2, 1, 32 * chunk + 2] = float("nan")
    problem.teacher[0][0, 0, 32 * chunk + 2] = float("nan")
    loss, student_lse, teacher_lse, column_sum, gradient = solve(problem, triton)
    assert loss.isnan().tolist() == [True, True, False]
    assert student_lse.isnan().nonzero().tolist() == [[2, 1]]
    assert teacher_lse.isnan().nonzero().tolist() == [[0, 0]]
    assert column_sum.isnan().nonzero().flatten().tolist() == [32 * chunk + 2]
    nan_rows = gradient.isnan().all(2)
    # teacher 0 is paired with students 1 and 2 of image 0
    assert nan_rows.nonzero().tolist() == [[1, 0], [2, 0], [2, 1]]
    assert gradient[~nan_rows].isfinite().all()


@pytest.mark.parametrize("factor", [2.0**16, 2.0**-16])
def test_float16_gradients_take_the_loss_scaler_before_they_are_rounded(factor):
    # 2^16 overflows float16 and 2^-16 vanishes in it; the gradient times either does not
    problem = Problem(dtype=torch.float16, k=70, s=2, spread=0.03)
    problem.d_loss *= factor / 64
    assert_accurate(problem)


def test_weights_may_be_negative_and_large():
    problem = Problem(weight=True, b=5, k=40)
    problem.weight_tensor[1], problem.weight_tensor[2] = -3.0, 1e6
    assert solve(problem, triton)[0].isfinite().all()
    problem.weight_tensor.clamp_(max=10)
    plain = Problem(b=5, k=40)
    plain.student, plain.teacher = problem.student, problem.teacher
    weighted, unweighted = solve(problem, triton)[0], solve(plain, triton)[0]
    taken = problem.weight_tensor != 0
    assert torch.allclose(weighted[taken], problem.weight_tensor[taken] * unweighted[taken], rtol=1e-6)


def test_all_images_left_out():
    problem = Problem(weight=True, b=1)
    loss, student_lse, teacher_lse, column_sum, gradient = solve(problem, triton)
    for zero in (loss, student_lse, teacher_lse, column_sum, gradient):
        assert not zero.any() and not zero.isnan().any()


def test_no_images():
    results = solve(Problem(b=0), triton)
    assert [tuple(x.shape) for x in results] == [(0,), (4, 0), (2, 0), (100,), (4, 0, 100)]
    assert not results[3].any()


def test_without_column_sums_none_come():
    problem = Problem()
    out = triton.soft_target_cross_entropy(*problem.inputs(), column_sum=False, **problem.rules)
    assert out[3].shape == (0,)
    assert torch.equal(out[0], solve(problem, triton)[0])


def test_the_step_is_both_operators():
    problem = Problem(layout="apart")
    loss, total, gradients = triton.soft_target_step(*problem.inputs(), factor=0.25, column_sum=True, **problem.rules)
    problem.d_loss.fill_(0.25)
    losses, _, _, column_sum, *expected = solve(problem, triton)
    assert torch.equal(loss, 0.25 * losses.sum()) and torch.equal(total, column_sum)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_input_same_bits_and_inputs_untouched(dtype):
    problem = Problem(s=3, k=70, dtype=dtype, layout="apart")
    before = [stack.clone() for stack in (*problem.student, *problem.teacher)]
    first, second = solve(problem, triton), solve(problem, triton)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, (*problem.student, *problem.teacher), strict=True))
