"""fastssl.compat.solo against the published formulas, written plainly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peers import DTYPES, assert_equals_published, logits, soft_target_terms

from fastssl.compat import solo


def cross_entropy(target, student, temperature=0.1):
    return -(target * F.log_softmax(student / temperature, dim=-1)).sum(-1).mean()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("views", "n", "k"), [(2, 1, 1), (2, 3, 33), (8, 5, 130)])
def test_dino(dtype, views, n, k):
    teacher, student = logits(2 * n, k, dtype=dtype), logits(views * n, k, dtype=dtype, seed=1)
    center = 0.3 * logits(1, k, seed=7)
    temperature = 0.05

    def published(x):
        target = F.softmax((teacher.to(x.dtype) - center.to(x.dtype)) / temperature, dim=-1).chunk(2)
        pairs = [(q, v) for iq, q in enumerate(target) for iv, v in enumerate(x.chunk(views)) if iv != iq]
        return sum(cross_entropy(q, v) for q, v in pairs) / len(pairs)

    def ours(x):
        criterion = solo.DINOLoss(k, temperature, temperature, 0, 10, num_large_crops=views)
        criterion.center.copy_(center)
        loss = criterion(x, teacher)
        mean = teacher.float().mean(0, keepdim=True)
        torch.testing.assert_close(criterion.center, 0.9 * center + 0.1 * mean)
        return loss

    values, gradients = soft_target_terms(
        student.view(views, n, k),
        ((teacher.double() - center) / temperature).view(2, n, k),
        student_temperature=0.1,
        weight=1 / (n * (2 * views - 2)),
    )
    gradients = torch.stack(gradients).view(-1, k)
    assert_equals_published(ours, published, [student], value_terms=values, gradient_terms=[gradients])


def test_dino_follows_the_epoch():
    criterion = solo.DINOLoss(6, 0.2, 0.1, 3, 5)
    published = np.concatenate((np.linspace(0.2, 0.1, 3), np.ones(2) * 0.1))
    np.testing.assert_allclose(criterion.teacher_temp_schedule, published, rtol=1e-12)
    student, teacher = logits(4, 6), logits(4, 6, seed=1)
    for epoch in range(5):
        criterion.epoch = epoch
        criterion.center.zero_()
        target = F.softmax(teacher / published[epoch], dim=-1).chunk(2)
        expected = (cross_entropy(target[0], student[2:]) + cross_entropy(target[1], student[:2])) / 2
        torch.testing.assert_close(criterion(student, teacher), expected)
    criterion.epoch = 5
    with pytest.raises(ValueError, match="epoch must be below num_epochs, 5, got 5"):
        criterion(student, teacher)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["uncomputed", "tensor"])
@pytest.mark.parametrize(("views", "large", "n", "k"), [(2, 2, 4, 9), (6, 2, 5, 70), (3, 1, 8, 20)])
def test_swav(dtype, kind, views, large, n, k):
    preds = torch.tanh(logits(views, n, k)).to(dtype)
    queue = torch.tanh(logits(large, 7, k, seed=3)).to(dtype)

    def codes(x):
        q = torch.exp(x / 0.05)
        for _ in range(3):
            q = q / q.sum(0, keepdim=True)
            q = q / q.sum(1, keepdim=True)
        return q[:n]

    samples = torch.cat((preds[:large], queue), 1)
    if kind == "tensor":
        assignments = [codes(x.double()) for x in samples]
    else:
        assignments = [solo.SinkhornKnopp()(x)[:n] for x in samples]

    def published(*x):
        target = [codes(y.to(x[0].dtype)) for y in samples]
        losses = [cross_entropy(a, x[v2]) for v1, a in enumerate(target) for v2 in range(views) if v2 != v1]
        return sum(losses) / len(losses)

    values, gradients = soft_target_terms(
        preds,
        torch.stack([codes(x.double()).log() for x in samples]),
        student_temperature=0.1,
        weight=8 / (n * large * (views - 1)),
    )
    assert_equals_published(
        lambda *x: solo.swav_loss_func(x, assignments),
        published,
        list(preds),
        value_terms=values,
        gradient_terms=gradients,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("simplified", [True, False])
def test_byol_and_simsiam(dtype, simplified):
    p, z = logits(5, 33, dtype=dtype), logits(5, 33, dtype=dtype, seed=1)
    length = p.double().norm(dim=1, keepdim=True)

    def cosine(x):
        y = z.to(x.dtype)
        if simplified:
            return F.cosine_similarity(x, y, dim=-1).mean()
        return (F.normalize(x, dim=-1) * F.normalize(y, dim=-1)).sum(1).mean()

    for ours, published, scale in (
        (solo.byol_loss_func, lambda x: 2 - 2 * cosine(x), 2.0),
        (solo.simsiam_loss_func, lambda x: -cosine(x), 1.0),
    ):
        assert_equals_published(
            lambda x, ours=ours: ours(x, z, simplified),
            published,
            [p],
            value_terms=2 * scale,
            gradient_terms=[scale * 2 / (5 * length)],
        )
        z_with_gradient = z.clone().requires_grad_()
        loss = ours(p.clone().requires_grad_(), z_with_gradient, simplified)
        assert torch.autograd.grad(loss, z_with_gradient, allow_unused=True) == (None,)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: solo.swav_loss_func(None, []), TypeError, "swav_loss_func: preds must be a list"),
        (lambda: solo.swav_loss_func([torch.ones(2, 3)], []), ValueError, "assignments must have at least one view"),
        (lambda: solo.SinkhornKnopp(0), ValueError, "num_iters must be at least 1, got 0"),
        (lambda: solo.SinkhornKnopp(3, 0.0), ValueError, "epsilon must be finite and above 0"),
        (lambda: solo.DINOLoss(4, 0.1, 0.1, 6, 5), ValueError, "num_epochs must be at least 6, got 5"),
        (lambda: solo.DINOLoss(4, 0.1, 0.1, 0, 5)(torch.ones(3, 4), torch.ones(4, 4)), ValueError, "student_output"),
        (lambda: solo.DINOLoss(4, 0.1, 0.1, 0, 5)(torch.ones(4, 4), torch.ones(4, 5)), ValueError, "4 columns"),
        (lambda: solo.byol_loss_func(torch.ones(4, 4), torch.ones(5, 4)), ValueError, "same shape"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def published_simclr(z, indexes, temperature):
    """With a matrix of exponentials: float16 overflows there below a temperature of 0.1."""
    z = F.normalize(z, dim=-1)
    similar = torch.exp(z @ z.T / temperature)
    positive = indexes[:, None] == indexes
    positive.fill_diagonal_(False)
    pos, neg = (torch.where(mask, similar, 0.0).sum(1) for mask in (positive, indexes[:, None] != indexes))
    return -torch.log(pos / (pos + neg)).mean()


def gradients(function, *inputs):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    loss = function(*leaves)
    return loss.detach(), *torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("indexes", ["views", "four views", "classes"])
@pytest.mark.parametrize(("n", "d"), [(1, 3), (5, 7), (40, 33)])
def test_simclr(indexes, n, d):
    z = logits(4 * n, d, dtype=torch.float64)
    generator = torch.Generator().manual_seed(n)
    index = {
        "views": torch.arange(2 * n).repeat(2),
        "four views": torch.arange(n).repeat(4),
        "classes": torch.cat([torch.randint(3, (2 * n,), generator=generator)] * 2),
    }[indexes]
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        for temperature in (0.1, 0.5):
            mine = gradients(lambda z, t=temperature: solo.simclr_loss_func(z, index, t), z.to(dtype))
            theirs = gradients(lambda z, t=temperature: published_simclr(z, index, t), z)
            for got, want in zip(mine, theirs, strict=True):
                torch.testing.assert_close(
                    got.double(), want, rtol=tolerance, atol=tolerance * max(1e-3, float(want.abs().max()))
                )
    assert solo.simclr_loss_func(z, torch.arange(4 * n)).isinf()
    loss = solo.simclr_loss_func(z.half(), index, 0.05)
    torch.testing.assert_close(loss.double(), published_simclr(z.half().double(), index, 0.05), rtol=0.02, atol=0.02)
    with pytest.raises(TypeError, match="simclr_loss_func: indexes must be an int64 tensor"):
        solo.simclr_loss_func(z, index.float())


@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 3), (5, 70, 7), (33, 200, 40)])
def test_moco_and_nnclr(n, k, d):
    query, key = (F.normalize(logits(n, d, dtype=torch.float64, seed=seed), dim=1) for seed in (0, 1))
    queue = F.normalize(logits(k, d, dtype=torch.float64, seed=2), dim=1).T

    def published_mocov2plus(query):
        both = torch.cat([(query * key).sum(1, keepdim=True), query @ queue], 1) / 0.1
        return F.cross_entropy(both, torch.zeros(n, dtype=torch.int64))

    def among_each_other(rows, columns, temperature):
        cosines = F.normalize(rows, dim=1) @ F.normalize(columns, dim=1).T
        return F.cross_entropy(cosines / temperature, torch.arange(n))

    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        k_, queue_ = key.to(dtype), queue.to(dtype)
        pairs = (
            (lambda q, k=k_, b=queue_: solo.mocov2plus_loss_func(q, k, b), published_mocov2plus),
            (
                lambda q, k=k_: solo.mocov3_loss_func(q, k),
                lambda q: 0.4 * among_each_other(q, key, 0.2),
            ),
            (lambda q, k=k_: solo.nnclr_loss_func(k, q), lambda q: among_each_other(key, q, 0.1)),
        )
        for ours, published in pairs:
            for got, want in zip(gradients(ours, query.to(dtype)), gradients(published, query), strict=True):
                torch.testing.assert_close(
                    got.double(), want, rtol=tolerance, atol=tolerance * max(0.1, float(want.abs().max()))
                )
    moving = key.clone().requires_grad_()
    solo.mocov3_loss_func(query.requires_grad_(), moving).backward()
    assert moving.grad is None  # keys are constants
    with pytest.raises(ValueError, match="queue must"):
        solo.mocov2plus_loss_func(query, key, queue[0])
