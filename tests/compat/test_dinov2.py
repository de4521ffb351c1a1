"""fastssl.compat.dinov2 against the published formulas, written plainly, and in the order of DINOv2's training step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from harness import BACKENDS, serving
from peers import DTYPES, assert_equals_published, logits, soft_target_terms

from fastssl.compat.dinov2 import DINOLoss, KoLeoLoss, iBOTPatchLoss
from fastssl.compat.targets import TeacherProbabilities

TEACHER, STUDENT = 0.07, 0.1


def cross_entropy(target, student):
    return -(target * F.log_softmax(student / STUDENT, dim=-1)).sum(-1)


def sinkhorn(x, temperature=TEACHER, iterations=3):
    q = torch.exp(x / temperature).T
    q = q / q.sum()
    k, b = q.shape
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / k
        q = q / q.sum(0, keepdim=True) / b
    return (q * b).T


def class_token_step(criterion, teacher, student_local, student_global, centering):
    """The lines of the published training step about class tokens; two global crops, in reverse for the teacher."""
    if centering == "centering":
        targets = criterion.softmax_center_teacher(teacher, teacher_temp=TEACHER).view(2, -1, *teacher.shape[1:])
        criterion.update_center(teacher)
    else:
        targets = criterion.sinkhorn_knopp_teacher(teacher, teacher_temp=TEACHER).view(2, -1, *teacher.shape[1:])
    crops = len(student_local) // (len(teacher) // 2)
    terms = 2 + 2 * crops
    local_loss = (
        criterion(
            student_output_list=student_local.chunk(crops),
            teacher_out_softmaxed_centered_list=targets,
        )
        / terms
    )
    global_loss = (
        criterion(
            student_output_list=[student_global],
            teacher_out_softmaxed_centered_list=[targets.flatten(0, 1)],
        )
        * 2
        / terms
    )
    return local_loss + global_loss


class Published:
    """The same interface on tensors of probabilities."""

    def __init__(self, center):
        self.center = center

    def softmax_center_teacher(self, x, teacher_temp):
        return F.softmax((x - self.center) / teacher_temp, dim=-1)

    def sinkhorn_knopp_teacher(self, x, teacher_temp):
        return sinkhorn(x, teacher_temp)

    def update_center(self, x):
        self.center = 0.9 * self.center + 0.1 * x.mean(0, keepdim=True)

    def __call__(self, student_output_list, teacher_out_softmaxed_centered_list):
        return sum(cross_entropy(t, s).mean() for s in student_output_list for t in teacher_out_softmaxed_centered_list)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("centering", ["centering", "sinkhorn_knopp"])
@pytest.mark.parametrize(("b", "k", "crops"), [(1, 1, 1), (3, 33, 4), (5, 130, 8)])
def test_the_training_step_on_class_tokens(backend, device, dtype, centering, b, k, crops):
    with serving(backend, device, dtype, "soft_target_cross_entropy"):
        teacher = torch.tanh(logits(2 * b, k)).to(device, dtype)
        students = (logits(crops * b, k, dtype=dtype, seed=1), logits(2 * b, k, dtype=dtype, seed=2))
        students = [x.to(device) for x in students]
        center = 0.3 * logits(1, k, seed=7).to(device)
        ours = DINOLoss(k, STUDENT).to(device)
        ours.center.copy_(center)

        def published(local, both):
            wide = local.dtype
            return class_token_step(Published(center.to(wide)), teacher.to(wide), local, both, centering)

        y = teacher.double()
        exponent = (y - center) / TEACHER if centering == "centering" else sinkhorn(y).log()
        values, gradients = zip(
            *(
                soft_target_terms(
                    student.view(-1, b, k),
                    exponent.view(-1, b, k),
                    student_temperature=STUDENT,
                    skip_same_view=False,
                    weight=8 / b,
                )
                for student in students
            ),
            strict=True,
        )
        assert_equals_published(
            lambda local, both: class_token_step(ours, teacher, local, both, centering),
            published,
            students,
            value_terms=sum(values),
            gradient_terms=[torch.stack(g).view(-1, k) for g in gradients],
        )
        if centering == "centering":
            torch.testing.assert_close(ours.center, 0.9 * center + 0.1 * teacher.float().mean(0, keepdim=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("centering", ["centering", "sinkhorn_knopp"])
@pytest.mark.parametrize("inplace", [False, True])
def test_the_training_step_on_masked_tokens(dtype, centering, inplace):
    b, tokens, k = 4, 9, 40
    masks = logits(b, tokens, seed=3) > 0.5
    masks[0] = False
    n = int(masks.sum())
    weight = (1 / masks.sum(-1).clamp(min=1.0)).unsqueeze(-1).expand_as(masks)[masks]
    teacher = torch.tanh(logits(n, k)).to(dtype)
    center = 0.2 * logits(1, 1, k, seed=7)
    criterion = iBOTPatchLoss(k, STUDENT, inplace=inplace)
    criterion.center.copy_(center)

    def published(x):
        y = teacher.to(x.dtype)
        target = F.softmax((y - center[0].to(x.dtype)) / TEACHER, dim=-1) if centering == "centering" else sinkhorn(y)
        return (cross_entropy(target, x) * weight).sum() / b

    def ours(x):
        if centering == "centering":
            after_head = teacher.unsqueeze(0)
            target = criterion.softmax_center_teacher(after_head[:, :n], teacher_temp=TEACHER).squeeze(0)
            criterion.update_center(after_head[:n])
        else:
            target = criterion.sinkhorn_knopp_teacher(
                teacher, teacher_temp=TEACHER, n_masked_patches_tensor=torch.tensor([n])
            )
        return criterion.forward_masked(x * 1.0, target, masks, n_masked_patches=n, masks_weight=weight)

    student = logits(n, k, dtype=dtype, seed=1)
    y = teacher.double()
    values, (gradients,) = soft_target_terms(
        student[None],
        ((y - center[0]) / TEACHER if centering == "centering" else sinkhorn(y).log())[None],
        student_temperature=STUDENT,
        skip_same_view=False,
        weight=8 * weight / b,
    )
    assert_equals_published(ours, published, [student], value_terms=values, gradient_terms=[gradients])
    if centering == "centering":
        torch.testing.assert_close(criterion.center, 0.9 * center + 0.1 * teacher.float().mean(0))


@pytest.mark.parametrize("kind", ["uncomputed", "tensor"])
def test_every_form_of_the_patch_loss_is_the_same(kind):
    b, tokens, k = 3, 6, 20
    masks = logits(b, tokens, seed=3) > 0
    teacher, student = logits(b, tokens, k), logits(b, tokens, k, seed=1)
    criterion = iBOTPatchLoss(k)
    target = criterion.softmax_center_teacher(teacher, 0.04)
    expected = torch.stack(
        [cross_entropy(target[i].probabilities()[m], student[i][m]).mean() for i, m in enumerate(masks)]
    ).mean()
    of_masked = TeacherProbabilities(teacher[masks], 0.04, target.column_potential)
    if kind == "tensor":
        target, of_masked = target.probabilities(), of_masked.probabilities()
    n = int(masks.sum())
    padding = torch.full((2, k), float("nan"))
    torch.testing.assert_close(criterion(student, target, masks), expected)
    torch.testing.assert_close(criterion(student, target, masks.float()), expected)
    torch.testing.assert_close(criterion.forward_masked(student[masks], of_masked, masks), expected)
    padded = torch.cat((student[masks], padding))
    if kind == "tensor":
        of_masked = torch.cat((of_masked, padding))
    weight = (1 / masks.sum(-1)).unsqueeze(-1).expand_as(masks)[masks]
    torch.testing.assert_close(criterion.forward_masked(padded, of_masked, masks, n_masked_patches=n), expected)
    torch.testing.assert_close(criterion.forward_masked(padded, of_masked, masks, n, weight), expected)


def test_tensors_of_probabilities_need_not_sum_to_one():
    student = logits(2, 3, 10, seed=1)
    targets = [0.5 * torch.softmax(logits(3, 10), -1), torch.eye(10)[:3]]
    expected = sum(cross_entropy(t, s).mean() for s in student for t in targets)
    torch.testing.assert_close(DINOLoss(10)(list(student), targets), expected)


def test_assignments_of_their_own_for_each_view():
    teacher, student = torch.tanh(logits(2, 6, 10)), logits(3, 6, 10, seed=1)
    criterion = DINOLoss(10)
    targets = [criterion.sinkhorn_knopp_teacher(view, TEACHER) for view in teacher]
    expected = sum(cross_entropy(sinkhorn(t), s).mean() for s in student for t in teacher)
    torch.testing.assert_close(criterion(list(student), targets), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sinkhorn_is_finite_where_the_published_loop_overflows(dtype):
    teacher, student = logits(8, 50, dtype=dtype, std=10.0), logits(8, 50, dtype=dtype, seed=1, std=10.0)
    student.requires_grad_()
    assert not sinkhorn(teacher.float(), 0.04).isfinite().all()
    for criterion in (DINOLoss(50), iBOTPatchLoss(50)):
        target = criterion.sinkhorn_knopp_teacher(teacher, 0.04)
        torch.testing.assert_close(target.sum(-1), torch.ones(8))
    loss = DINOLoss(50)([student], [target])
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite() and gradient.isfinite().all() and gradient.abs().max() > 0


def test_the_state_dicts_are_the_published_ones():
    assert {name: x.shape for name, x in DINOLoss(6).state_dict().items()} == {"center": (1, 6)}
    assert {name: x.shape for name, x in iBOTPatchLoss(6).state_dict().items()} == {"center": (1, 1, 6)}


def test_the_teachers_probabilities_keep_the_centre_they_were_made_with():
    criterion, teacher = DINOLoss(6, center_momentum=0.0), logits(4, 6)
    target = criterion.softmax_center_teacher(teacher, 0.1)
    before = target.probabilities()
    criterion.update_center(teacher)
    assert torch.equal(target.probabilities(), before)
    assert not torch.equal(criterion.softmax_center_teacher(teacher, 0.1).probabilities(), before)


def test_compiles_without_a_graph_break():
    teacher, local, both = logits(6, 12), logits(12, 12, seed=1), logits(6, 12, seed=2)
    for centering in ("centering", "sinkhorn_knopp"):
        eager, criterion = DINOLoss(12), DINOLoss(12)
        compiled = torch.compile(class_token_step, fullgraph=True, backend="aot_eager")
        expected = class_token_step(eager, teacher, local, both, centering)
        torch.testing.assert_close(compiled(criterion, teacher, local, both, centering), expected)
        torch.testing.assert_close(criterion.center, eager.center)


def test_koleo_is_the_published_one():
    x = logits(9, 6)
    unit = F.normalize(x, eps=1e-8)
    nearest = (unit @ unit.T).fill_diagonal_(-1).argmax(1)
    distance = F.pairwise_distance(unit, unit[nearest], 2, eps=1e-8)
    torch.testing.assert_close(KoLeoLoss()(x), -torch.log(distance + 1e-8).mean())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: DINOLoss(8)([], [torch.ones(2, 8)]), ValueError, "at least one view of student and teacher, got 0"),
        (lambda: DINOLoss(8).softmax_center_teacher(torch.ones(2, 9), 0.1), ValueError, "must have 8 columns"),
        (lambda: iBOTPatchLoss(8).softmax_center_teacher([1.0], 0.1), TypeError, "teacher_output must be a dense"),
        (lambda: DINOLoss(8).softmax_center_teacher(torch.ones(2, 8), 0), ValueError, "teacher_temp must be finite"),
        (lambda: DINOLoss(8).sinkhorn_knopp_teacher(torch.ones(2, 8), 0.1, 0), ValueError, "iterations must be"),
        (lambda: DINOLoss(0), ValueError, "DINOLoss: the number of prototypes must be at least 1, got 0"),
        (lambda: iBOTPatchLoss(8, student_temp=-1), ValueError, "iBOTPatchLoss: student_temp must be finite"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
