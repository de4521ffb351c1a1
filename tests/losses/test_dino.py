"""DINOLoss against the real lightly loss and the formulas of the paper: values, gradients, the centre."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from harness import BACKENDS, serving
from peers import DTYPES, assert_equals_published, logits, soft_target_terms

from fastssl.losses import DINOLoss

lightly_loss = pytest.importorskip("lightly.loss")

# lightly rounds temperatures to float32: these are exact there.
TEACHER, STUDENT = 0.0625, 0.125
SHAPES = [(2, 2, 1, 1), (1, 2, 3, 2), (2, 10, 5, 130), (2, 3, 4, 33), (3, 2, 2, 1000), (2, 12, 1, 257)]  # T, S, B, K


def pair(k, **arguments):
    """Ours and lightly's, with the same centre that is not zero."""
    center = 0.3 * torch.randn(1, 1, k, generator=torch.Generator().manual_seed(7))
    arguments = {"teacher_temp": TEACHER, "warmup_teacher_temp": TEACHER, "student_temp": STUDENT, **arguments}
    losses = DINOLoss(k, **arguments), lightly_loss.DINOLoss(k, **arguments)
    for loss in losses:
        loss.load_state_dict({"center": center})
    return losses


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("t", "s", "b", "k"), SHAPES)
def test_equals_lightly(backend, device, dtype, t, s, b, k):
    with serving(backend, device, dtype, "soft_target_cross_entropy"):
        teacher, student = logits(t, b, k, dtype=dtype).to(device), logits(s, b, k, dtype=dtype, seed=1).to(device)
        ours, theirs = (loss.to(device) for loss in pair(k))

        def published(*views):
            theirs.load_state_dict(ours.state_dict())
            return theirs.to(views[0].dtype)(list(teacher.to(views[0].dtype)), list(views))

        def mine(*views):
            state = {name: value.clone() for name, value in ours.state_dict().items()}
            loss = ours(list(teacher), list(views))
            ours.load_state_dict(state)
            return loss

        value_terms, gradient_terms = soft_target_terms(
            student,
            (teacher.double() - ours.center) / TEACHER,
            student_temperature=STUDENT,
            weight=1 / (b * (t * s - min(t, s))),
        )
        assert_equals_published(mine, published, list(student), value_terms=value_terms, gradient_terms=gradient_terms)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stacked_tensor_is_a_list_of_views(dtype):
    teacher, student = logits(2, 3, 17, dtype=dtype), logits(4, 3, 17, dtype=dtype, seed=1)
    stacked, listed = DINOLoss(17), DINOLoss(17)
    assert torch.equal(stacked(teacher, student), listed(list(teacher), tuple(student)))
    assert torch.equal(stacked.center, listed.center)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_centre_follows_lightlys_over_steps(dtype):
    eps = torch.finfo(dtype).eps
    ours, theirs = (loss.to(dtype) for loss in pair(50, center_momentum=0.75))
    for step in range(6):
        teacher = list(logits(2, 3, 50, dtype=dtype, seed=step) + step)
        student = list(logits(5, 3, 50, dtype=dtype, seed=100 + step))
        mine, published = ours(teacher, student, epoch=step), theirs(teacher, student, epoch=step)
        torch.testing.assert_close(mine, published, rtol=64 * eps, atol=0)
        torch.testing.assert_close(ours.center, theirs.center, rtol=16 * eps, atol=16 * eps)
    assert ours.center.dtype == dtype and ours.center.mean() > 2  # it has moved a long way


def test_a_call_uses_the_centre_and_then_moves_it_also_in_eval_mode():
    loss = DINOLoss(9, teacher_temp=TEACHER, center_momentum=0.5).eval()
    teacher, student = logits(2, 4, 9), logits(2, 4, 9, seed=1)
    with torch.no_grad():
        uncentred = F.softmax(teacher / TEACHER, dim=-1)
        expected = -(uncentred * F.log_softmax(student.flip(0) / 0.1, dim=-1)).sum(-1).mean()
        torch.testing.assert_close(loss(teacher, student), expected)
        torch.testing.assert_close(loss.center, 0.5 * teacher.mean((0, 1), keepdim=True))
    before = loss.center.clone()
    loss.update_center(teacher)
    torch.testing.assert_close(loss.center, 0.5 * before + 0.5 * teacher.mean((0, 1), keepdim=True))


