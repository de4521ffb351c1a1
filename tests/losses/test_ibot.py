"""IBOTPatchLoss against the real lightly loss and the formula of the paper."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from harness import BACKENDS, serving
from peers import DTYPES, assert_equals_published, logits, soft_target_terms

from fastssl.losses import IBOTPatchLoss

lightly_loss = pytest.importorskip("lightly.loss")

# lightly rounds temperatures to float32: these are exact there.
TEACHER, STUDENT = 0.0625, 0.125
SHAPES = [((1, 1, 1), 5), ((3, 2, 3), 1), ((4, 3, 2), 33), ((5, 4, 4), 130), ((2, 5, 1), 1000)]  # B, H, W; K


def mask_of(shape, seed=0):
    """Images with 1, 2 or 4 masked tokens, as lightly rounds the inverse number to float32; one of several has none."""
    b, h, w = shape
    order = torch.rand(b, h * w, generator=torch.Generator().manual_seed(seed)).argsort(1)
    count = 2 ** (torch.arange(b) % 3)
    if b > 1:
        count[1] = 0
    return (order < count[:, None]).view(shape)


def pair(k, **arguments):
    """Ours and lightly's, with the same centre that is not zero."""
    arguments = {"teacher_temp": TEACHER, "student_temp": STUDENT, **arguments}
    losses = IBOTPatchLoss(k, **arguments), lightly_loss.IBOTPatchLoss(k, **arguments)
    for loss in losses:
        loss.load_state_dict({"center.center": 0.3 * logits(1, k, seed=7)})
    return losses


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "k"), SHAPES)
def test_equals_lightly(backend, device, dtype, shape, k):
    with serving(backend, device, dtype, "soft_target_cross_entropy"):
        mask = mask_of(shape).to(device)
        m = int(mask.sum())
        teacher, student = logits(m, k, dtype=dtype).to(device), logits(m, k, dtype=dtype, seed=1).to(device)
        ours, theirs = (loss.to(device) for loss in pair(k))
        start = {name: value.clone() for name, value in ours.state_dict().items()}

        def mine(x):
            ours.load_state_dict(start)
            return ours(teacher, x, mask)

        def published(x):
            theirs.load_state_dict(start)
            return theirs.to(x.dtype)(teacher.to(x.dtype), x, mask)

        count = mask.flatten(1).sum(1, keepdim=True).clamp(min=1)
        weight = (1.0 / count / shape[0]).expand(-1, mask[0].numel())[mask.flatten(1)]
        value_terms, (gradient_terms,) = soft_target_terms(
            student[None],
            (teacher.double() - start["center.center"])[None] / TEACHER,
            student_temperature=STUDENT,
            skip_same_view=False,
            weight=weight,
        )
        assert_equals_published(mine, published, [student], value_terms=value_terms, gradient_terms=[gradient_terms])


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_tokens_with_a_mask_are_the_masked_tokens(dtype):
    shape, k = (4, 3, 5), 21
    mask = mask_of(shape)
    teacher = logits(4, 15, k, dtype=dtype)
    student = logits(4, 15, k, dtype=dtype, seed=1).requires_grad_()
    of_all, of_masked = IBOTPatchLoss(k), IBOTPatchLoss(k)
    flat = mask.flatten(1)
    results = []
    for loss, arguments in ((of_all, (teacher, student, flat)), (of_masked, (teacher[flat], student[flat], mask))):
        value = loss(*arguments)
        results.append((value, torch.autograd.grad(value, student)[0], loss.center.center))
    eps = torch.finfo(dtype).eps
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=4 * eps, atol=eps * 1e-3)
    assert results[0][1][~flat].abs().max() == 0


def test_the_mean_is_over_images_of_the_mean_over_their_masked_tokens():
    """Equation 2 of iBOT, and its authors' code: images without masked tokens count as 0."""
    k, mask = 8, torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 1]], dtype=torch.bool)[:, None]
    teacher, student = logits(3, 4, k, dtype=torch.float64), logits(3, 4, k, dtype=torch.float64, seed=1)
    token = -(F.softmax(teacher / TEACHER, dim=-1) * F.log_softmax(student / STUDENT, dim=-1)).sum(-1)
    flat = mask.flatten(1)
    images = [token[b][flat[b]].mean() if flat[b].any() else token.new_zeros(()) for b in range(3)]
    loss = IBOTPatchLoss(k, TEACHER, STUDENT)
    torch.testing.assert_close(loss(teacher[flat], student[flat], mask), torch.stack(images).mean())
    assert images[1] == 0 and len({float(image) for image in images}) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_centre_follows_lightlys_over_steps(dtype):
    eps = torch.finfo(dtype).eps
    ours, theirs = (loss.to(dtype) for loss in pair(40, center_momentum=0.75))
    for step in range(6):
        mask = mask_of((3 + step, 2, 3), seed=step)
        m = int(mask.sum())
        teacher, student = logits(m, 40, dtype=dtype, seed=step) + step, logits(m, 40, dtype=dtype, seed=100 + step)
        call = {"teacher_temp": TEACHER * (1 + step)}
        torch.testing.assert_close(
            ours(teacher, student, mask, **call), theirs(teacher, student, mask, **call), rtol=64 * eps, atol=0
        )
        torch.testing.assert_close(ours.center.center, theirs.center.center, rtol=16 * eps, atol=16 * eps)
    assert ours.center.center.mean() > 2


def test_the_state_dict_is_lightlys():
    ours, theirs = pair(6)
    assert {name: value.shape for name, value in ours.state_dict().items()} == {"center.center": (1, 6)}
    fresh = lightly_loss.IBOTPatchLoss(6)
    fresh.load_state_dict(ours.state_dict())
    assert torch.equal(fresh.center.value, theirs.center.value)


