"""KoLeo against lightly's loss and against its formula written out."""

from __future__ import annotations

import math

import pytest
import torch
from harness import BACKENDS, DTYPES, LargestTensor, assert_as_accurate_as_eager, in_guard_band, serving
from lightly.loss import KoLeoLoss

from fastssl.functional import koleo


def random(*shape, dtype=torch.float32, device="cpu", seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).to(device)


def loss_and_gradient(function, x):
    x = x.detach().clone().requires_grad_()
    loss = function(x)
    loss.backward()
    return loss.detach(), x.grad


def written_out(x, top_k, p=2.0, eps=1e-8):
    """The formula with the N x N matrix."""
    rows = torch.nn.functional.normalize(x, dim=1, eps=eps)
    similarity = (rows @ rows.T).fill_diagonal_(-2)
    nearest = similarity.topk(top_k, dim=1).indices
    distance = (rows[:, None] - rows[nearest] + eps).norm(p=p, dim=2)
    return -(distance + eps).log().mean()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize(("n", "dim"), [(2, 3), (3, 2), (33, 7), (97, 64), (200, 384)])
@pytest.mark.parametrize(("p", "eps"), [(2.0, 1e-8), (1.0, 1e-8), (3.0, 1e-3)])
def test_value_and_gradient_are_lightlys_in_float64(backend, device, n, dim, p, eps):
    with serving(backend, device, torch.float64, "nearest_neighbors"):
        x = 3 * random(n, dim, dtype=torch.float64, device=device)
        ours = loss_and_gradient(lambda x: koleo(x, p=p, eps=eps), x)
        theirs = loss_and_gradient(KoLeoLoss(p=p, eps=eps), x)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "dim"), [(5, 3), (97, 64), (200, 33)])
def test_value_and_gradient_are_as_accurate_as_lightlys_in_float32(backend, device, dtype, n, dim):
    """Also for 16-bit inputs: they are wide before anything is computed."""
    with serving(backend, device, dtype, "nearest_neighbors"):
        x = random(n, dim, dtype=dtype, device=device)
        loss, gradient = loss_and_gradient(koleo, x)
        truth, eager = (loss_and_gradient(KoLeoLoss(), wide) for wide in (x.double(), x.float()))
        assert loss.dtype == torch.float32 and gradient.dtype == dtype
        distance = truth[0].mul(-1).exp()
        terms = truth[0].abs() + 1 / distance  # a distance is a difference of rows of length 1
        assert_as_accurate_as_eager(loss.reshape(1), eager[0].reshape(1), truth[0].reshape(1), terms.reshape(1), "loss")
        # A row's own term and that of each row whose neighbour it is, in a direction of length 1.
        terms = (4 / n / distance / x.double().norm(dim=1, keepdim=True)).expand(n, dim)
        assert_as_accurate_as_eager(gradient, eager[1].to(dtype), truth[1], terms, "gradient")


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("top_k", [1, 3, 40])
def test_top_k_is_the_mean_over_the_nearest(backend, device, top_k):
    with serving(backend, device, torch.float64, "nearest_neighbors"):
        x = random(41, 6, dtype=torch.float64, device=device)
        ours = loss_and_gradient(lambda x: koleo(x, top_k=top_k), x)
        torch.testing.assert_close(ours, loss_and_gradient(lambda x: written_out(x, top_k), x))


