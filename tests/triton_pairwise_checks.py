"""Statements about the pairwise Triton kernels; run by ``test_triton_interpreter.py`` under TRITON_INTERPRET=1.

Truth is ``reference.py`` in float64. The error allowed is relative to what the same reference makes in the inputs' own
dtype: at most twice that, plus 8 eps of the sum of the absolute values of the terms. Scratch and outputs are filled
with NaN before the kernels run, and inputs lie inside NaN, so a missing write or a stray read shows.
"""

from __future__ import annotations

import os

import pytest
import torch

assert os.environ.get("TRITON_INTERPRET") == "1", "run tests/test_triton_interpreter.py"

from harness import poisoned_outputs  # noqa: E402

from fastssl.benchmarks.pairwise_cases import Case, inside_nan, verify  # noqa: E402
from fastssl.kernels.pairwise.config import TILES  # noqa: E402
from fastssl.kernels.tiles import Tile  # noqa: E402
from fastssl.ops.pairwise import reference, triton  # noqa: E402

pytestmark = [
    # the interpreter computes in NumPy, which warns where the kernels rely on IEEE rules: log(0), 1/0, inf - inf
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Small tiles, so that small problems have many of them, of unequal sides where the kernel allows it.
SMALL_TILES = {
    "logsum": Tile(32, 16, 32, 4, 2),
    "symmetric": Tile(16, 16, 32, 4, 2),
    "gradient": Tile(16, 32, 0, 4, 2),
    "pair_weights": Tile(32, 16, 32, 4, 2),
    "bank": Tile(16, 32, 0, 4, 2),
    "sigmoid": Tile(16, 32, 0, 4, 2),
    "sigmoid_weights": Tile(32, 16, 32, 4, 2),
}


@pytest.fixture(autouse=True)
def small_tiles_and_poisoned_memory():
    with poisoned_outputs(), TILES.override(**SMALL_TILES):
        yield


def assert_accurate(case):
    verdict = verify(case, triton)
    assert verdict.worst <= 1, verdict


NT_XENT = {"positives": "pair", "exclude_self": True}


@pytest.mark.parametrize(
    "m, d, dtype",
    [
        *((54, 24, dtype) for dtype in DTYPES),
        (64, 64, torch.bfloat16),
        (2, 1, torch.float32),
        (34, 300, torch.float32),
        (34, 300, torch.float16),
    ],
)
def test_nt_xent(m, d, dtype):
    assert_accurate(Case(m=m, d=d, dtype=dtype, rules=NT_XENT))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nt_xent_with_the_scale_as_a_tensor(dtype):
    assert_accurate(Case(dtype=dtype, logit_scale=2.0, rules=NT_XENT))


def test_nt_xent_in_chunks_of_row_blocks(monkeypatch):
    monkeypatch.setattr(triton, "COLUMN_SUM_SLOTS", 3)
    monkeypatch.setattr(triton, "CHUNK_ELEMENTS", 1 << 11)
    assert_accurate(Case(m=150, rules=NT_XENT))


def test_full_rows_where_an_architecture_has_no_symmetric_form():
    with TILES.override(symmetric=None):
        assert_accurate(Case(rules=NT_XENT))


@pytest.mark.parametrize("positives", ["none", "diagonal", "pair", "key"])
@pytest.mark.parametrize("exclude_self, exclude_positives", [(False, False), (False, True), (True, False)])
def test_every_rule_on_a_rectangle(positives, exclude_self, exclude_positives):
    # Each kind of positives and each exclusion meets the fixed shift and the one that follows the data.
    online = exclude_self == (positives in ("none", "pair"))
    rules = {
        "positives": positives,
        "exclude_self": exclude_self,
        "exclude_positives": exclude_positives,
        "row_offset": 13,
        "col_offset": 4,
    }
    assert_accurate(
        Case(
            m=37, n=51, logit_scale=1.5 if online else None,
            weights=("row", "row_positive", "col", "col_positive"), rules=rules,
        )
    )  # fmt: skip


@pytest.mark.parametrize("dtype, positives", [(torch.bfloat16, "key"), (torch.float16, "diagonal")])
def test_16_bit_rectangle(dtype, positives):
    assert_accurate(
        Case(m=37, n=51, dtype=dtype, weights=("row", "row_positive", "col"), rules={"positives": positives})
    )


@pytest.mark.parametrize("positives", ["none", "diagonal", "pair", "key"])
@pytest.mark.parametrize("exclude_positives", [False, True])
def test_every_rule_on_a_square_of_the_same_rows(positives, exclude_positives):
    rules = {"positives": positives, "exclude_self": positives != "diagonal", "exclude_positives": exclude_positives}
    assert_accurate(Case(rules={**rules, "row_offset": 6, "col_offset": 6}))


@pytest.mark.parametrize("row_offset, col_offset", [(0, 200), (7, 7), (65, 0), (17, 16)])
@pytest.mark.parametrize("positives", ["diagonal", "pair"])
def test_global_offsets_that_fall_anywhere(row_offset, col_offset, positives):
    rules = {"positives": positives, "exclude_self": positives == "pair"}
    assert_accurate(
        Case(m=40, n=81, rules={**rules, "row_offset": row_offset, "col_offset": col_offset}, weights=("row", "col"))
    )


@pytest.mark.parametrize(
    "row_step, row_offset, dtype",
    [(2, 0, torch.float32), (2, 0, torch.float16), (2, 1, torch.bfloat16), (5, 3, torch.float32)],
)
def test_gradient_for_every_other_row(dtype, row_step, row_offset):
    case = Case(
        m=20, n=64, dtype=dtype, row_step=row_step, rules={**NT_XENT, "row_offset": row_offset},
        weights=("row", "row_positive", "col", "col_positive"), scale=2.0,
    )  # fmt: skip
    truth, _ = case.gradient(reference, torch.float64)
    eager, _ = case.gradient(reference, dtype)
    ours, _ = case.gradient(triton, dtype)
    terms, _ = case.gradient_terms()
    allowed = 2 * ((eager - truth).norm(dim=1) / terms[:, 0]).max() + max(1e-6, torch.finfo(dtype).eps)
    assert ((ours - truth).norm(dim=1) / terms[:, 0]).max() <= allowed


@pytest.mark.parametrize(
    "weights, logit_scale",
    [
        (("row",), None), (("row",), 1.5), (("col",), 1.5), (("row_positive",), None), (("col_positive",), 1.5),
        (("row", "col_positive"), None),
    ],
)  # fmt: skip
def test_missing_weights_mean_absent_terms(weights, logit_scale):
    assert_accurate(Case(m=40, n=33, weights=weights, logit_scale=logit_scale, rules={"positives": "diagonal"}))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("n", [None, 45])
def test_logits_of_ten_thousand_either_way(sign, n):
    case = Case(m=40, n=n, scale=1e4, rules={"normalize": False, "positives": "diagonal"})
    with torch.no_grad():
        direction = torch.ones(case.d) / case.d**0.5
        case.q.copy_(direction + 1e-4 * case.q)
        if case.k is not None:
            case.k.copy_(sign * direction + 1e-4 * case.k)
    truth, eager, ours = (
        case.logsum(backend, dtype)
        for backend, dtype in ((reference, torch.float64), (reference, torch.float32), (triton, torch.float32))
    )
    for true, near, got in zip(truth, eager, ours, strict=True):
        assert (got - true).abs().max() <= 2 * (near - true).abs().max() + 1e-6 * true.abs().max()
    truth, ours = case.gradient(reference, torch.float64)[0], case.gradient(triton, torch.float32)[0]
    # logits of 1e4 in float32 have an error of 1e-3, and so has every softmax
    assert (ours - truth).norm() <= 1e-2 * truth.norm()


@pytest.mark.parametrize(
    "dtype, logit_scale", [(torch.float32, None), (torch.float32, 1.0), (torch.bfloat16, 1.0), (torch.float16, None)]
)
def test_a_nan_row_reaches_every_log_sum_that_contains_it(dtype, logit_scale):
    case = Case(m=40, dtype=dtype, logit_scale=logit_scale, rules=NT_XENT)
    case.q[9] = float("nan")
    lse, positive = case.logsum(triton, dtype)
    assert lse.isnan().all()
    assert positive.isnan().nonzero().flatten().tolist() == [8, 9]
    assert case.gradient(triton, dtype)[0].isnan().all()


@pytest.mark.parametrize("logit_scale", [None, 1.0])
def test_a_nan_column_alone_in_a_tile_is_not_lost(logit_scale):
    case = Case(m=5, n=33, logit_scale=logit_scale)
    case.k[32] = float("nan")
    assert case.logsum(triton, torch.float32)[0].isnan().all()


def test_zero_rows_follow_f_normalize():
    case = Case(m=40, rules=NT_XENT)
    case.q[3] = 0.0
    case.q[7] = 1e-14
    assert_accurate(case)


def test_empty_sets():
    rules = {"positives": "key", "exclude_positives": True}
    case = Case(m=20, n=30, weights=("row", "row_positive"), rules=rules)
    case.row_key.zero_()
    case.col_key.zero_()
    lse, _ = case.logsum(triton, torch.float32)
    assert (lse == -torch.inf).all()
    assert case.gradient(triton, torch.float32)[0].isfinite().all()


@pytest.mark.parametrize("factor", [2.0**20, 2.0**-20])
def test_float16_gradient_does_not_overflow_or_vanish_with_the_incoming_gradient(factor):
    case = Case(m=64, dtype=torch.float16, rules=NT_XENT)
    plain, _ = case.gradient(triton, torch.float16)
    case.vectors = {name: vector * factor for name, vector in case.vectors.items()}
    case.q = inside_nan(case.q.float() * 16, torch.float16)  # a 16 times smaller gradient, to stay in range
    _, scaled = case.gradient(triton, torch.float16)
    case.vectors = {name: vector / factor for name, vector in case.vectors.items()}
    _, unscaled = case.gradient(triton, torch.float16)
    assert plain.isfinite().all()
    assert scaled == factor * unscaled != 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [29.0, 40.0])  # the fixed shift, and the one that follows the data
