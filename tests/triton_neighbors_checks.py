"""Statements about the nearest-neighbour kernels in Triton; run by ``test_triton_interpreter.py`` under
TRITON_INTERPRET=1.

Inputs are small integers, so that all products are exact and neighbours must be equal, ties included. Scratch is filled
with impossible numbers before the kernels run, and inputs lie inside NaN.
"""

from __future__ import annotations

import os

import pytest
import torch

assert os.environ.get("TRITON_INTERPRET") == "1", "run tests/test_triton_interpreter.py"

from fastssl.kernels.neighbors.config import TILES  # noqa: E402
from fastssl.kernels.tiles import Tile  # noqa: E402
from fastssl.ops.neighbors import reference, triton  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # products with infinities and NaN

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def small_tiles_and_poisoned_memory(monkeypatch):
    empty = torch.empty

    def poisoned(*shape, **options):
        return empty(*shape, **options).fill_(123456789)

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(triton, "PROGRAMS_PER_MULTIPROCESSOR", 9)  # three splits or more
    with TILES.override(nearest=Tile(16, 32, 16, 4, 1)):
        yield


def vectors(count, d, dtype=torch.float32, seed=0):
    """Integers between -2 and 2 as a view into a buffer of NaN: many products are equal."""
    values = torch.randint(-2, 3, (count, d), generator=torch.Generator().manual_seed(seed))
    around = torch.full((count + 2, d + 5), float("nan"), dtype=dtype)
    inside = around[1:-1, 2:-3]
    inside.copy_(values)
    return inside


def assert_equal(q, k, **rules):
    rules = {"exclude_self": False, "row_offset": 0, **rules}
    got = triton.nearest_neighbors(q, k, **rules)
    assert got.dtype == torch.int64
    assert torch.equal(got, reference.nearest_neighbors(q, k, **rules))


@pytest.mark.parametrize(
    "m, n, d, dtype",
    [
        *((21, 130, 24, dtype) for dtype in DTYPES),
        (16, 96, 16, torch.float32),
        (1, 40, 1, torch.bfloat16),
        (33, 17, 50, torch.float16),
    ],
)
@pytest.mark.parametrize("count", [1, 5, 16])
def test_the_best_columns_in_order_ties_to_the_first(m, n, d, dtype, count):
    assert_equal(vectors(m, d, dtype), vectors(n, d, dtype, seed=1), count=count)


@pytest.mark.parametrize("count", [1, 3])
def test_every_row_but_itself(count):
    assert_equal(vectors(70, 20), None, count=count, exclude_self=True)


@pytest.mark.parametrize("row_offset", [0, 30, 59, 75])
def test_rows_of_one_rank_among_the_columns_of_all(row_offset):
    k = vectors(80, 20)
    assert_equal(k[row_offset : row_offset + 21], k, count=2, exclude_self=True, row_offset=row_offset)


def test_as_many_neighbors_as_there_are_other_rows():
    assert_equal(vectors(9, 5), None, count=8, exclude_self=True)
    assert_equal(vectors(2, 5), None, count=1, exclude_self=True)


def test_many_neighbors_take_the_chunked_form():
    assert_equal(vectors(20, 24), vectors(130, 24, seed=1), count=40)


def test_one_split_or_many_give_the_same(monkeypatch):
    q, k = vectors(9, 24), vectors(200, 24, seed=1)
    for programs in (1, 4, 1000):
        monkeypatch.setattr(triton, "PROGRAMS_PER_MULTIPROCESSOR", programs)
        assert_equal(q, k, count=4)


def test_all_products_equal_all_negative_and_infinite():
    ones = torch.ones(20, 8)
    assert_equal(ones, ones.clone(), count=3)
    assert_equal(ones, -torch.arange(1.0, 51.0)[:, None].expand(50, 8), count=3)
    far = torch.full((40, 8), -torch.inf)
    far[7] = 1.0
    assert_equal(ones, far, count=3)


def test_nan_is_larger_than_any_number():
    q, k = vectors(20, 24), vectors(100, 24, seed=1)
    k[50, 3] = k[77, 0] = float("nan")
    k[10] = torch.inf
    got = triton.nearest_neighbors(q.abs() + 1, k, count=3, exclude_self=False, row_offset=0)
    assert (got == torch.tensor([50, 77, 10])).all()
    q[4] = float("nan")
    assert_equal(q, vectors(100, 24, seed=1), count=3)


def test_random_vectors_find_what_float64_finds():
    generator = torch.Generator().manual_seed(3)
    q, k = torch.randn(30, 40, generator=generator), torch.randn(90, 40, generator=generator)
    got = triton.nearest_neighbors(q, k, count=5, exclude_self=False, row_offset=0)
    found = (q.double() @ k.double().T).gather(1, got)
    best = (q.double() @ k.double().T).topk(5).values
    assert (best - found).abs().max() <= 1e-5 and torch.equal(got[:, 0], (q @ k.T).argmax(1))
