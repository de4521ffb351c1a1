"""SwaVLoss against the real lightly loss and the swapped prediction of the paper."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from harness import BACKENDS, serving
from peers import DTYPES, assert_equals_published, logits, soft_target_terms

from fastssl import functional
from fastssl.losses import SwaVLoss

lightly_loss = pytest.importorskip("lightly.loss")

SHAPES = [(2, 0, 1, 1), (1, 1, 2, 5), (2, 6, 4, 33), (3, 1, 5, 130), (2, 2, 17, 300)]  # high, low, B, K


def cosines(*shape, dtype=torch.float32, seed=0):
    """Numbers from -1 to 1, of which lightly's exponentials do not overflow."""
    return torch.tanh(logits(*shape, seed=seed)).to(dtype)


def published_codes(out, epsilon=0.05, iterations=3):
    """The loop of the SwAV paper's code."""
    q = torch.exp(out / epsilon).T
    q /= q.sum()
    k, b = q.shape
    for _ in range(iterations):
        q /= q.sum(1, keepdim=True)
        q /= k
        q /= q.sum(0, keepdim=True)
        q /= b
    return (q * b).T


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("high", "low", "b", "k"), SHAPES)
@pytest.mark.parametrize("queue", [0, 7])
def test_equals_lightly(backend, device, dtype, high, low, b, k, queue):
    with serving(backend, device, dtype, "soft_target_cross_entropy"):
        views = cosines(high + low, b, k, dtype=dtype).to(device)
        queues = cosines(high, queue, k, dtype=dtype, seed=1).to(device)

        def loss_of(module):
            def loss(*x):
                old = [q.to(x[0].dtype) for q in queues] if queue else None
                return module(list(x[:high]), list(x[high:]), old)

            return loss

        samples = torch.cat((views[:high], queues), 1)
        potential, _ = functional.sinkhorn_knopp(samples.double(), 0.05)
        pairs = high * (high + low - 1)
        value_terms, gradient_terms = soft_target_terms(
            views,
            views[:high].double() / 0.05 - potential[:, None],
            student_temperature=0.1,
            weight=1 / (b * pairs),
        )
        # Potentials are sums of exponentials of sums: six of them, each with a rounding of the largest logarithm.
        assert_equals_published(
            loss_of(SwaVLoss()),
            loss_of(lightly_loss.SwaVLoss()),
            list(views),
            value_terms=6 * value_terms,
            gradient_terms=[6 * terms for terms in gradient_terms],
        )


def test_equals_the_swapped_prediction_of_the_paper():
    """Each view's codes predicted from every other view, the mean over such pairs and images."""
    views = cosines(5, 6, 20)
    codes = [published_codes(view.double()).float() for view in views[:2]]
    single = [
        -(codes[t] * F.log_softmax(views[s] / 0.1, dim=-1)).sum(-1).mean() for t in range(2) for s in range(5) if s != t
    ]
    assert len(single) == 8
    loss = SwaVLoss()(list(views[:2]), list(views[2:]))
    torch.testing.assert_close(loss, torch.stack(single).mean().reshape(1), rtol=1e-5, atol=0)


def test_the_loss_has_lightlys_shape():
    views = list(cosines(3, 2, 4))
    assert SwaVLoss()(views[:2], views[2:]).shape == lightly_loss.SwaVLoss()(views[:2], views[2:]).shape == (1,)


@pytest.mark.parametrize("dtype", DTYPES)
def test_stacked_tensors_are_lists_of_views(dtype):
    high, low, queue = (
        cosines(2, 3, 9, dtype=dtype),
        cosines(4, 3, 9, dtype=dtype, seed=1),
        cosines(2, 5, 9, dtype=dtype),
    )
    loss = SwaVLoss()
    assert torch.equal(loss(high, low, queue), loss(list(high), list(low), list(queue)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_similarities_of_any_size_are_finite(dtype):
    """Where the published loop overflows: standard deviation 10 at temperature 0.04."""
    views = logits(4, 8, 100, dtype=dtype, std=10.0).requires_grad_()
    value = SwaVLoss(sinkhorn_epsilon=0.04)(list(views[:2]), list(views[2:]))
    (gradient,) = torch.autograd.grad(value, views)
    assert value.isfinite().all() and gradient.isfinite().all() and gradient.abs().max() > 0
    truth = SwaVLoss(sinkhorn_epsilon=0.04)(list(views[:2].double()), list(views[2:].double()))
    torch.testing.assert_close(value.double(), truth, rtol=1e-3, atol=0)
    assert not lightly_loss.SwaVLoss(sinkhorn_epsilon=0.04)(list(views[:2]), list(views[2:])).isfinite().all() or (
        dtype == torch.float64
    )


def test_codes_use_every_prototype_equally():
    """What keeps SwAV from collapse: samples that all prefer one prototype are spread over all."""
    b, k = 8, 4
    same = torch.zeros(b, k)
    same[:, 0] = 1.0
    loss = SwaVLoss()([same, same], [])
    torch.testing.assert_close(loss, -F.log_softmax(same / 0.1, dim=-1).mean().reshape(1))  # codes 1 / K each


def test_compiles_without_a_graph_break():
    views = cosines(5, 3, 12).requires_grad_()
    eager, compiled = SwaVLoss(), torch.compile(SwaVLoss(), fullgraph=True, backend="aot_eager")
    for queue in (None, cosines(2, 4, 12, seed=2)):
        expected, value = (loss(list(views[:2]), list(views[2:]), queue) for loss in (eager, compiled))
        torch.testing.assert_close(value, expected)
        gradients = (torch.autograd.grad(loss, views)[0] for loss in (value, expected))
        torch.testing.assert_close(*gradients)


VIEWS = [torch.zeros(3, 8), torch.zeros(3, 8)]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, VIEWS), TypeError, r"high_resolution_outputs must be a list of tensors \[B, K\]"),
        (([], VIEWS), ValueError, "high_resolution_outputs must have at least one view, got none"),
        ((VIEWS[:1], []), ValueError, "at least two views in all, got one"),
        ((VIEWS, [torch.zeros(2, 8)]), ValueError, r"same shape, got \(3, 8\) and \(2, 8\)"),
        ((VIEWS, VIEWS, VIEWS[:1]), ValueError, r"queue_outputs must have 2 views \[Q, 8\] .* got 1 of \(3, 8\)"),
        ((VIEWS, VIEWS, [torch.zeros(5, 7)] * 2), ValueError, r"queue_outputs must have 2 views \[Q, 8\]"),
        ((VIEWS, VIEWS, 3), TypeError, "queue_outputs must be a list"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=f"SwaVLoss: .*{message}"):
        SwaVLoss()(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temperature": 0.0}, ValueError, "temperature must be finite and above 0, got 0.0"),
        ({"sinkhorn_epsilon": "x"}, TypeError, "sinkhorn_epsilon must be a number, got str"),
        ({"sinkhorn_iterations": 0}, ValueError, "sinkhorn_iterations must be at least 1, got 0"),
        ({"sinkhorn_iterations": 2.0}, TypeError, "sinkhorn_iterations must be an int, got float"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=f"SwaVLoss: {message}"):
        SwaVLoss(**arguments)