def test_the_state_dict_is_lightlys():
    ours, theirs = pair(6)
    assert {name: value.shape for name, value in ours.state_dict().items()} == {"center": (1, 1, 6)}
    fresh = lightly_loss.DINOLoss(6)
    fresh.load_state_dict(ours.state_dict())
    assert torch.equal(fresh.center, theirs.center)


def test_the_teachers_temperature_follows_lightlys_schedule():
    arguments = {"warmup_teacher_temp": 0.5, "teacher_temp": 0.125, "warmup_teacher_temp_epochs": 4}
    teacher, student = logits(2, 2, 5), logits(2, 2, 5, seed=1)
    for call in ({"epoch": epoch} for epoch in range(6)):
        ours, theirs = pair(5, **arguments)
        torch.testing.assert_close(ours(teacher, student, **call), theirs(list(teacher), list(student), **call))
    for call in ({"teacher_temp": 0.25}, {"teacher_temp": 0.25, "epoch": 0}):
        ours, theirs = pair(5, **arguments)
        torch.testing.assert_close(ours(teacher, student, **call), theirs(list(teacher), list(student), **call))


@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_logits_at_low_temperature_are_finite(dtype):
    teacher, student = (
        logits(2, 4, 200, dtype=dtype, std=10.0),
        logits(4, 4, 200, dtype=dtype, seed=1, std=10.0).requires_grad_(),
    )
    loss = DINOLoss(200, teacher_temp=0.04)
    value = loss(teacher, student)
    (gradient,) = torch.autograd.grad(value, student)
    truth = lightly_loss.DINOLoss(200, warmup_teacher_temp=0.04, teacher_temp=0.04)(
        list(teacher.double()), list(student.double())
    )
    torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=0)
    assert gradient.isfinite().all() and gradient.abs().max() > 0


@pytest.mark.parametrize(("local", "terms"), [(0, 2), (6, 14), (8, 18)])
def test_the_mean_is_over_all_pairs_of_different_views(local, terms):
    """The lectures' multi-crop: two global views for the teacher, those and local ones for the student."""
    b, k = 3, 11
    teacher, student = logits(2, b, k), logits(2 + local, b, k, seed=1)
    single = [
        -(F.softmax(teacher[t] / TEACHER, dim=-1) * F.log_softmax(student[s] / STUDENT, dim=-1)).sum(-1).mean()
        for t in range(2)
        for s in range(2 + local)
        if s != t
    ]
    assert len(single) == terms
    loss = DINOLoss(k, teacher_temp=TEACHER, student_temp=STUDENT)(teacher, student)
    torch.testing.assert_close(loss, torch.stack(single).mean())