def test_gradient_is_the_derivative():
    x = random(7, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: koleo(x, top_k=2), (x,))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_duplicates_have_lightlys_value_and_no_gradient(backend, device, dtype):
    with serving(backend, device, dtype, "nearest_neighbors"):
        x = random(12, 16, dtype=dtype, device=device)
        x[9:] = x[:3] + random(3, 16, dtype=dtype, device=device, seed=1) / 8  # each other's neighbours
        x[3:8] = x[3]
        x[8] = 2 * x[3]  # the same once its length is 1
        loss, gradient = loss_and_gradient(koleo, x)
        assert (gradient[3:9] == 0).all()
        torch.testing.assert_close(loss.double(), KoLeoLoss()(x.double()), rtol=1e-5, atol=0)
        different = [0, 1, 2, 9, 10, 11]
        truth, eager = (
            loss_and_gradient(lambda rows: KoLeoLoss()(rows) / 2, wide[different])[1]
            for wide in (x.double(), x if dtype == torch.float64 else x.float())
        )
        terms = (4 / gradient.numel() / x[different].double().norm(dim=1, keepdim=True)).expand(6, 16)
        assert_as_accurate_as_eager(gradient[different], eager.to(dtype), truth, terms, "gradient")


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("fill", [0.5, -3.0])
def test_collapse_is_finite(backend, device, dtype, fill):
    with serving(backend, device, dtype, "nearest_neighbors"):
        x = torch.full((20, 8), fill, dtype=dtype, device=device)
        loss, gradient = loss_and_gradient(koleo, x)
        assert abs(loss.item() + math.log(1e-8 * (math.sqrt(8) + 1))) < 1e-5 * loss.item()
        assert (gradient == 0).all()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_rows_of_zeros_stay_finite(backend, device):
    with serving(backend, device, operation="nearest_neighbors"):
        x = random(10, 8, device=device)
        x[:3] = 0
        loss, gradient = loss_and_gradient(koleo, x)
        assert loss.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_nan_in_nan_out(backend, device):
    with serving(backend, device, operation="nearest_neighbors"):
        x = random(20, 8, device=device)
        x[5, 2] = float("nan")
        loss, gradient = loss_and_gradient(koleo, x)
        assert loss.isnan() and gradient[5].isnan().all()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_changes_no_bit(backend, device, dtype):
    with serving(backend, device, dtype, "nearest_neighbors"):
        x = random(60, 32, dtype=dtype, device=device)
        expected = loss_and_gradient(koleo, x)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss, gradient = loss_and_gradient(koleo, x)
        assert torch.equal(loss, expected[0]) and torch.equal(gradient, expected[1])


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_any_stride_gives_the_same_and_a_second_call_the_same_bits(backend, device):
    with serving(backend, device, operation="nearest_neighbors"):
        x = random(70, 19, device=device)
        expected = loss_and_gradient(koleo, x)
        again = loss_and_gradient(koleo, x)
        assert torch.equal(again[0], expected[0]) and torch.equal(again[1], expected[1])
        for view in (in_guard_band(x), x.T.contiguous().T):
            leaf = view.detach().requires_grad_()
            loss = koleo(leaf)
            torch.testing.assert_close((loss.detach(), torch.autograd.grad(loss, leaf)[0]), expected)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_no_matrix_of_all_pairs_exists(backend, device):
    """Around the operator, whose own test stands with it."""
    with serving(backend, device, operation="nearest_neighbors"):
        x = random(300, 4, device=device)
        with LargestTensor() as seen:
            loss_and_gradient(koleo, x)
        assert seen.numbers == 300 * 4


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_without_a_graph_break(backend, device, dtype):
    with serving(backend, device, dtype, "nearest_neighbors"):
        x = random(30, 8, dtype=dtype, device=device)
        compiled = torch.compile(lambda x: koleo(x, top_k=2), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(loss_and_gradient(compiled, x), loss_and_gradient(lambda x: koleo(x, top_k=2), x))


@pytest.mark.parametrize(
    ("x", "arguments", "error", "message"),
    [
        (torch.zeros(4), {}, ValueError, r"koleo: x must have shape \[N, D\], got \(4,\)"),
        ([[1.0]], {}, TypeError, r"koleo: x must be a tensor of shape \[N, D\], got list"),
        (torch.zeros(4, 2, dtype=torch.int32), {}, TypeError, "x must have one of the dtypes"),
        (torch.zeros(1, 2), {}, ValueError, "top_k must be at least 1 and at most the number of other rows, 0, got 1"),
        (torch.zeros(4, 2), {"top_k": 4}, ValueError, "number of other rows, 3, got 4"),
        (torch.zeros(4, 2), {"top_k": 0}, ValueError, "top_k must be at least 1"),
        (torch.zeros(4, 2), {"top_k": 1.0}, TypeError, "top_k must be an int, got float"),
        (torch.zeros(4, 2), {"p": 0}, ValueError, "p must be finite and above 0, got 0"),
        (torch.zeros(4, 2), {"eps": -1e-8}, ValueError, "eps must be finite and above 0"),
        (torch.zeros(4, 2), {"group": 3}, TypeError, "group must be a process group"),
    ],
)
def test_bad_input_is_named(x, arguments, error, message):
    with pytest.raises(error, match=message):
        koleo(x, **arguments)