def test_a_pair_of_opposite_rows_under_a_loss_scaler(dtype, scale):
    # One image whose views are opposite: lse = -s, and the shift s - lse is as large as it gets. The softmax of the
    # only candidate is 1 whatever its logit, so the true gradient is 0.
    case = Case(m=2, dtype=dtype, scale=scale, rules=NT_XENT)
    with torch.no_grad():
        case.q[1] = -case.q[0]
    case.vectors["row"].fill_(65536.0)  # the first scale of torch.amp.GradScaler
    case.vectors["row_positive"].fill_(-65536.0)
    dq, dscale = case.gradient(triton, dtype)
    assert dq.isfinite().all() and dscale.isfinite()
    # Small against the terms, of which the softmax and the positive's weight cancel: a rounded cosine is off by eps.
    small = 4 * scale * torch.finfo(dtype).eps
    assert (dq.float().norm(dim=1) <= small * 2 * 65536.0 * scale / case.q.float().norm(dim=1)).all()
    assert dscale.abs() <= small * 4 * 65536.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_input_same_bits_and_inputs_untouched(dtype):
    case = Case(dtype=dtype, rules=NT_XENT)
    before = case.q.clone()
    first = *case.logsum(triton, dtype), *case.gradient(triton, dtype)
    second = *case.logsum(triton, dtype), *case.gradient(triton, dtype)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(case.q, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_with_their_gradients_are_the_references(dtype):
    """They are composed of the kernels above: what is checked is that they are put together. SigLIP has its own."""
    generator = torch.Generator().manual_seed(0)
    q, own, k = (torch.randn(n, 24, generator=generator).to(dtype) for n in (20, 20, 40))
    common = {"scale": 5.0, "normalize": True, "weight": 0.05, "gradient": True}
    key, weights = torch.arange(20) % 3, torch.rand(20, generator=generator)
    for name, inputs, rules in (
        ("weighted", (q, key, weights, -weights, None), {"positives": "key", "exclude_positives": False}),
        ("clip", (q, own, None), {"columns": True}),
        ("clip", (q, own, None), {"columns": False}),
        ("info_nce", (q, k, own, None, torch.tensor(0.5)), {"row_offset": 0}),
        ("info_nce", (q, k, None, None, None), {"row_offset": 17}),
        ("info_nce", (q, k, None, None, None), {"row_offset": 3, "scale": 40.0}),
        ("info_nce", (own, q, None, None, None), {"row_offset": 0}),
        ("info_nce", (q, k, None, key * 19 - 1, None), {"row_offset": 0}),
        *(
            ("siglip", (q, k, *numbers), {"row_offset": offset, "bias": -4.0, "columns": offset != 23})
            for numbers in ((None, None), (torch.tensor(1.5), torch.tensor(-1.0)))
            for offset in (0, 23, -3)
        ),
    ):
        wide = [x if x is None or x.dtype == torch.int64 else x.double() for x in inputs]
        settings = {**common, **rules}
        if name == "weighted":
            del settings["weight"]
        results, truth = (
            getattr(backend, name)(*x, **settings) for backend, x in ((triton, inputs), (reference, wide))
        )
        for got, want in zip(results, truth, strict=True):
            assert got.shape == want.shape
            if not want.numel():  # a gradient that is not wanted
                continue
            error = (got.double() - want).abs().max()
            assert error < (1e-5 if dtype == torch.float32 else 0.02) * want.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", [24, 300])
def test_siglip_in_splits_and_chunks(monkeypatch, dtype, d):
    """Tails on both sides, several row blocks and column tiles per program; and the loss alone."""
    monkeypatch.setattr(triton, "CHUNK_ELEMENTS", 1 << 11)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, d, generator=generator).to(dtype) for n in (70, 150))
    rules = {"scale": 20.0, "bias": -6.0, "normalize": True, "row_offset": 60, "weight": 0.5, "columns": True}
    results = triton.siglip(x, y, None, None, **rules, gradient=True)
    truth = reference.siglip(x.double(), y.double(), None, None, **rules, gradient=True)
    for got, want in zip(results, truth, strict=True):
        error = (got.double() - want).abs().max()
        assert error < (1e-5 if dtype == torch.float32 else 0.02) * want.abs().max()
    alone, *_ = triton.siglip(x, y, None, None, **rules, gradient=False)
    assert abs(alone - truth[0]) < (1e-5 if dtype == torch.float32 else 0.02) * truth[0]


