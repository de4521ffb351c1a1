"""KoLeoLoss against the real lightly loss; what the function itself promises stands in tests/test_koleo.py."""

from __future__ import annotations

import pytest
import torch
from harness import BACKENDS, serving
from peers import DTYPES, assert_equals_published, logits

from fastssl import functional
from fastssl.losses import KoLeoLoss

lightly_loss = pytest.importorskip("lightly.loss")


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "d"), [(2, 3), (5, 2), (17, 33), (64, 130)])
@pytest.mark.parametrize("p", [2, 1.5])
def test_equals_lightly(backend, device, dtype, n, d, p):
    with serving(backend, device, dtype, "nearest_neighbors"):
        x = logits(n, d, dtype=dtype, seed=n).to(device)
        unit = torch.nn.functional.normalize(x.double(), dim=1)
        distance = torch.cdist(unit, unit).fill_diagonal_(torch.inf).min().item()
        # A term is minus the logarithm of a distance, whose rounding the small distance divides; a row has its own
        # term and those of the rows to which it is nearest.
        length = x.double().norm(dim=1).min().item()
        assert_equals_published(
            KoLeoLoss(p),
            lightly_loss.KoLeoLoss(p),
            [x],
            value_terms=2 * d / distance,
            gradient_terms=[2 * d / (n * length * distance**2)],
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_duplicates_are_finite_and_have_lightlys_value(dtype):
    x = logits(4, 8).repeat(2, 1).to(dtype).requires_grad_()
    value = KoLeoLoss()(x)
    (gradient,) = torch.autograd.grad(value, x)
    truth = lightly_loss.KoLeoLoss()(x.double())
    torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=0)
    assert gradient.isfinite().all()


def test_passes_its_arguments_on():
    x = logits(9, 4)
    loss = KoLeoLoss(p=1, eps=1e-3, top_k=3)
    assert torch.equal(loss(x), functional.koleo(x, p=1, eps=1e-3, top_k=3))
    assert not torch.equal(loss(x), KoLeoLoss(p=1, eps=1e-3)(x))
    assert repr(loss) == "KoLeoLoss(p=1.0, eps=0.001, top_k=3, gather_distributed=False)"
    assert torch.equal(KoLeoLoss(gather_distributed=True)(x), KoLeoLoss()(x))  # no process group: one process
    assert loss.state_dict() == lightly_loss.KoLeoLoss().state_dict() == {}


def test_compiles_without_a_graph_break():
    x = logits(9, 4).requires_grad_()
    eager, compiled = KoLeoLoss(), torch.compile(KoLeoLoss(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), eager(x))
    torch.testing.assert_close(*(torch.autograd.grad(loss(x), x)[0] for loss in (compiled, eager)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"p": 0}, ValueError, "p must be finite and above 0, got 0"),
        ({"eps": -1.0}, ValueError, "eps must be finite and above 0, got -1.0"),
        ({"eps": "small"}, TypeError, "eps must be a number, got str"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        ({"top_k": 1.0}, TypeError, "top_k must be an int, got float"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=f"KoLeoLoss: {message}"):
        KoLeoLoss(**arguments)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (None, TypeError, r"x must be a tensor of shape \[N, D\], got NoneType"),
        (torch.zeros(4), ValueError, r"x must have shape \[N, D\], got \(4,\)"),
        (torch.zeros(4, 3).int(), TypeError, "x must have one of the dtypes"),
        (torch.zeros(1, 3), ValueError, "the number of other rows, 0"),
    ],
)
def test_bad_input_is_named(x, error, message):
    with pytest.raises(error, match=message):
        KoLeoLoss()(x)
