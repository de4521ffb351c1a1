"""A small model trained for 32 steps with the fused losses learns as with the reference: the same curve."""

from __future__ import annotations

import copy

import pytest
import torch
from harness import BACKENDS, serving
from torch import nn

import fastssl
from fastssl import losses

BATCH, FEATURES, K, STEPS = 8, 12, 48, 32


class DINO:
    """Two global views for the teacher, those and two local ones for the student; the centre moves."""

    def __init__(self):
        self.criterion = losses.DINOLoss(K, center_momentum=0.8)

    def __call__(self, student, teacher, views):
        return self.criterion([teacher(x) for x in views[:2]], [student(x) for x in views])


class IBOT:
    """Four views stand for four tokens, of which some are masked for the student."""

    def __init__(self):
        self.criterion = losses.IBOTPatchLoss(K, center_momentum=0.8)

    def __call__(self, student, teacher, views):
        tokens = torch.stack(views, 1)
        mask = tokens[..., 0] > 0
        return self.criterion(teacher(tokens), student(tokens * ~mask[..., None]), mask)


class SwaV:
    def __init__(self):
        self.criterion = losses.SwaVLoss()

    def __call__(self, student, teacher, views):
        out = [torch.tanh(student(x)) for x in views]
        return self.criterion(out[:2], out[2:]).squeeze()


class MSN:
    def __init__(self):
        self.criterion = losses.MSNLoss()
        self.prototypes = torch.randn(20, K, generator=torch.Generator().manual_seed(5))

    def __call__(self, student, teacher, views):
        anchors = torch.cat([student(x) for x in views[1:]])
        return self.criterion(anchors, teacher(views[0]).detach(), self.prototypes.to(anchors))


class KoLeo:
    def __init__(self):
        self.criterion = losses.KoLeoLoss()

    def __call__(self, student, teacher, views):
        return self.criterion(student(views[0]))


def train(method, backend, device, dtype, learning_rate=0.02):
    """Losses of each step; the teacher follows the student by a moving average."""
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(FEATURES, 32), nn.GELU(), nn.Linear(32, K)).to(device, dtype)
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), lr=learning_rate, momentum=0.5)
    objective = method()
    objective.criterion.to(device)
    images = torch.randn(STEPS, BATCH, FEATURES, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(STEPS, 4, BATCH, FEATURES, generator=torch.Generator().manual_seed(2))
    curve = []
    for image, offsets in zip(images, noise, strict=True):
        views = [(image + 0.3 * offset).to(device, dtype) for offset in offsets]
        with fastssl.backend(backend):
            loss = objective(student, teacher, views)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mean, parameter in zip(teacher.parameters(), student.parameters(), strict=True):
                mean.lerp_(parameter, 0.1)
        curve.append(loss.detach())
    return torch.stack(curve).cpu()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("method", [DINO, IBOT, SwaV, MSN, KoLeo])
def test_32_steps_give_the_references_curve(backend, device, method):
    operation = "nearest_neighbors" if method is KoLeo else "soft_target_cross_entropy"
    with serving(backend, device, torch.float32, operation):
        fused = train(method, backend, device, torch.float32)
    reference = train(method, "reference", device, torch.float32)
    torch.testing.assert_close(fused, reference, rtol=1e-5, atol=1e-6)
    untrained = train(method, "reference", device, torch.float32, learning_rate=0.0)
    assert (reference - untrained)[8:].abs().min() > 1e-3  # where a wrong gradient would show


@pytest.mark.parametrize("method", [DINO, IBOT, SwaV])
def test_32_steps_in_bfloat16_stay_as_near_to_float32_as_the_references(method):
    truth = train(method, "reference", "cpu", torch.float32)
    reference = train(method, "reference", "cpu", torch.bfloat16)
    fused = train(method, "chunked", "cpu", torch.bfloat16)
    assert (fused - truth).norm() <= 2 * (reference - truth).norm()
