"""The pairwise log-sum-exp operators, on every backend that this machine has, against float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from harness import BACKENDS, DTYPES, assert_as_accurate_as_eager, in_guard_band, poisoned_outputs, serving

import fastssl
from fastssl import functional
from fastssl.ops.pairwise import composed, cpp, reference

RULES = {
    "scale": 10.0,
    "normalize": True,
    "positives": "none",
    "exclude_self": False,
    "exclude_positives": False,
    "row_offset": 0,
    "col_offset": 0,
}
NT_XENT = {**RULES, "positives": "pair", "exclude_self": True}

# Of which inputs a gradient is wanted changes nothing in how an operator is registered: the other cases.
REGISTERED_ALIKE = [pytest.param((x, x), marks=pytest.mark.exhaustive) for x in (True, False)]


def forward(q, k=None, logit_scale=None, row_key=None, col_key=None, **rules):
    return torch.ops.fastssl.pairwise_logsumexp(
        q, k, logit_scale, row_key, col_key, **{**RULES, **rules}, shared_by="", first_row=0, row_stride=1,
        backend=fastssl.backends.forced(),
    )  # fmt: skip


def gradient(q, k, logit_scale, of_rows, of_columns, row_key=None, col_key=None, row_step=1, **rules):
    return torch.ops.fastssl.pairwise_logsumexp_grad(
        q, k, logit_scale, *of_rows, *of_columns, row_key, col_key, **{**RULES, **rules}, row_step=row_step,
        backend=fastssl.backends.forced(),
    )  # fmt: skip


def keys(rows, columns, device):
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.randint(4, (n,), generator=generator).to(device) for n in (rows, columns))


def random(*shape, dtype=torch.float32, device="cpu", seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).to(device)


def check(
    q, k=None, logit_scale=None, *, one_sided=False, row_step=1, row_key=None, col_key=None, kernel_sees=None, **rules
):
    """Both operators against the reference in float64, and eager PyTorch as the yardstick.

    ``kernel_sees`` changes q and k for the kernel alone: a test that the yardstick notices.
    """
    columns = q if k is None else k
    m, n = q.shape[0], columns.shape[0]
    rules = {**RULES, **rules}
    kernel_sees = kernel_sees or (lambda q, k: (q, k))

    def wide(tensor):
        return None if tensor is None else tensor.double()

    s = rules["scale"] * (1.0 if logit_scale is None else logit_scale.double().item())
    row_weight, row_positive_weight = (random(m, device=q.device, seed=seed) for seed in (11, 12))
    col_weight, col_positive_weight = (random(n, device=q.device, seed=seed) for seed in (13, 14))
    longest = 1 if rules["normalize"] else columns.double().norm(dim=1).max().item()
    col_lse = random(n, device=q.device, seed=15).abs() + s * longest
    if rules["positives"] == "none":
        row_positive_weight = col_positive_weight = None
    key_arguments = {"row_key": row_key, "col_key": col_key}

    with poisoned_outputs():
        lse, positive = forward(*kernel_sees(q, k), logit_scale, **key_arguments, **rules)
    outside = (lse, positive)
    eager = reference.pairwise_logsumexp(q, k, logit_scale, **key_arguments, **rules)
    truth = reference.pairwise_logsumexp(wide(q), wide(k), wide(logit_scale), **key_arguments, **rules)
    largest = truth[0].abs() + truth[1].abs() + s * (1 if rules["normalize"] else 0) + 1
    if row_step == 1:
        for name, a, e, t in zip(("log-sum", "positive"), outside, eager, truth, strict=True):
            assert_as_accurate_as_eager(a, e, t, largest, name, refuses_zeros=name == "log-sum")

    # The gradient takes its log-sums from outside, so all three get the same ones.
    def given(*vectors):
        return tuple(None if vector is None else vector.to(lse.dtype) for vector in vectors)

    of_rows = given(truth[0], row_weight, row_positive_weight)
    of_columns = given(col_lse, col_weight, col_positive_weight) if one_sided else (None, None, None)
    with poisoned_outputs():
        dq, dscale = gradient(
            *kernel_sees(q, k), logit_scale, of_rows, of_columns, row_step=row_step, **key_arguments, **rules
        )
    arguments = {**key_arguments, **rules, "row_step": row_step}
    eager = reference.pairwise_logsumexp_grad(q, k, logit_scale, *of_rows, *of_columns, **arguments)
    truth = reference.pairwise_logsumexp_grad(
        wide(q), wide(k), wide(logit_scale), *map(wide, of_rows), *map(wide, of_columns), **arguments
    )
    terms = sum_of_absolute_terms(wide(q), wide(k), wide(logit_scale), of_rows, of_columns, arguments)
    # An exponential inherits the rounding of its argument, x - lse.
    terms = terms * (1 + truth_size(wide(q), wide(k), s, rules))
    assert_as_accurate_as_eager(dq, eager[0], truth[0], terms, "gradient")
    # The gradient of the scale adds up G_ij c_ij over all pairs; an element of dq is s sum_j G_ij k_j over its length.
    length = q.double().norm(dim=1, keepdim=True) if rules["normalize"] else 1.0
    scale_terms = (terms * length / s * (q.double() / length).abs()).sum().reshape(1)
    scale_terms *= max(1.0, torch.finfo(q.dtype).eps / (16 * torch.finfo(torch.float32).eps))  # G in 16 bits
    of_scale = (t.reshape(1) for t in (dscale, eager[1], truth[1]))
    assert_as_accurate_as_eager(*of_scale, scale_terms, "gradient of the scale", refuses_zeros=False)


def truth_size(q, k, s, rules):
    """Largest |x - lse| that a pair which matters can have, in units of which float32 rounds."""
    if rules["normalize"]:
        return min(s, 20.0)
    return min(s * (q @ (q if k is None else k).T).abs().max().item(), 20.0)


def sum_of_absolute_terms(q, k, logit_scale, of_rows, of_columns, arguments):
    """Per element of dq: s sum_j |G_ij| |k_j|, divided by the row's length when it is normalised."""

    def absolute(values):
        return tuple(None if v is None else (v.double() if i == 0 else v.double().abs()) for i, v in enumerate(values))

    columns = q if k is None else k
    arguments = dict(arguments)
    if arguments.pop("normalize"):
        unit_q, unit_k = (torch.nn.functional.normalize(t, dim=1) for t in (q, columns))
        length = q.norm(dim=1, keepdim=True).clamp_min(1e-12)
    else:
        unit_q, unit_k, length = q, columns, 1.0
    of_rows, of_columns = absolute(of_rows), absolute(of_columns)
    if k is None and of_columns[0] is None:
        of_columns = of_rows
    # |G| from the reference: gradient against columns that are the unit vectors would cost N x N; instead G itself
    s = arguments["scale"] * (1.0 if logit_scale is None else logit_scale)
    logits = s * unit_q @ unit_k.T
    matched, excluded = reference._rules(
        q, columns, arguments["positives"], arguments["row_key"], arguments["col_key"], arguments["exclude_self"],
        arguments["row_offset"], arguments["col_offset"], arguments["row_step"],
    )  # fmt: skip
    out = excluded | matched if arguments["exclude_positives"] else excluded
    g = torch.zeros_like(logits)
    if of_rows[0] is not None:
        g += (of_rows[1][:, None] * (logits - of_rows[0][:, None]).exp()).masked_fill(out, 0.0)
    if of_columns[0] is not None:
        g += (of_columns[1][None] * (logits - of_columns[0][None]).exp()).masked_fill(out, 0.0)
    if of_rows[2] is not None:
        g += matched * of_rows[2][:, None]
    if of_columns[2] is not None:
        g += matched * of_columns[2][None]
    return s * (g @ unit_k.abs() + (g @ unit_k.abs() * unit_q.abs()).sum(1, keepdim=True) * unit_q.abs()) / length


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "dim"), [(2, 1), (6, 7), (64, 33), (130, 300), (200, 128), (514, 64)])
def test_nt_xent_rules_match_float64(backend, device, dtype, rows, dim):
    with serving(backend, device, dtype):
        check(random(rows, dim, dtype=dtype, device=device), **NT_XENT)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "wrong",
    [
        lambda q, k: (q[:, :-1], k[:, :-1]),
        lambda q, k: (q, k[:-2]),
        lambda q, k: (q, k.roll(1, 0)),
        lambda q, k: (q * torch.cat((torch.ones(len(q) - 1), torch.zeros(1))).to(q)[:, None], k),
    ],
    ids=["last dimension", "last two columns", "other columns", "last row"],
)
def test_the_yardstick_notices_what_a_kernel_may_skip(backend, device, dtype, wrong):
    with serving(backend, device, dtype):
        q, k = (random(n, 64, dtype=dtype, device=device, seed=n) for n in (200, 210))
        check(q, k, positives="diagonal")
        with pytest.raises((AssertionError, RuntimeError)):
            check(q, k, positives="diagonal", kernel_sees=wrong)


