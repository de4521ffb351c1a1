"""Statements about the Sinkhorn kernels in Triton; run by ``test_triton_interpreter.py`` under TRITON_INTERPRET=1.

Truth is ``reference.py`` in float64; the error allowed is twice that of the same reference in float32, plus 8 eps times
the sum of the absolute values of the terms. Scratch and outputs are filled with NaN before the kernels run.
"""

from __future__ import annotations

import os

import pytest
import torch

assert os.environ.get("TRITON_INTERPRET") == "1", "run tests/test_triton_interpreter.py"

from harness import poisoned_outputs  # noqa: E402

from fastssl.kernels.sinkhorn.config import TILES  # noqa: E402
from fastssl.kernels.tiles import Tile  # noqa: E402
from fastssl.ops.sinkhorn import reference, triton  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # log(0), inf - inf: IEEE rules are relied on

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def small_tiles_and_poisoned_memory(monkeypatch):
    monkeypatch.setattr(triton, "COMBINED_SLOTS", 4)
    with poisoned_outputs(), TILES.override(rows=Tile(2, 32, 0, 1, 1), columns=Tile(4, 16, 0, 1, 1)):
        yield


def logits_of(rows, columns, dtype=torch.float32, spread=3.0, offset=0.0):
    """Random logits as a view into a buffer of NaN."""
    generator = torch.Generator().manual_seed(rows * columns)
    around = torch.full((rows + 2, columns + 5), float("nan"), dtype=dtype)
    inside = around[1:-1, 2:-3]
    inside.copy_(spread * torch.randn(rows, columns, generator=generator) + offset)
    return inside


def potential_of(length):
    return 5 * torch.randn(length, generator=torch.Generator().manual_seed(length))


def assert_accurate(logits, potential, dim, scale=20.0):
    wide = None if potential is None else potential.double()
    truth = reference.potential_logsumexp(logits.double(), wide, scale=scale, dim=dim)
    eager = reference.potential_logsumexp(logits.float(), potential, scale=scale, dim=dim)
    got = triton.potential_logsumexp(logits, potential, scale=scale, dim=dim)
    assert got.dtype == torch.float32 and got.shape == truth.shape
    terms = truth.abs() + scale * logits.double().abs().amax(dim)
    allowed = 2 * (eager - truth).abs().max() + 8 * EPS * terms
    assert ((got - truth).abs() <= allowed).all() and not (truth.abs() <= allowed).all()


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize(
    "rows, columns, dtype",
    [
        *((8, 70, dtype) for dtype in DTYPES),
        (9, 96, torch.float32),
        (1, 33, torch.bfloat16),
        (13, 1, torch.float32),
    ],
)
@pytest.mark.parametrize("given", [False, True])
def test_sizes_that_fit_the_tiles_and_sizes_that_do_not(dim, rows, columns, dtype, given):
    logits = logits_of(rows, columns, dtype)
    assert_accurate(logits, potential_of(logits.shape[dim]) if given else None, dim)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("programs", [1, 7])
def test_any_number_of_parts(dim, programs, monkeypatch):
    monkeypatch.setattr(triton, "PROGRAMS_PER_MULTIPROCESSOR", programs)
    logits = logits_of(25, 130)
    assert_accurate(logits, potential_of(logits.shape[dim]), dim)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("spread, offset", [(1e4, 0.0), (1.0, 5e4), (1.0, -5e4)])
def test_logits_of_any_size_in_16_bits_stay_finite(dim, spread, offset):
    dtype = torch.bfloat16
    logits = logits_of(10, 70, dtype, spread, offset)
    assert triton.potential_logsumexp(logits, None, scale=20.0, dim=dim).isfinite().all()
    assert_accurate(logits, None, dim)


@pytest.mark.parametrize("dim", [0, 1])
def test_logits_in_any_layout(dim):
    assert_accurate(logits_of(40, 24).T, potential_of((24, 40)[dim]), dim)
    assert_accurate(logits_of(40, 24)[::3], None, dim)


@pytest.mark.parametrize("dim", [0, 1])
def test_nan_stays_where_it_is_summed(dim):
    logits = logits_of(10, 70)
    logits[6, 40] = float("nan")
    got = triton.potential_logsumexp(logits, None, scale=1.0, dim=dim)
    assert got.isnan().nonzero().flatten().tolist() == [40 if dim == 0 else 6]


@pytest.mark.parametrize("dim", [0, 1])
def test_an_empty_sum_is_minus_infinity(dim):
    logits = logits_of(10, 70)
    logits.select(1 - dim, 3).fill_(-torch.inf)
    got = triton.potential_logsumexp(logits, None, scale=1.0, dim=dim)
    assert got[3] == -torch.inf and got.isfinite().sum() == len(got) - 1


@pytest.mark.parametrize("dim", [0, 1])
def test_same_input_same_bits(dim):
    logits = logits_of(10, 70)
    first, second = (triton.potential_logsumexp(logits, None, scale=3.0, dim=dim) for _ in range(2))
    assert torch.equal(first, second)
