"""Sinkhorn-Knopp and the operator under it, on every backend that this machine has, against float64."""

from __future__ import annotations

import pytest
import torch
from harness import BACKENDS, DTYPES, assert_as_accurate_as_eager, in_guard_band, poisoned_outputs, serving

import fastssl
from fastssl import functional
from fastssl.ops.sinkhorn import reference


def serve(backend, device, dtype=torch.float32):
    return serving(backend, device, dtype, "potential_logsumexp")


def random(*shape, dtype=torch.float32, device="cpu", seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).to(device)


def log_sum(logits, potential=None, scale=20.0, dim=0):
    return torch.ops.fastssl.potential_logsumexp(
        logits, potential, scale=scale, dim=dim, backend=fastssl.backends.forced()
    )


def check(logits, potential, dim, *, kernel_sees=lambda x, v: (x, v)):
    with poisoned_outputs():
        actual = log_sum(*kernel_sees(logits, potential), dim=dim)
    eager = reference.potential_logsumexp(logits, potential, scale=20.0, dim=dim)
    wide = logits.double(), None if potential is None else potential.double()
    truth = reference.potential_logsumexp(*wide, scale=20.0, dim=dim)
    of_potential = 0 if potential is None else wide[1].abs().max()
    size = 20 * wide[0].nan_to_num(neginf=0).abs().amax(dim) + of_potential + truth.abs() + 1
    assert_as_accurate_as_eager(actual, eager, truth, size, f"log-sums over dimension {dim}")


def published(logits, temperature, iterations):
    """The loop of SwAV and DINOv2, on Q transposed: prototypes x samples."""
    q = (logits / temperature).exp().T
    q = q / q.sum()
    prototypes, samples = q.shape
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / prototypes
        q = q / q.sum(0, keepdim=True) / samples
    return (q * samples).T


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (64, 33), (130, 1030), (5, 4100), (4100, 3)])
def test_log_sums_match_float64(backend, device, dtype, shape):
    with serve(backend, device, dtype):
        logits = random(*shape, dtype=dtype, device=device)
        for dim in (0, 1):
            potential = random(shape[dim], dtype=torch.float64 if dtype == torch.float64 else torch.float32, seed=2)
            for given in (None, potential.to(device)):
                check(logits, given, dim)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, v: (x[:, :-1], v[:-1] if len(v) == x.shape[1] else v),
        lambda x, v: (x, None),
        lambda x, v: (x * 1.01, v),
    ],
    ids=["last column", "potentials", "scale"],
)
def test_the_yardstick_notices_what_a_kernel_may_skip(backend, device, dim, wrong):
    with serve(backend, device):
        logits = random(40, 33, device=device).clamp_(max=1)
        logits[:, -1] = 2.0
        potential = random(logits.shape[dim], device=device, seed=2)
        check(logits, potential, dim)
        with pytest.raises(AssertionError):
            check(logits, potential, dim, kernel_sees=wrong)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_infinities_and_nan(backend, device):
    with serve(backend, device):
        logits = random(5, 70, device=device)
        logits[:, 3] = logits[2, :] = -torch.inf
        assert log_sum(logits, dim=0).isneginf().nonzero().flatten().tolist() == [3]
        assert log_sum(logits, dim=1).isneginf().nonzero().flatten().tolist() == [2]
        check(logits, None, 0)
        check(logits, None, 1)
        logits = random(5, 70, device=device)
        logits[4, 60] = torch.nan
        assert log_sum(logits, dim=0).isnan().nonzero().flatten().tolist() == [60]
        assert log_sum(logits, dim=1).isnan().nonzero().flatten().tolist() == [4]