@pytest.mark.parametrize("scale", [10.0, 60.0])
@pytest.mark.parametrize(("m", "n", "d"), [(1, 1, 5), (40, 700, 24), (33, 130, 200), (20, 90, 300)])
def test_a_bank_in_one_pass(m, n, d, scale):
    """Splits of the columns, tails on both sides, NaN, and one column that is the row's own: nothing else is left."""
    generator = torch.Generator().manual_seed(m)
    q, own, bank = (torch.randn(rows, d, generator=generator).bfloat16() for rows in (m, m, n))
    rules = {"scale": scale, "normalize": True, "weight": 1 / m, "gradient": True}
    wide = [x.double() for x in (q, bank, own)]
    index = torch.randint(-1, n + 1, (m,), generator=generator)  # at both ends: there is no such column
    ways = [(own, None), (None, index)]
    if n >= m:
        ways.append((None, None))
    for positive, places in ways:
        results = triton.info_nce(q, bank, positive, places, None, row_offset=0, **rules)
        truth = reference.info_nce(
            *wide[:2], None if positive is None else wide[2], places, None, row_offset=0, **rules
        )  # fmt: skip
        for got, want in zip(results, truth, strict=True):
            assert (got.double() - want).abs().max() <= 0.03 * want.abs().max() + 1e-6
    bank[-1, 0] = torch.nan
    loss, gradient, _ = triton.info_nce(q, bank, own, None, None, row_offset=0, **rules)
    assert loss.isnan() and gradient.isnan().any(1).all()