RULE_CASES = [
    {"positives": p, "exclude_self": s, "exclude_positives": e, "normalize": z}
    for p, s, e, z in itertools.product(
        ("none", "diagonal", "pair", "key"), (False, True), (False, True), (False, True)
    )
    if not (e and p == "none")
]


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize(
    "rules", RULE_CASES, ids=lambda r: "-".join(str(int(v)) if isinstance(v, bool) else v for v in r.values())
)
def test_every_rule_matches_float64(backend, device, rules):
    rules = {**rules, "scale": 10.0 if rules["normalize"] else 0.3}
    with serving(backend, device):
        q, k = random(97, 20, device=device, seed=1), random(130, 20, device=device, seed=2)
        row_key, col_key = keys(97, 130, device) if rules["positives"] == "key" else (None, None)
        check(q, row_key=row_key, col_key=row_key, **rules)
        check(q, k, row_key=row_key, col_key=col_key, **rules)
        check(q, k, row_key=row_key, col_key=col_key, one_sided=True, row_offset=30, col_offset=7, **rules)
        check(q, k, row_key=row_key, col_key=col_key, one_sided=True, row_step=2, row_offset=1, **rules)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tensor_scale_and_rectangles_match_float64(backend, device, dtype):
    with serving(backend, device, dtype):
        q, k = random(33, 100, dtype=dtype, device=device, seed=1), random(257, 100, dtype=dtype, device=device, seed=2)
        check(q, k, torch.tensor(14.3, device=device), scale=1.0, positives="diagonal")
        check(q, None, torch.tensor(100.0, device=device), scale=1.0, positives="pair", exclude_self=True)
        check(q, k, positives="diagonal", scale=60.0, one_sided=True)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_logits_of_any_size(backend, device, shift):
    with serving(backend, device):
        q, k = random(40, 8, device=device, seed=1), random(70, 8, device=device, seed=2)
        q[:, 0], k[:, 0] = 100.0, shift / 100.0  # every logit is near the shift
        check(q, k, normalize=False, scale=1.0, positives="diagonal")
        q[::2] *= 0.01  # rows of very different size see very different logits
        check(q, None, normalize=False, scale=1.0, positives="pair", exclude_self=True)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_a_row_without_columns_has_log_sum_minus_infinity_and_no_gradient(backend, device):
    with serving(backend, device):
        q = random(1, 4, device=device)
        lse, positive = forward(q, exclude_self=True)
        assert lse.item() == -torch.inf and positive.item() == 0
        dq, dscale = gradient(q, None, None, (lse, torch.ones_like(lse), None), (None,) * 3, exclude_self=True)
        assert (dq == 0).all() and dscale == 0


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_reads_nothing_around_its_inputs(backend, device, dtype):
    with serving(backend, device, dtype):
        q, k = random(50, 19, dtype=dtype, device=device, seed=1), random(70, 19, dtype=dtype, device=device, seed=2)
        weight = torch.ones(50, device=device, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        for columns in (None, k):
            plain = forward(q, columns, positives="pair", exclude_self=True)
            guarded = forward(
                in_guard_band(q),
                None if columns is None else in_guard_band(columns),
                positives="pair",
                exclude_self=True,
            )
            assert all(torch.equal(a, b) for a, b in zip(plain, guarded, strict=True))
            of_rows = (plain[0], weight, -weight)
            plain = gradient(q, columns, None, of_rows, (None,) * 3, positives="pair", exclude_self=True)
            guarded = gradient(
                in_guard_band(q), None if columns is None else in_guard_band(columns), None, of_rows, (None,) * 3,
                positives="pair", exclude_self=True,
            )  # fmt: skip
            assert all(torch.equal(a, b) for a, b in zip(plain, guarded, strict=True))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_any_stride_gives_the_same_bits(backend, device):
    with serving(backend, device):
        q = random(30, 12, device=device)
        expected = forward(q, **NT_XENT)
        for view in (q.T.contiguous().T, q.repeat_interleave(3, 0)[::3], q.repeat_interleave(2, 1)[:, ::2]):
            assert torch.equal(view, q) and not view.is_contiguous()
            assert all(torch.equal(a, b) for a, b in zip(forward(view, **NT_XENT), expected, strict=True))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_input_gives_the_same_bits(backend, device, dtype):
    with serving(backend, device, dtype):
        q = random(1000, 96, dtype=dtype, device=device)
        weight = torch.rand(1000, device=device)
        runs = []
        for _ in range(3):
            lse, positive = forward(q, **NT_XENT)
            runs.append((lse, positive, *gradient(q, None, None, (lse, weight, -weight), (None,) * 3, **NT_XENT)))
        assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_in_nan_out(backend, device, normalize, bad):
    with serving(backend, device):
        q = random(200, 16, device=device)
        q[150, 3] = bad
        before = q.clone()
        rules = {**NT_XENT, "normalize": normalize}
        lse, positive = forward(q, **rules)
        if bad != bad or normalize:  # an infinity is NaN once it is normalised
            assert lse.isnan().all() and positive.isnan().nonzero().flatten().tolist() == [150, 151]
        weight = torch.ones_like(lse)
        dq, dscale = gradient(q, None, None, (lse, weight, -weight), (None,) * 3, **rules)
        assert not dq[150].isfinite().any() and not dscale.isfinite()
        assert torch.equal(q.nan_to_num(7.0), before.nan_to_num(7.0))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_zeros_and_duplicates_stay_finite(backend, device, dtype):
    with serving(backend, device, dtype):
        q = random(20, 8, dtype=dtype, device=device)
        q[4] = 0
        q[5:12] = q[5]
        lse, positive = forward(q, **NT_XENT)
        assert lse.isfinite().all() and positive.isfinite().all() and positive[4] == 0
        weight = torch.full_like(lse, 0.05)
        dq, _ = gradient(q, None, None, (lse, weight, -weight), (None,) * 3, **NT_XENT)
        assert dq[torch.arange(20) != 4].isfinite().all()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_float16_rows_without_normalisation_are_added_up_in_float32(backend, device):
    with serving(backend, device, torch.float16):
        q = torch.full((5, 64), 40.0, dtype=torch.float16, device=device)  # dot products of 102400
        lse, _ = forward(q, normalize=False, scale=0.01)
        torch.testing.assert_close(lse, torch.full_like(lse, 1024.0 + math.log(5)))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_blocks_of_columns_add_up_to_the_whole(backend, device):
    """What a ring of ranks does: log-sums joined, gradients from log-sums that came from elsewhere added."""
    with serving(backend, device):
        q, k = random(60, 24, device=device, seed=1), random(110, 24, device=device, seed=2)
        rules = {"positives": "diagonal", "row_offset": 20}
        whole, positive = forward(q, k, **rules)
        parts = [(k[a:b], a) for a, b in ((0, 37), (37, 64), (64, 110))]
        pieces = [forward(q, part, col_offset=start, **rules) for part, start in parts]
        torch.testing.assert_close(torch.stack([p[0] for p in pieces]).logsumexp(0), whole)
        torch.testing.assert_close(sum(p[1] for p in pieces), positive)
        of_rows = (whole, torch.rand(60, device=device), torch.rand(60, device=device))
        expected, _ = gradient(q, k, None, of_rows, (None,) * 3, **rules)
        # float32 rounding through the normalisation: compare before it, on unit rows
        total = sum(
            gradient(q, part, None, of_rows, (None,) * 3, col_offset=start, **rules)[0] for part, start in parts
        )
        torch.testing.assert_close(total, expected)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_more_than_two_to_the_31_pairs(backend, device):
    """50 000^2 pairs of five distinct rows: the log-sums follow from counting."""
    if (backend, device) == ("chunked", "cpu"):
        pytest.skip("minutes in plain PyTorch")
    with serving(backend, device):
        m = 50_000
        distinct = torch.nn.functional.normalize(random(5, 4, device=device), dim=1)
        q = distinct.repeat(m // 5, 1)
        lse, _ = forward(q, exclude_self=True)
        logits = 10.0 * (distinct.double() @ distinct.double().T)
        counts = torch.full((5, 5), m // 5, dtype=torch.float64, device=device) - torch.eye(5, device=device)
        expected = (logits + counts.log()).logsumexp(1).repeat(m // 5)
        torch.testing.assert_close(lse.double(), expected, rtol=1e-5, atol=1e-5)
        rows = slice(m - 7, m)  # the last seven: one of each kind, and two more
        ones = torch.ones(7, device=device)
        rules = {"exclude_self": True, "row_offset": m - 7}
        dq, _ = gradient(q[rows], q, None, (lse[rows], ones, None), (None,) * 3, **rules)
        probability = (logits + counts.log()).softmax(1)
        toward = 10.0 * probability @ distinct.double()
        radial = (toward * distinct.double()).sum(1, keepdim=True)
        expected = (toward - radial * distinct.double()).repeat(2, 1)[3:]
        torch.testing.assert_close(dq.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("backend", "device"), [b for b in BACKENDS if b[0] != "triton"])
@pytest.mark.parametrize("rules", RULE_CASES[::3], ids=str)
def test_gradcheck(backend, device, rules):
    with serving(backend, device, torch.float64):
        rules = {**rules, "scale": 2.0}
        q, k = (random(n, 3, dtype=torch.float64, device=device, seed=n).requires_grad_() for n in (6, 7))
        t = torch.tensor(1.3, dtype=torch.float64, device=device, requires_grad=True)
        row_key, col_key = keys(6, 7, device) if rules["positives"] == "key" else (None, None)
        assert torch.autograd.gradcheck(
            lambda *a: functional.pairwise_logsumexp(*a, row_key=row_key, col_key=col_key, **rules), (q, k, t)
        )
        assert torch.autograd.gradcheck(
            lambda q, t: functional.pairwise_logsumexp(q, None, t, row_key=row_key, **rules), (q, t)
        )


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("needs", [(True, False), (False, True), *REGISTERED_ALIKE])
def test_opcheck(backend, device, needs):
    with serving(backend, device):
        q, k = (random(n, 8, device=device).requires_grad_(need) for n, need in zip((6, 9), needs, strict=True))
        extra = {"shared_by": "", "first_row": 0, "row_stride": 1, "backend": backend}
        for columns in (None, k):
            torch.library.opcheck(
                torch.ops.fastssl.pairwise_logsumexp.default, (q, columns, None, None, None), {**NT_XENT, **extra}
            )
        lse = torch.rand(6, device=device)
        torch.library.opcheck(
            torch.ops.fastssl.pairwise_logsumexp_grad.default,
            (q.detach(), k.detach(), None, lse, lse, lse, None, None, None, None, None),
            {**NT_XENT, "row_step": 1, "backend": backend},
        )


# ------------------------------------------------------------------------------- nt_xent: loss and gradient at once


def both(z0, z1, logit_scale=None, *, scale=10.0, normalize=True, weight=1.0, gradient=True):
    return torch.ops.fastssl.nt_xent(
        z0, z1, logit_scale, scale=scale, normalize=normalize, weight=weight, gradient=gradient,
        backend=fastssl.backends.forced(),
    )  # fmt: skip


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("n", "dim", "scale"),
    [(1, 4, 10.0), (3, 7, 10.0), (48, 33, 10.0), (97, 128, 25.0), (100, 300, 10.0), (257, 64, 10.0), (60, 32, 80.0)],
)
def test_nt_xent_matches_float64(backend, device, dtype, n, dim, scale):
    with serving(backend, device, dtype):
        z0 = random(n, dim, dtype=dtype, device=device, seed=1)
        z1 = z0 + 2 * random(n, dim, dtype=dtype, device=device, seed=2)
        with poisoned_outputs():
            results = both(z0, z1, scale=scale, weight=0.3)
        rules = {"scale": scale, "normalize": True, "weight": 0.3, "gradient": True}
        eager = reference.nt_xent(z0, z1, None, **rules)
        truth = reference.nt_xent(z0.double(), z1.double(), None, **rules)
        # A single sum may happen to be right in eager PyTorch, so it needs a bound of its own for what rounding the
        # rows to their dtype does to a logit: at most scale x eps, an eighth of it on average over many.
        lost = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
        terms = torch.full((1,), 2 * n * 0.3 * (2 * scale + math.log(2 * n) + scale * lost / 64), dtype=torch.float64)
        of_loss = (t[0].reshape(1) for t in (results, eager, truth))
        assert_as_accurate_as_eager(*of_loss, terms, "loss", refuses_zeros=n > 3)
        # the gradient's terms: G's rows add up to at most 4 weights, times unit rows, twice for the projection
        for name, index, view in (("dz0", 1, z0), ("dz1", 2, z1)):
            size = 8 * 0.3 * scale / view.double().norm(dim=1, keepdim=True) * (1 + min(scale, 20.0))
            terms = size.expand(n, dim).cpu() / math.sqrt(dim)
            assert_as_accurate_as_eager(results[index], eager[index], truth[index], terms, name, refuses_zeros=n > 1)
        terms = torch.full((1,), 2 * n * 0.3 * max(1.0, lost / 16), dtype=torch.float64)  # G is rounded too
        of_scale = (t[3].reshape(1) for t in (results, eager, truth))
        assert_as_accurate_as_eager(*of_scale, terms, "dscale", refuses_zeros=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rows", [3, 96, 2500])
@pytest.mark.parametrize("logit_scale", [None, 8.0])
def test_kept_exponentials_are_those_that_would_be_computed_again(dtype, rows, logit_scale):
    """Bit for bit what the two operators give, also where only some blocks are kept (2500: more than 32 MB)."""
    with serving("cpp", "cpu", dtype, "nt_xent"):
        z0, z1 = (random(rows, 5, dtype=dtype, seed=seed) for seed in (1, 2))
        s = None if logit_scale is None else torch.tensor(logit_scale)
        rules = {"scale": 1.5, "normalize": True, "weight": 0.5 / rows, "gradient": True}
        apart = composed.nt_xent(cpp.pairwise_logsumexp, cpp.pairwise_logsumexp_grad, z0, z1, s, **rules)
        loss, *gradients = both(z0, z1, s, **rules)
        assert all(torch.equal(a, b) for a, b in zip(gradients, apart[1:], strict=True))
        torch.testing.assert_close(loss, apart[0])


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_nt_xent_reads_views_of_any_stride_and_nothing_around_them(backend, device, dtype):
    with serving(backend, device, dtype):
        z0, z1 = (random(50, 19, dtype=dtype, device=device, seed=seed) for seed in (1, 2))
        expected = both(z0, z1)
        for a, b in (
            (in_guard_band(z0), in_guard_band(z1, band=3)),
            (z0.T.contiguous().T, z1),
            (z0, z1.repeat_interleave(2, 0)[::2]),
            torch.stack((z0, z1), dim=1).unbind(1),
        ):
            results = both(a, b)
            assert all(torch.equal(x, y) for x, y in zip(results, expected, strict=True))
            assert results[1].is_contiguous() and results[2].is_contiguous()


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
@pytest.mark.parametrize("n", [40, 250, 700, 1500])
def test_nt_xent_gives_the_same_bits_on_any_number_of_threads(threads, n):
    """Whoever comes first: threads wait for each other's blocks, also when there are more of them than cores."""
    with serving("cpp", "cpu", operation="nt_xent"):
        z0, z1 = (random(n, 20, seed=seed) for seed in (1, 2))
        before, expected = torch.get_num_threads(), both(z0, z1)
        try:
            torch.set_num_threads(threads)
            for _ in range(5):
                assert all(torch.equal(a, b) for a, b in zip(both(z0, z1), expected, strict=True))
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_nt_xent_passes_nan_on_and_survives_zeros(backend, device):
    with serving(backend, device):
        z0, z1 = (random(60, 16, device=device, seed=seed) for seed in (1, 2))
        z1[7] = 0
        loss, dz0, dz1, d_scale = both(z0, z1)
        others = torch.arange(60, device=device) != 7
        assert loss.isfinite() and d_scale.isfinite() and dz0.isfinite().all() and dz1[others].isfinite().all()
        z1[7, 3] = float("nan")
        loss, dz0, dz1, d_scale = both(z0, z1)
        assert loss.isnan() and d_scale.isnan() and dz0.isnan().all() and dz1.isnan().all()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("needs", [(True, False), (True, True), REGISTERED_ALIKE[1]])
def test_nt_xent_opcheck(backend, device, needs):
    with serving(backend, device):
        z0, z1 = (random(6, 8, device=device, seed=seed).requires_grad_(need) for seed, need in enumerate(needs))
        rules = {"scale": 2.0, "normalize": True, "weight": 0.1, "gradient": True, "backend": backend}
        torch.library.opcheck(torch.ops.fastssl.nt_xent.default, (z0, z1, None), rules)
        s = torch.tensor(1.5, device=device, requires_grad=True)
        torch.library.opcheck(torch.ops.fastssl.nt_xent.default, (z0, z1, s), rules)


def test_nt_xent_refuses_float16_whose_gradients_would_vanish():
    z = torch.zeros(4, 3, dtype=torch.float16)
    with pytest.raises(TypeError, match="float16"):
        both(z, z)
    assert both(z, z, gradient=False)[0].isfinite()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_nt_xent_without_gradients_gives_the_same_loss(backend, device, dtype):
    with serving(backend, device, dtype):
        z0, z1 = (random(150, 19, dtype=dtype, device=device, seed=seed) for seed in (1, 2))
        loss, dz0, dz1, _ = both(z0, in_guard_band(z1), gradient=False)
        log_sum, positive = forward(torch.stack((z0, z1), 1).flatten(0, 1), **NT_XENT)
        torch.testing.assert_close(loss, (log_sum - positive).sum())
        assert dz0.numel() == dz1.numel() == 0
        with pytest.raises(RuntimeError, match="gradient=False"):
            both(z0.clone().requires_grad_(), z1, gradient=False)
        rules = {"scale": 2.0, "normalize": True, "weight": 0.1, "gradient": False, "backend": backend}
        torch.library.opcheck(torch.ops.fastssl.nt_xent.default, (z0, z1, None), rules)