@pytest.mark.parametrize(("backend", "device"), [pair for pair in BACKENDS if pair[0] != "chunked"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_stride_gives_the_same_bits_and_nothing_around_is_read(backend, device, dtype):
    with serve(backend, device, dtype):
        logits = random(37, 1100, dtype=dtype, device=device)
        for dim in (0, 1):
            expected = log_sum(logits, dim=dim)
            for view in (in_guard_band(logits), logits.T.contiguous().T, logits.repeat_interleave(2, 1)[:, ::2]):
                assert torch.equal(log_sum(view, dim=dim), expected)


def test_any_number_of_threads_gives_the_same_bits():
    with serve("cpp", "cpu"):
        logits, before = random(100, 5000), torch.get_num_threads()
        try:
            runs = []
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                runs.append((log_sum(logits, dim=0), log_sum(logits, dim=1)))
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_the_operator_passes_opcheck_and_has_no_gradient(backend, device):
    with serve(backend, device):
        logits, potential = random(6, 20, device=device), random(20, device=device, seed=1)
        torch.library.opcheck(
            torch.ops.fastssl.potential_logsumexp.default,
            (logits, potential),
            {"scale": 2.0, "dim": 1, "backend": backend},
        )
        with pytest.raises(RuntimeError, match="second derivatives"):
            log_sum(logits.requires_grad_(), potential, dim=1).sum().backward()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_assignments_equal_the_published_loop(backend, device, iterations):
    with serve(backend, device, torch.float64):
        logits = random(2, 30, 50, dtype=torch.float64, device=device) * 0.3
        column, row = functional.sinkhorn_knopp(logits, 0.07, iterations=iterations)
        assigned = (logits / 0.07 - column[:, None] - row[:, :, None]).exp()
        expected = torch.stack([published(problem, 0.07, iterations) for problem in logits])
        torch.testing.assert_close(assigned, expected, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(assigned.sum(2), torch.ones_like(row))
        single = functional.sinkhorn_knopp(logits[1], 0.07, iterations=iterations)
        assert torch.equal(single[0], column[1]) and torch.equal(single[1], row[1])


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_many_iterations_give_every_prototype_the_same_share(backend, device):
    with serve(backend, device):
        logits = random(64, 16, device=device) + 3 * random(16, device=device, seed=4)  # some prototypes are favoured
        column, row = functional.sinkhorn_knopp(logits, 1.0, iterations=50)
        shares = (logits - column - row[:, None]).exp().sum(0)
        torch.testing.assert_close(shares, torch.full_like(shares, 4.0), rtol=1e-3, atol=0)
        assert logits.softmax(1).sum(0).max() > 12, "without Sinkhorn-Knopp they would not be equal"


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("deviation", [10.0, 1e4])
def test_logits_of_any_size_stay_finite(backend, device, dtype, deviation):
    with serve(backend, device, dtype):
        logits = random(40, 300, dtype=dtype, device=device) * deviation
        column, row = functional.sinkhorn_knopp(logits, 0.04)
        assert column.isfinite().all() and row.isfinite().all()
        exact = functional.sinkhorn_knopp(logits.double(), 0.04)
        # Potentials are sums and differences of exponents as large as these.
        bound = 16 * torch.finfo(torch.float32).eps * (logits.double().abs().max() / 0.04)
        assert (column - exact[0]).abs().max() < bound and (row - exact[1]).abs().max() < bound
        assert not published(logits.float(), 0.04, 3).isfinite().all(), "the published loop overflows"


def test_compiled_equals_eager():
    logits = random(30, 50)
    compiled = torch.compile(lambda x: functional.sinkhorn_knopp(x, 0.05), fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(logits), functional.sinkhorn_knopp(logits, 0.05), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("logits", "arguments", "error", "message"),
    [
        (torch.zeros(3), {}, ValueError, r"logits must have shape \[B, K\] or \[T, B, K\], got \(3,\)"),
        (torch.zeros(3, 0), {}, ValueError, "logits must not be empty"),
        (torch.zeros(3, 2).int(), {}, TypeError, r"logits must have one of the dtypes .* got torch\.int32"),
        ([1.0], {}, TypeError, "logits must be a tensor"),
        (torch.zeros(3, 2), {"temperature": -1}, ValueError, "temperature must be finite and above 0, got -1"),
        (torch.zeros(3, 2), {"iterations": 0}, ValueError, "iterations must be at least 1, got 0"),
        (torch.zeros(3, 2), {"iterations": 2.0}, TypeError, "iterations must be an int, got float"),
        (torch.zeros(3, 2), {"group": "world"}, TypeError, "group must be a process group"),
    ],
)
def test_bad_input_is_named(logits, arguments, error, message):
    with pytest.raises(error, match=message):
        functional.sinkhorn_knopp(logits, **arguments)


def test_bad_input_of_the_operator_is_named():
    with pytest.raises(ValueError, match="dim must be 0 or 1, got 2"):
        log_sum(torch.zeros(3, 2), dim=2)
    with pytest.raises(ValueError, match=r"potential must be torch\.float32 of shape \(2,\) on cpu"):
        log_sum(torch.zeros(3, 2), torch.zeros(3), dim=1)
