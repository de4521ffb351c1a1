"""NegativeCosineSimilarity against the real lightly loss."""

from __future__ import annotations

import pytest
import torch
from peers import DTYPES, assert_equals_published, logits

from fastssl.losses import NegativeCosineSimilarity

lightly_loss = pytest.importorskip("lightly.loss")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "dim"), [((1, 2), 1), ((5, 33), 1), ((5, 33), 0), ((64, 130), -1), ((2, 3, 7), 1), ((4,), 0)]
)
def test_equals_lightly(dtype, shape, dim):
    x0, x1 = logits(*shape, dtype=dtype), logits(*shape, dtype=dtype, seed=1)
    lengths = [x.double().norm(dim=dim, keepdim=True) for x in (x0, x1)]
    share = lengths[0].numel()
    assert_equals_published(
        NegativeCosineSimilarity(dim),
        lightly_loss.NegativeCosineSimilarity(dim),
        [x0, x1],
        value_terms=1.0,
        gradient_terms=[2 / (share * length) for length in lengths],
    )


def test_a_dimension_of_one_is_repeated():
    x0, x1 = logits(5, 8), logits(1, 8, seed=1)
    torch.testing.assert_close(NegativeCosineSimilarity()(x0, x1), lightly_loss.NegativeCosineSimilarity()(x0, x1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_zeros_and_large_rows_are_finite(dtype):
    x0, x1 = (3e4 * logits(3, 8)).clamp(-6e4, 6e4).to(dtype), logits(3, 8, dtype=dtype, seed=1)
    x0[0] = 0
    x0.requires_grad_()
    loss = NegativeCosineSimilarity()(x0, x1)
    loss.backward()
    truth = lightly_loss.NegativeCosineSimilarity()(x0.double(), x1.double())
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=0)
    assert x0.grad.isfinite().all() and x0.grad[1:].abs().max() > 0
    assert x0.grad[0].abs().max() == 0  # a vector of zeros has no direction to turn


def test_mirrors_the_constructor():
    ours, theirs = NegativeCosineSimilarity(), lightly_loss.NegativeCosineSimilarity()
    assert (ours.dim, ours.eps) == (theirs.dim, theirs.eps)
    assert ours.state_dict() == theirs.state_dict() == {}
    assert repr(NegativeCosineSimilarity(-1, 1e-3)) == "NegativeCosineSimilarity(dim=-1, eps=0.001)"


def test_compiles_without_a_graph_break():
    x0, x1 = logits(5, 8), logits(5, 8, seed=1)
    compiled = torch.compile(NegativeCosineSimilarity(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x0, x1), NegativeCosineSimilarity()(x0, x1))


ROWS = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, ROWS), TypeError, "x0 must be a dense tensor with a floating dtype, got NoneType"),
        ((ROWS, ROWS.int()), TypeError, "x1 must be a dense tensor with a floating dtype"),
        ((ROWS, torch.ones(5, 3)), ValueError, r"x0 and x1 must have the same shape, got \(4, 3\) and \(5, 3\)"),
        ((ROWS, torch.ones(3)), ValueError, r"x1 must have dimension 1, got shape \(3,\)"),
        ((torch.ones(0, 3), torch.ones(0, 3)), ValueError, r"x0 must not be empty, got shape \(0, 3\)"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=f"NegativeCosineSimilarity: {message}"):
        NegativeCosineSimilarity()(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dim": 1.0}, TypeError, "dim must be an int, got float"),
        ({"eps": 0.0}, ValueError, "eps must be finite and above 0, got 0.0"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=f"NegativeCosineSimilarity: {message}"):
        NegativeCosineSimilarity(**arguments)