def test_a_constant_teacher_becomes_uniform_once_the_centre_has_caught_up():
    """The lectures' collapse: loss log K, and no gradient when the student's logits are equal too."""
    k, b = 128, 5
    constant = (logits(k) * 16).round().div(16).expand(2, b, k)  # exact in float32, also over the temperature
    loss = DINOLoss(k, teacher_temp=0.03125, center_momentum=0.0)
    student = torch.full((4, b, k), 0.7, requires_grad=True)
    loss(constant, student)
    assert torch.equal(loss.center.flatten(), constant[0, 0])
    value = loss(constant, student)
    (gradient,) = torch.autograd.grad(value, student)
    assert value.item() == pytest.approx(math.log(k), rel=1e-6)
    summand = 2 / k / (0.1 * b * 6)  # two teacher views' share, and the softmax against them
    assert gradient.abs().max() <= 2 * summand * (1 + math.log(k)) * 8 * torch.finfo(torch.float32).eps

    anything = logits(4, b, k, seed=3).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(constant, anything), anything)
    softmax = F.softmax(anything.detach() / 0.1, dim=-1)  # pulled towards uniform: softmax minus 1 / K
    paired = torch.tensor([1.0, 1.0, 2.0, 2.0])[:, None, None]  # teacher views other than the student's own
    torch.testing.assert_close(gradient, paired * (softmax - 1 / k) / (0.1 * b * 6), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_changes_neither_value_nor_gradient(dtype):
    teacher, leaf = logits(2, 3, 40, dtype=dtype), logits(3, 3, 40, dtype=dtype, seed=1).requires_grad_()
    results = []
    for inplace in (False, True):
        loss = DINOLoss(40, inplace=inplace)
        student = leaf * 1.0
        value = loss(teacher, list(student))
        results.append((value, torch.autograd.grad(3 * value, leaf)[0], loss.center))
        assert torch.equal(student, leaf) != inplace  # the gradient has taken their place
    for plain, overwritten in zip(*results, strict=True):
        assert torch.equal(plain, overwritten)


def test_compiles_without_a_graph_break_with_the_centre():
    teacher, student = logits(2, 3, 21), logits(4, 3, 21, seed=1).requires_grad_()
    eager, compiled = DINOLoss(21), torch.compile(DINOLoss(21), fullgraph=True, backend="aot_eager")
    for _ in range(2):
        expected, value = eager(list(teacher), list(student)), compiled(list(teacher), list(student))
        torch.testing.assert_close(value, expected)
        gradients = (torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (value, expected))
        torch.testing.assert_close(*gradients)
    torch.testing.assert_close(compiled.center, eager.center)
    assert eager.center.abs().max() > 0


def test_no_gradient_flows_into_the_teacher():
    teacher, student = logits(2, 3, 4).requires_grad_(), logits(2, 3, 4, seed=1).requires_grad_()
    loss = DINOLoss(4)
    (gradient,) = torch.autograd.grad(loss(teacher, student), teacher, allow_unused=True)
    assert gradient is None
    assert not loss.center.requires_grad


VIEWS = [torch.zeros(3, 8), torch.zeros(3, 8)]


@pytest.mark.parametrize(
    ("teacher", "student", "call", "error", "message"),
    [
        (None, VIEWS, {}, TypeError, r"teacher_out must be a list of tensors \[B, K\] or .*, got NoneType"),
        ([], VIEWS, {}, ValueError, "teacher_out must have at least one view, got none"),
        (VIEWS, [], {}, ValueError, "student_out must have at least one view, got none"),
        (VIEWS, [torch.zeros(3, 8), 1.0], {}, TypeError, r"student_out\[1\] must be a tensor of shape \[B, K\]"),
        (torch.zeros(3, 8), VIEWS, {}, ValueError, r"teacher_out must have shape \[V, B, K\].*got \(3, 8\)"),
        (VIEWS, [torch.zeros(3, 8), torch.zeros(4, 8)], {}, ValueError, r"same shape, got \(3, 8\) and \(4, 8\)"),
        (VIEWS, [torch.zeros(4, 8)] * 2, {}, ValueError, r"same shape, got \(3, 8\) and \(4, 8\)"),
        ([torch.zeros(3, 9)] * 2, [torch.zeros(3, 9)] * 2, {}, ValueError, r"8 columns.*got shape \(3, 9\)"),
        (VIEWS, [torch.zeros(3, 8).long()], {}, TypeError, r"student_out\[0\] must have one of the dtypes"),
        (VIEWS[:1], VIEWS[:1], {}, ValueError, "at least one pair of different views"),
        (VIEWS, VIEWS, {"teacher_temp": 0.0}, ValueError, "teacher_temp must be finite and above 0, got 0.0"),
        (VIEWS, VIEWS, {"epoch": 1.5}, TypeError, "epoch must be an int, got float"),
        (VIEWS, VIEWS, {"epoch": -1}, ValueError, "epoch must be at least 0, got -1"),
    ],
)
def test_bad_input_is_named(teacher, student, call, error, message):
    loss = DINOLoss(8)
    with pytest.raises(error, match=message):
        loss(teacher, student, **call)
    assert torch.equal(loss.center, torch.zeros(1, 1, 8))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"output_dim": 0}, ValueError, "number of prototypes must be at least 1, got 0"),
        ({"output_dim": 8.0}, TypeError, "number of prototypes must be an int, got float"),
        ({"teacher_temp": -1}, ValueError, "teacher_temp must be finite and above 0, got -1"),
        ({"student_temp": float("nan")}, ValueError, "student_temp must be finite and above 0, got nan"),
        ({"warmup_teacher_temp": "a"}, TypeError, "warmup_teacher_temp must be a number, got str"),
        ({"warmup_teacher_temp_epochs": -1}, ValueError, "warmup_teacher_temp_epochs must be at least 0, got -1"),
        ({"center_momentum": 1.1}, ValueError, "center_momentum must be from 0 to 1, got 1.1"),
        ({"center_momentum": None}, TypeError, "center_momentum must be a number, got NoneType"),
        ({"center_mode": "median"}, ValueError, "center_mode must be one of 'mean', got 'median'"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=f"DINOLoss: .*{message}"):
        DINOLoss(**arguments)
