"""MSNLoss against the real lightly loss and the formula of the paper."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from harness import BACKENDS, serving
from peers import DTYPES, assert_equals_published, logits

from fastssl.losses import MSNLoss

lightly_loss = pytest.importorskip("lightly.loss")

SHAPES = [(1, 2, 3, 5), (2, 1, 4, 7), (3, 5, 33, 16), (10, 4, 17, 130)]  # V, B, D, K


def inputs(v, b, d, k, dtype):
    return logits(v * b, d, dtype=dtype), logits(b, d, dtype=dtype, seed=1), logits(k, d, dtype=dtype, seed=2)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("v", "b", "d", "k"), SHAPES)
@pytest.mark.parametrize(("iterations", "weight"), [(3, 1.0), (0, 0.0), (1, 2.5)])
def test_equals_lightly(backend, device, dtype, v, b, d, k, iterations, weight):
    with serving(backend, device, dtype, "soft_target_cross_entropy"):
        anchors, targets, prototypes = (x.to(device) for x in inputs(v, b, d, k, dtype))
        arguments = {"sinkhorn_iterations": iterations, "regularization_weight": weight}

        def loss_of(module):
            return lambda a, p: module(a, targets.to(a.dtype), p, target_sharpen_temperature=0.3)

        # Targets are exponentials of up to 1 / (0.1 * 0.3), and Sinkhorn-Knopp adds such numbers up a few times.
        size = (1 + 1 / 0.03) * (1 + iterations)
        per_row = (2 + weight * (1 + math.log(k))) * size / 0.1
        lengths = (x.double().norm(dim=1, keepdim=True) for x in (anchors, prototypes))
        of_anchor, of_prototype = (per_row * x.double().abs().max().item() for x in (anchors, prototypes))
        anchor_length, prototype_length = lengths
        assert_equals_published(
            loss_of(MSNLoss(**arguments)),
            loss_of(lightly_loss.MSNLoss(**arguments)),
            [anchors, prototypes],
            value_terms=per_row,
            gradient_terms=[
                of_prototype / prototype_length.min() / anchor_length / (v * b),
                of_anchor / anchor_length.min() / prototype_length,
            ],
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_as_accurate_as_rounded_cosines(dtype):
    """The similarities are a 16-bit matrix product; everything after them is not worse than that."""
    anchors, targets, prototypes = inputs(3, 8, 32, 40, dtype)
    anchors.requires_grad_()
    value = MSNLoss()(anchors, targets, prototypes)
    (gradient,) = torch.autograd.grad(value, anchors)
    exact = anchors.detach().double().requires_grad_()
    truth = lightly_loss.MSNLoss()(exact, targets.double(), prototypes.double())
    (true_gradient,) = torch.autograd.grad(truth, exact)
    rounding = torch.finfo(dtype).eps / (0.1 * 0.25)  # of a target's exponent
    assert value.dtype == torch.float32 and abs(value.item() - truth.item()) < rounding * truth.item()
    assert (gradient - true_gradient).norm() < 2 * rounding * true_gradient.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.1, 0.01, 0.001])
def test_low_temperatures_are_finite(dtype, temperature):
    """lightly gives NaN in float16 at 0.1: probabilities underflow to 0 before their logarithm."""
    anchors, targets, prototypes = inputs(2, 6, 16, 50, dtype)
    anchors.requires_grad_()
    value = MSNLoss(temperature)(anchors, targets, prototypes)
    (gradient,) = torch.autograd.grad(value, anchors)
    assert value.isfinite() and gradient.isfinite().all() and gradient.abs().max() > 0
    if dtype == torch.float16 and temperature < 0.1:
        assert not lightly_loss.MSNLoss(temperature)(anchors, targets, prototypes).isfinite()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_zeros_and_large_rows_are_finite(dtype):
    anchors, targets, prototypes = inputs(2, 3, 8, 5, dtype)
    anchors, targets = ((3e4 * x.float()).clamp(-6e4, 6e4).to(dtype) for x in (anchors, targets))  # squares overflow
    anchors[0] = targets[1] = 0
    anchors.requires_grad_()
    value = MSNLoss()(anchors, targets, prototypes)
    value.backward()
    assert value.isfinite() and anchors.grad.isfinite().all()
    assert anchors.grad[0].abs().max() == 0 and anchors.grad[1].abs().max() > 0


def test_equals_the_formula_of_the_paper():
    """Sharpened targets without Sinkhorn-Knopp, every view against its image, minus the entropy of the mean."""
    v, b, d, k = 3, 4, 6, 9
    anchors, targets, prototypes = inputs(v, b, d, k, torch.float32)
    unit = F.normalize(prototypes)
    p = F.softmax(F.normalize(anchors) @ unit.T / 0.1, dim=1)
    sharp = F.softmax(F.normalize(targets) @ unit.T / 0.1, dim=1) ** (1 / 0.25)
    sharp /= sharp.sum(1, keepdim=True)
    cross_entropy = -(sharp.repeat(v, 1) * p.log()).sum(1).mean()
    mean = p.mean(0)
    entropy = -(mean * mean.log()).sum()
    loss = MSNLoss(sinkhorn_iterations=0, regularization_weight=0.5)(anchors, targets, prototypes)
    torch.testing.assert_close(loss, cross_entropy + 0.5 * (math.log(k) - entropy), rtol=1e-5, atol=0)


def test_the_targets_are_constants_and_the_prototypes_learn_through_the_anchors():
    anchors, targets, prototypes = (x.requires_grad_() for x in inputs(2, 3, 4, 5, torch.float32))
    gradients = torch.autograd.grad(
        MSNLoss()(anchors, targets, prototypes), (anchors, targets, prototypes), allow_unused=True
    )
    assert gradients[1] is None and gradients[0].abs().max() > 0 and gradients[2].abs().max() > 0


def test_compiles_without_a_graph_break():
    anchors, targets, prototypes = inputs(2, 3, 4, 5, torch.float32)
    anchors.requires_grad_()
    eager, compiled = MSNLoss(), torch.compile(MSNLoss(), fullgraph=True, backend="aot_eager")
    expected, value = (loss(anchors, targets, prototypes) for loss in (eager, compiled))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, anchors)[0] for loss in (value, expected)))


GOOD = torch.ones(4, 3), torch.ones(2, 3), torch.ones(5, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, *GOOD[1:]), TypeError, r"anchors must be a tensor of shape \[V B, D\], got NoneType"),
        ((GOOD[0], GOOD[1][0], GOOD[2]), ValueError, r"targets must have shape \[B, D\], got \(3,\)"),
        ((GOOD[0], GOOD[1], GOOD[2].int()), TypeError, "prototypes must have one of the dtypes"),
        ((GOOD[0], GOOD[1], torch.ones(5, 4)), ValueError, r"prototypes must have .* dimension, 3, got shape \(5, 4\)"),
        ((torch.ones(5, 3), *GOOD[1:]), ValueError, "2 times the number of views, got 5"),
        ((*GOOD, 0.0), ValueError, "target_sharpen_temperature must be finite and above 0, got 0.0"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=f"MSNLoss: .*{message}"):
        MSNLoss()(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temperature": 0}, ValueError, "temperature must be finite and above 0, got 0"),
        ({"sinkhorn_iterations": -1}, ValueError, "sinkhorn_iterations must be at least 0, got -1"),
        ({"regularization_weight": -1.0}, ValueError, "regularization_weight must be finite and at least 0, got -1.0"),
        ({"regularization_weight": None}, TypeError, "regularization_weight must be a number, got NoneType"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=f"MSNLoss: {message}"):
        MSNLoss(**arguments)