def test_without_masked_tokens_the_loss_is_zero_and_the_centre_stays():
    ours, _ = pair(6)
    before = ours.center.center.clone()
    student = torch.zeros(0, 6, requires_grad=True)
    loss = ours(torch.zeros(0, 6), student, torch.zeros(2, 3, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and student.grad.shape == (0, 6)
    assert torch.equal(ours.center.center, before)
    tokens = logits(2, 9, 6).requires_grad_()
    loss = ours(tokens.detach(), tokens * 1.0, torch.zeros(2, 3, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and tokens.grad.abs().max() == 0
    assert torch.equal(ours.center.center, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_logits_at_low_temperature_are_finite(dtype):
    mask = mask_of((4, 3, 3))
    m = int(mask.sum())
    teacher = logits(m, 200, dtype=dtype, std=10.0)
    student = logits(m, 200, dtype=dtype, seed=1, std=10.0).requires_grad_()
    value = IBOTPatchLoss(200)(teacher, student, mask)
    (gradient,) = torch.autograd.grad(value, student)
    truth = lightly_loss.IBOTPatchLoss(200)(teacher.double(), student.double(), mask)
    torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=0)
    assert gradient.isfinite().all() and gradient.abs().max() > 0


def test_a_constant_teacher_becomes_uniform_once_the_centre_has_caught_up():
    k, mask = 64, mask_of((4, 2, 2))
    m = int(mask.sum())
    constant = (logits(k) * 16).round().div(16).expand(m, k)  # exact in float32, also over the temperature
    loss = IBOTPatchLoss(k, teacher_temp=0.03125, center_momentum=0.0)
    student = torch.full((m, k), -3.0, requires_grad=True)
    loss(constant, student, mask)
    value = loss(constant, student, mask)
    (gradient,) = torch.autograd.grad(value, student)
    images = 3 / 4  # one of four has no masked token
    assert value.item() == pytest.approx(images * math.log(k), rel=1e-6)
    assert gradient.abs().max() <= 2 / k / (0.1 * 4) * (30 + math.log(k)) * 8 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_changes_neither_value_nor_gradient(dtype):
    mask = mask_of((4, 3, 2))
    m = int(mask.sum())
    teacher, leaf = logits(m, 40, dtype=dtype), logits(m, 40, dtype=dtype, seed=1).requires_grad_()
    results = []
    for inplace in (False, True):
        loss = IBOTPatchLoss(40, inplace=inplace)
        student = leaf * 1.0
        value = loss(teacher, student, mask)
        results.append((value, torch.autograd.grad(3 * value, leaf)[0], loss.center.center))
        assert torch.equal(student, leaf) != inplace  # the gradient has taken their place
    for plain, overwritten in zip(*results, strict=True):
        assert torch.equal(plain, overwritten)


@pytest.mark.parametrize("gathered", [True, False])
def test_compiles_without_a_graph_break_with_the_centre(gathered):
    mask = mask_of((4, 3, 3))
    shape = (int(mask.sum()), 21) if gathered else (4, 9, 21)
    teacher, student = logits(*shape), logits(*shape, seed=1).requires_grad_()
    eager, compiled = IBOTPatchLoss(21), torch.compile(IBOTPatchLoss(21), fullgraph=True, backend="aot_eager")
    for _ in range(2):
        expected, value = eager(teacher, student, mask), compiled(teacher, student, mask)
        torch.testing.assert_close(value, expected)
        gradients = (torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (value, expected))
        torch.testing.assert_close(*gradients)
    torch.testing.assert_close(compiled.center.center, eager.center.center)
    assert eager.center.center.abs().max() > 0


MASK = torch.tensor([[[True, False], [True, True]]])
TOKENS = torch.zeros(3, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, TOKENS, MASK), TypeError, "teacher_out must be a dense tensor with a floating dtype, got NoneType"),
        ((TOKENS, TOKENS.long(), MASK), TypeError, "student_out must be a dense tensor with a floating dtype"),
        ((torch.zeros(3, 9), TOKENS, MASK), ValueError, r"teacher_out must have 8 columns.*got shape \(3, 9\)"),
        ((TOKENS[:2], TOKENS, MASK), ValueError, r"same shape, got \(3, 8\) and \(2, 8\)"),
        ((TOKENS[:2], TOKENS[:2], MASK), ValueError, "a row per masked token, 3, got 2"),
        ((TOKENS, TOKENS, MASK.float()), TypeError, "mask must be a bool tensor"),
        ((TOKENS, TOKENS, MASK[0, 0]), ValueError, r"mask must have shape \[B, L\] or \[B, H, W\], got \(2,\)"),
        ((TOKENS[None], TOKENS[None], MASK), ValueError, r"student must have the mask's tokens, \[1, 4, K\]"),
        ((TOKENS, TOKENS, MASK, -1.0), ValueError, "teacher_temp must be finite and above 0, got -1.0"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    loss = IBOTPatchLoss(8)
    with pytest.raises(error, match=message):
        loss(*arguments)
    assert torch.equal(loss.center.center, torch.zeros(1, 8))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"output_dim": 0}, ValueError, "number of prototypes must be at least 1, got 0"),
        ({"teacher_temp": 0}, ValueError, "teacher_temp must be finite and above 0, got 0"),
        ({"student_temp": None}, TypeError, "student_temp must be a number, got NoneType"),
        ({"center_momentum": -0.5}, ValueError, "center_momentum must be from 0 to 1, got -0.5"),
        ({"center_mode": "max"}, ValueError, "center_mode must be one of 'mean', got 'max'"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=f"IBOTPatchLoss: .*{message}"):
        IBOTPatchLoss(**arguments)
