"""The nearest-neighbour operator, on every backend that this machine has."""

from __future__ import annotations

import pytest
import torch
from harness import BACKENDS, DTYPES, LargestTensor, in_guard_band, poisoned_outputs, serving

import fastssl
from fastssl import _extension
from fastssl.ops import registry
from fastssl.ops.neighbors import chunked, reference

NAN, INF = float("nan"), float("inf")


def nearest(q, k=None, *, count=1, exclude_self=False, row_offset=0):
    return torch.ops.fastssl.nearest_neighbors(
        q, k, count=count, exclude_self=exclude_self, row_offset=row_offset, backend=fastssl.backends.forced()
    )


def defined(q, k=None, *, count=1, exclude_self=False, row_offset=0):
    """The definition, in float64."""
    k = None if k is None else k.double()
    return reference.nearest_neighbors(
        q.double(), k, count=count, exclude_self=exclude_self, row_offset=row_offset
    )  # fmt: skip


def random(*shape, dtype=torch.float32, device="cpu", seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).to(device)


def integers(*shape, dtype=torch.float32, device="cpu", seed=0):
    """Small integers: products are exact in every dtype, and many are equal."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device)


def release_workspaces():
    if (kernels := _extension.load()) is not None:
        kernels.release_workspaces()


def workspace_bytes():
    """What the C++ kernels hold; 0 without them."""
    kernels = _extension.load()
    return 0 if kernels is None else kernels.info()["workspace_bytes"]


def assert_nearest(found, q, k, *, exclude_self=False, row_offset=0):
    """The products at ``found`` are the largest, in order, up to the rounding that eager PyTorch shows."""
    products = q.double() @ k.double().T  # [M, N]
    wide = q if q.dtype == torch.float64 else q.float()
    eager = wide @ k.to(wide.dtype).T
    terms = q.double().abs() @ k.double().abs().T
    error = 2 * (eager.double() - products).abs().max() + 8 * torch.finfo(wide.dtype).eps * terms.max()
    row = torch.arange(len(q), device=q.device)
    if exclude_self:
        own = row + row_offset
        products[row[own < len(k)], own[own < len(k)]] = -INF
        assert not (found == own[:, None]).any()
    best = products.topk(found.shape[1], dim=1).values
    assert ((products.gather(1, found) - best).abs() <= 2 * error).all()  # two products with an error each
    assert (found.sort(1).values.diff(dim=1) > 0).all(), "a column was found twice"
    assert (best[:, 0] - products.nan_to_num(neginf=0.0).mean(1) > 100 * error).any(), "any column would pass"


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize(
    ("rows", "columns", "dim", "count"),
    [
        (1, 2, 3, 1),
        (33, 97, 7, 3),
        (97, 200, 64, 1),
        (130, 96, 33, 20),
        (99, 130, 300, 4),
        (5, 3000, 16, 200),
        (200, 700, 40, 5),
    ],
)
def test_finds_the_largest_products(backend, device, dtype, rows, columns, dim, count):
    with serving(backend, device, dtype, "nearest_neighbors"):
        q = random(rows, dim, dtype=dtype, device=device, seed=1)
        k = random(columns, dim, dtype=dtype, device=device, seed=2)
        with poisoned_outputs():
            assert_nearest(nearest(q, k, count=count), q, k)
            if count < rows:
                among_themselves = nearest(q, count=count, exclude_self=True)
                assert_nearest(among_themselves, q, q, exclude_self=True)
            shifted = nearest(q, k, count=count, exclude_self=True, row_offset=columns // 2)
            assert_nearest(shifted, q, k, exclude_self=True, row_offset=columns // 2)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 7, 150])
def test_equal_products_come_in_the_order_of_their_columns(backend, device, dtype, count):
    with serving(backend, device, dtype, "nearest_neighbors"):
        q = integers(200, 5, dtype=dtype, device=device, seed=1)
        k = integers(1000, 5, dtype=dtype, device=device, seed=2)
        for rows, rules in ((q, {}), (q, {"exclude_self": True, "row_offset": 900}), (q[:3], {})):
            assert torch.equal(nearest(rows, k, count=count, **rules), defined(rows, k, count=count, **rules))
        assert torch.equal(nearest(q, count=count, exclude_self=True), defined(q, count=count, exclude_self=True))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("exclude_self", [False, True])
def test_every_column_can_be_asked_for(backend, device, exclude_self):
    with serving(backend, device, operation="nearest_neighbors"):
        q = integers(150, 6, device=device)
        rules = {"count": 150 - exclude_self, "exclude_self": exclude_self}
        assert torch.equal(nearest(q, **rules), defined(q, **rules))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_exclusion_beyond_the_columns_leaves_nothing_out(backend, device):
    with serving(backend, device, operation="nearest_neighbors"):
        q, k = integers(40, 4, device=device, seed=1), integers(60, 4, device=device, seed=2)
        expected = nearest(q, k, count=3)
        for row_offset in (60, 1 << 31, 1 << 40):
            assert torch.equal(nearest(q, k, count=3, exclude_self=True, row_offset=row_offset), expected)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 3, 90])
def test_nan_is_larger_than_any_number(backend, device, dtype, count):
    """As in ``torch.topk``, and all NaN are equal. Minus infinity is a number, and comes before an excluded column."""
    with serving(backend, device, dtype, "nearest_neighbors"):
        q, k = integers(50, 4, dtype=dtype, device=device, seed=1), integers(100, 4, dtype=dtype, device=device, seed=2)
        q[:, 0] = 1
        k[[20, 70, 98], 2] = NAN
        k[5, 0], k[11, 0], k[12, 0] = INF, -INF, -INF
        q[7] = NAN
        for rules in ({}, {"exclude_self": True, "row_offset": 11}):
            found = nearest(q, k, count=count, **rules)
            assert torch.equal(found, defined(q, k, count=count, **rules))
        assert nearest(q, k, count=3)[0].tolist() == [20, 70, 98]
        assert nearest(q, k, count=2)[7].tolist() == [0, 1]
        lowest = torch.full((4, 1), -INF, device=device, dtype=dtype)
        ones = torch.ones(4, 1, device=device, dtype=dtype)
        found = nearest(ones, lowest, count=3, exclude_self=True)
        assert found.tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_both_zeros_are_equal(backend, device):
    with serving(backend, device, operation="nearest_neighbors"):
        k = torch.tensor([[-0.0], [0.0], [-0.0], [0.0]], device=device)
        assert nearest(torch.ones(1, 1, device=device), k, count=4).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_float16_products_are_added_up_in_float32(backend, device):
    with serving(backend, device, torch.float16, "nearest_neighbors"):
        k = torch.full((4, 64), 40.0, dtype=torch.float16, device=device)  # products of 102400 and more
        k[2, 0], k[1, 0] = 42.0, 41.0
        assert nearest(k[:1], k, count=4).tolist() == [[2, 1, 0, 3]]


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_reads_views_of_any_stride_and_nothing_around_them(backend, device, dtype):
    with serving(backend, device, dtype, "nearest_neighbors"):
        q, k = (random(n, 19, dtype=dtype, device=device, seed=n) for n in (50, 110))
        expected = nearest(q, k, count=3)
        for a, b in (
            (in_guard_band(q), in_guard_band(k, band=3)),
            (q.T.contiguous().T, k.repeat_interleave(2, 1)[:, ::2]),
            (q.repeat_interleave(2, 0)[::2], k[None].expand(2, -1, -1)[1]),
        ):
            assert torch.equal(nearest(a, b, count=3), expected)
        alone = nearest(q, count=3, exclude_self=True)
        assert torch.equal(nearest(in_guard_band(q), count=3, exclude_self=True), alone)
        assert alone.is_contiguous() and alone.dtype == torch.int64


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_stay_as_they_were_and_the_same_input_gives_the_same_bits(backend, device, dtype):
    with serving(backend, device, dtype, "nearest_neighbors"):
        q = random(500, 48, dtype=dtype, device=device)
        before = q.clone()
        runs = [nearest(q, count=9, exclude_self=True) for _ in range(3)]
        assert all(torch.equal(run, runs[0]) for run in runs) and torch.equal(q, before)


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
@pytest.mark.parametrize(("rows", "columns"), [(3, 4000), (300, 900)])
def test_any_number_of_threads_finds_the_same(threads, rows, columns):
    with serving("cpp", "cpu", operation="nearest_neighbors"):
        q, k = integers(rows, 20, seed=1), integers(columns, 20, seed=2)
        expected, before = defined(q, k, count=30), torch.get_num_threads()
        try:
            torch.set_num_threads(threads)
            for _ in range(3):
                assert torch.equal(nearest(q, k, count=30), expected)
        finally:
            torch.set_num_threads(before)


def test_chunked_blocks_of_rows_join_up(monkeypatch):
    monkeypatch.setattr(chunked, "BLOCK_PRODUCTS", 700)
    with fastssl.backend("chunked"):
        q, k = integers(50, 4, seed=1), integers(60, 4, seed=2)
        for rules in ({}, {"exclude_self": True, "row_offset": 30}):
            assert torch.equal(nearest(q, k, count=4, **rules), defined(q, k, count=4, **rules))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_the_matrix_of_products_never_exists(backend, device, monkeypatch):
    monkeypatch.setattr(chunked, "BLOCK_PRODUCTS", 3000)
    with serving(backend, device, operation="nearest_neighbors"):
        q, k = random(400, 8, device=device, seed=1), random(3000, 8, device=device, seed=2)
        module = registry.choose("nearest_neighbors", device, q.dtype, backend)
        release_workspaces()
        with LargestTensor() as seen:
            module.nearest_neighbors(q, k, count=20, exclude_self=False, row_offset=0)
        assert 400 * 20 <= seen.numbers <= 3000 * 8
        assert workspace_bytes() < 400 * 3000 * 4 / 2


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_opcheck_and_no_gradient(backend, device):
    with serving(backend, device, operation="nearest_neighbors"):
        rules = {"count": 2, "exclude_self": True, "row_offset": 1, "backend": backend}
        q, k = (random(n, 5, device=device, seed=n).requires_grad_() for n in (6, 8))
        for columns in (None, k):
            torch.library.opcheck(torch.ops.fastssl.nearest_neighbors.default, (q, columns), rules)
        assert not nearest(q, k).requires_grad


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_compiles_without_a_graph_break(backend, device):
    with serving(backend, device, operation="nearest_neighbors"):
        q, k = integers(10, 4, device=device, seed=1), integers(30, 4, device=device, seed=2)
        compiled = torch.compile(lambda q, k: nearest(q, k, count=3) + 1, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(q, k), defined(q, k, count=3) + 1)


@pytest.mark.parametrize(
    ("q", "k", "rules", "error", "message"),
    [
        (torch.zeros(4), None, {}, ValueError, r"q must have shape \[M, D\], got \(4,\)"),
        (torch.zeros(4, 2), torch.zeros(4, 3), {}, ValueError, "same D, got shapes"),
        (torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.float64), {}, ValueError, "same dtype"),
        (torch.zeros(4, 2, dtype=torch.int64), None, {}, TypeError, "must have one of the dtypes"),
        (torch.zeros(4, 2), torch.zeros(0, 2), {}, ValueError, "k must not be empty"),
        (torch.zeros(4, 2), None, {"count": 0}, ValueError, "at most the number of columns, 4, got 0"),
        (torch.zeros(4, 2), None, {"count": 5}, ValueError, "at most the number of columns, 4, got 5"),
        (torch.zeros(4, 2), None, {"count": 4, "exclude_self": True}, ValueError, "other rows, 3, got 4"),
        (torch.zeros(1, 2), None, {"exclude_self": True}, ValueError, "other rows, 0, got 1"),
        (torch.zeros(4, 2), None, {"row_offset": -1}, ValueError, "row_offset must be at least 0, got -1"),
    ],
)
def test_bad_input_is_named(q, k, rules, error, message):
    with pytest.raises(error, match=message):
        nearest(q, k, **rules)
