"""NT-Xent's part of ``fastssl bench``: its truth, and baselines that are right."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastssl.benchmarks import cases, nt_xent, nt_xent_baselines, verify

CASE = cases.Case({"N": 24, "D": 16, "temperature": 0.2}, torch.float32, "cpu")


# With a temperature of 0.002 the log-sums cannot be taken from half of the matrix.
@pytest.mark.parametrize("temperature", [0.5, 0.01, 0.002])
@pytest.mark.parametrize("block", [1 << 22, 40])
def test_the_truth_is_eager_pytorch_in_float64(temperature, block, monkeypatch):
    monkeypatch.setitem(nt_xent.TRUTH_BLOCK, "cpu", block)
    case = cases.Case({"N": 9, "D": 7, "temperature": temperature}, torch.float32, "cpu")
    inputs = nt_xent.inputs(case, seed=1)
    wide = tuple(view.detach().double().requires_grad_() for view in inputs)
    results = cases.outputs(lambda z0, z1: nt_xent.eager(z0, z1, temperature), wide)
    for result, want in zip(results, nt_xent.truth(case, inputs, 0), strict=True):
        torch.testing.assert_close(want.value, result, rtol=1e-10, atol=1e-13)
        assert (want.terms >= want.value.abs() * (1 - 1e-5)).all()


@pytest.fixture
def sampled(monkeypatch):
    """A problem of which only some gradient rows are compared, and what is right."""
    monkeypatch.setattr(nt_xent, "EVERY_ROW", 64)
    monkeypatch.setattr(nt_xent, "SAMPLED_ROWS", 10)
    monkeypatch.setattr(nt_xent, "EDGE_ROWS", 2)
    case = cases.Case({"N": 50, "D": 8, "temperature": 0.2}, torch.float32, "cpu")
    inputs = nt_xent.inputs(case, seed=1)
    expected = nt_xent.truth(case, inputs, 7)
    right = cases.outputs(nt_xent.PROVIDERS["eager"].build(case), inputs)
    return case, inputs, expected, right


def test_sampled_rows_hold_the_same_truth_as_all_rows(sampled, monkeypatch):
    case, inputs, some, right = sampled
    monkeypatch.setattr(nt_xent, "EVERY_ROW", 100)
    every = nt_xent.truth(case, inputs, 7)
    torch.testing.assert_close(some[0].value, every[0].value)
    for few, all_of_them in zip(some[1:], every[1:], strict=True):
        assert all_of_them.rows is None and len(few.rows) < 20 and few.shape == all_of_them.value.shape
        torch.testing.assert_close(few.value, all_of_them.value[few.rows], rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(few.terms, all_of_them.terms[few.rows], rtol=1e-5, atol=0)
    assert not any(check.reason for check in verify.check(right, some, [0.0] * 3, case))


def test_sampled_rows_hold_the_ends_of_both_views_and_leave_no_gap(monkeypatch):
    monkeypatch.setattr(nt_xent, "EVERY_ROW", 100)
    n, m = 4099, 8198
    rows = nt_xent.compared_rows(n, seed=5)
    edge = nt_xent.EDGE_ROWS
    for start in (0, n - edge, n, m - edge):
        assert set(range(start, start + edge)) <= set(rows.tolist())
    assert rows.diff().min() > 0 and rows.diff().max() <= 2 * (m / nt_xent.SAMPLED_ROWS + 1)
    assert len(rows) <= nt_xent.SAMPLED_ROWS + 4 * edge
    assert torch.equal(rows, nt_xent.compared_rows(n, seed=5))
    assert not torch.equal(rows, nt_xent.compared_rows(n, seed=6))


def last_rows_missing(gradient):
    return torch.cat([gradient[:-1], gradient.new_zeros(1, gradient.shape[1])])


@pytest.mark.parametrize("view", [1, 2])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (torch.zeros_like, "is off by"),
        (lambda gradient: gradient.roll(1, 0), "is off by"),
        (lambda gradient: gradient.flip(1), "is off by"),
        (last_rows_missing, "is off by"),
        (lambda gradient: last_rows_missing(gradient.flip(0)).flip(0), "is off by"),
        (lambda gradient: gradient[:-1], "shape (49, 8) instead of (50, 8)"),
        (lambda gradient: None, "nothing instead of (50, 8)"),
        (lambda gradient: gradient * 1.001, "is off by"),
    ],
    ids=["zeros", "rolled rows", "flipped columns", "last row", "first row", "short", "missing", "biased"],
)
def test_wrong_gradients_are_refused_when_rows_are_sampled(sampled, view, change, says):
    case, _, expected, right = sampled
    assert verify.would_refuse_zeros(expected, [0.0] * 3, case)
    wrong = list(right)
    wrong[view] = change(right[view])
    checks = verify.check(wrong, expected, verify.errors(right, expected), case)
    assert [bool(check.reason) for check in checks] == [False, view == 1, view == 2]
    assert says in checks[view].reason


def test_a_number_that_is_not_finite_shows_in_rows_that_are_not_compared(sampled):
    case, _, expected, right = sampled
    unseen = next(row for row in range(50) if row not in expected[1].rows)
    right[1] = right[1].clone()
    right[1][unseen, 3] = torch.inf
    assert verify.check(right, expected, [0.0] * 3, case)[1].reason == "gradient of z0 is not finite"


# 36 bytes hold one block of float32 exponentials, or two of bfloat16; with a temperature of 0.01, log-sums are taken.
@pytest.mark.parametrize("kept_bytes", [0, 36, 1 << 20])
@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_chunked_baseline_is_right_across_block_borders(dtype, temperature, kept_bytes, monkeypatch):
    monkeypatch.setitem(nt_xent_baselines.BLOCK_ROWS, "cpu", 3)
    monkeypatch.setitem(nt_xent_baselines.KEPT_BYTES, "cpu", kept_bytes)
    assert_right("chunked", dtype, temperature)


@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_symmetric_baseline_is_right(dtype, temperature, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    assert_right("compiled-symmetric", dtype, temperature)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param("compiled-symmetric", torch.bfloat16, marks=pytest.mark.exhaustive),
        ("chunked-compiled", torch.float32),
    ],
)
def test_baselines_are_right_when_they_are_compiled(name, dtype, monkeypatch):
    monkeypatch.setitem(nt_xent_baselines.BLOCK_ROWS, "cpu", 8)
    monkeypatch.setitem(nt_xent_baselines.KEPT_BYTES, "cpu", 256)
    assert nt_xent.PROVIDERS[name].compiles
    assert_right(name, dtype, 0.1)


def assert_right(name, dtype, temperature):
    """The gate passes this provider, and would not pass everything."""
    case = cases.Case({"N": 11, "D": 20, "temperature": temperature}, dtype, "cpu")
    inputs = nt_xent.inputs(case, seed=2)
    expected = nt_xent.truth(case, inputs, 0)
    eager = verify.errors(cases.outputs(nt_xent.PROVIDERS["eager"].build(case), inputs), expected)
    assert verify.would_refuse_zeros(expected, eager, case)
    for check in verify.check(cases.outputs(nt_xent.PROVIDERS[name].build(case), inputs), expected, eager, case):
        assert not check.reason, check


def test_pytorch_metric_learning_is_not_tried_where_its_cube_is_too_large():
    pytest.importorskip("pytorch_metric_learning")
    with pytest.raises(cases.Unavailable, match=r"O\(N\^3\)"):
        nt_xent.PROVIDERS["pytorch-metric-learning"].build(dataclasses.replace(CASE, sizes={"N": 512}))


@pytest.mark.parametrize(("device", "backward"), [("cpu", 3), ("cuda", 4)])
def test_the_work_of_the_passes_adds_up(device, backward):
    case = cases.Case({"N": 10, "D": 3, "temperature": 0.1}, torch.bfloat16, device)
    forward = 20 * 20 * 3
    work = {which: nt_xent.work(case, which) for which in cases.PASSES}
    assert work["forward"] == cases.Work(forward, 20 * 3 * 2)
    assert work["backward"].flops == backward * forward
    assert work["both"].flops == work["forward"].flops + work["backward"].flops
    assert work["both"].bytes == work["forward"].bytes + work["backward"].bytes
