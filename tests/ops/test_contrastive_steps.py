"""Losses with their gradients in one call (``ops/pairwise/steps.py``), and the functions on top: against float64 and
the textbook, whatever way a call takes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from harness import (
    BACKENDS,
    DTYPES,
    allowed_error,
    assert_as_accurate_as_eager,
    in_guard_band,
    poisoned_outputs,
    serving,
)

import fastssl
from fastssl import functional

# Rows, columns, dimension; more than 768 rows are not taken at once, and more than 128 columns not in one go.
SHAPES = [(1, 1, 4), (3, 2, 7), (17, 130, 33), (100, 97, 16), (5, 1000, 128), (97, 200, 300), (800, 50, 9)]


def unit(x, normalize=True):
    return F.normalize(x, dim=-1) if normalize else x


def info_nce(q, key, negatives=None, *, index=None, temperature=0.1, normalize=True):
    """The textbook's losses: a matrix of logits and a cross-entropy."""
    q, key = unit(q, normalize), unit(key, normalize)
    if negatives is not None:
        logits = torch.cat([(q * key).sum(1, keepdim=True), q @ unit(negatives, normalize).T], 1)
        target = torch.zeros(len(q), dtype=torch.int64, device=q.device)
    else:
        logits = q @ key.T
        target = torch.arange(len(q), device=q.device) if index is None else index
    return F.cross_entropy(logits.float() / temperature if logits.dtype != torch.float64 else logits / temperature,
                           target, reduction="none")  # fmt: skip


def clip(x, y, scale, normalize=True):
    """The losses [2N] of both directions."""
    logits = scale * (unit(x, normalize) @ unit(y, normalize).T)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    target = torch.arange(len(x), device=x.device)
    return torch.cat([F.cross_entropy(side, target, reduction="none") for side in (logits, logits.T)])


def siglip(x, y, scale, bias, normalize=True):
    """The losses [N] of images against all texts."""
    logits = scale * (unit(x, normalize) @ unit(y, normalize).T)
    logits = (logits if logits.dtype == torch.float64 else logits.float()) + bias
    return -F.logsigmoid(logits * (2 * torch.eye(*logits.shape, dtype=logits.dtype, device=x.device) - 1)).sum(1)


def rows(*shape, dtype=torch.float32, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(device, dtype)


def problem(n, k, d, dtype, device):
    """Rows, a key like each of them, and columns."""
    q = rows(n, d, dtype=dtype, device=device)
    return q, (q.float() + rows(n, d, device=device, seed=1)).to(dtype), rows(k, d, dtype=dtype, device=device, seed=2)


def with_gradients(function, inputs, *arguments, wanted, **settings):
    leaves = [x.detach().clone().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
    loss = function(*leaves, *arguments, **settings)
    loss.mean().backward()
    return [loss.detach(), *(leaves[i].grad for i in wanted)]


def compare(mine, eager, truth, inputs, wanted, temperature):
    """Gradients against the textbook's; the mean loss, whose error is at most that of the worst row."""
    losses, true = eager[0].to(mine[0].dtype), truth[0]
    allowed = allowed_error(losses, true, true.abs() + 2 / temperature).max()
    assert (mine[0].double() - true.mean()).abs() <= allowed
    for i, got, plain, want in zip(wanted, mine[1:], eager[1:], truth[1:], strict=True):
        length = inputs[i].double().norm(dim=1, keepdim=True)
        # A row's gradient adds up attractions and repulsions of 2 / temperature in all, times unit elements; that of a
        # row in the queue up to as much from every query.
        queries = len(inputs[0]) if i < 2 else 1
        terms = (4 / (queries * temperature) / length).expand_as(want)
        assert_as_accurate_as_eager(got, plain, want, terms, f"gradient {i}", refuses_zeros=want.abs().max() > 1e-3)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
@pytest.mark.parametrize(("n", "k", "d"), SHAPES)
@pytest.mark.parametrize("wanted", [(0,), (0, 1), (0, 1, 2)])
def test_a_queue(backend, device, dtype, n, k, d, wanted):
    with serving(backend, device, dtype):
        inputs = problem(n, k, d, dtype, device)
        mine = with_gradients(functional.info_nce, inputs, wanted=wanted, temperature=0.2)
        eager = with_gradients(info_nce, inputs, wanted=wanted, temperature=0.2)
        truth = with_gradients(info_nce, [x.double() for x in inputs], wanted=wanted, temperature=0.2)
        compare(mine, eager, truth, inputs, wanted, 0.2)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "_k", "d"), SHAPES)
@pytest.mark.parametrize("wanted", [(0,), (0, 1)])
@pytest.mark.parametrize("temperature", [0.1, 0.01])  # with a known maximum, and with a running one
def test_keys_of_the_batch(backend, device, dtype, n, _k, d, wanted, temperature):
    with serving(backend, device, dtype):
        inputs = problem(n, 1, d, dtype, device)[:2]
        mine = with_gradients(functional.info_nce, inputs, wanted=wanted, temperature=temperature)
        eager = with_gradients(info_nce, inputs, wanted=wanted, temperature=temperature)
        truth = with_gradients(info_nce, [x.double() for x in inputs], wanted=wanted, temperature=temperature)
        compare(mine, eager, truth, inputs, wanted, temperature)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k", "d"), SHAPES)
@pytest.mark.parametrize(("wanted", "temperature"), [((0,), 0.1), ((0,), 0.01), ((0, 1), 0.1)])
def test_places_in_a_bank(backend, device, dtype, n, k, d, wanted, temperature):
    """Several rows may have the same positive, and rows of one block positives at both ends of the bank."""
    with serving(backend, device, dtype):
        q, _, bank = problem(n, k, d, dtype, device)
        index = torch.randint(k, (n,), generator=torch.Generator().manual_seed(n)).to(device)
        index[: n // 3] = 0
        index[n // 3 : n // 2] = k - 1
        settings = {"index": index, "temperature": temperature}
        mine = with_gradients(functional.info_nce, (q, bank), wanted=wanted, **settings)
        eager = with_gradients(info_nce, (q, bank), wanted=wanted, **settings)
        truth = with_gradients(info_nce, (q.double(), bank.double()), wanted=wanted, **settings)
        compare(mine, eager, truth, (q, None, bank), [2 * i for i in wanted], temperature)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_a_place_that_no_bank_has(backend, device, temperature):
    """Such a row has the whole bank for negatives and its positive logit counts as 0, whatever way the call takes."""
    with serving(backend, device):
        q, _, bank = problem(6, 9, 5, torch.float32, device)
        index = torch.tensor([8, -1, 3, 9, 2**40, -(2**40)], device=device)
        q.requires_grad_()
        losses = functional.info_nce(q, bank, index=index, temperature=temperature, reduction="none")
        (expected,) = torch.autograd.grad(losses.sum(), q)
        log_sum = (unit(q) @ unit(bank).T / temperature).logsumexp(1)
        torch.testing.assert_close(losses[index.abs() > 8], log_sum[index.abs() > 8])
        loss = functional.info_nce(q, bank, index=index, temperature=temperature, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, q)
        torch.testing.assert_close(loss, losses.sum())
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "_k", "d"), SHAPES)
@pytest.mark.parametrize(("wanted", "scale"), [((0, 1), 10.0), ((0, 1), 100.0), ((0,), 10.0), ((1,), 100.0)])
def test_clip(backend, device, dtype, n, _k, d, wanted, scale):
    with serving(backend, device, dtype):
        inputs = problem(n, 1, d, dtype, device)[:2]
        mine = with_gradients(functional.clip, inputs, scale, wanted=wanted)
        eager = with_gradients(clip, inputs, scale, wanted=wanted)
        truth = with_gradients(clip, [x.double() for x in inputs], scale, wanted=wanted)
        compare(mine, eager, truth, inputs, wanted, 1 / scale)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
@pytest.mark.parametrize(("n", "_k", "d"), SHAPES)
# As the paper starts; where yes and no are both likely; where every pair is taken for a match; one tower frozen.
@pytest.mark.parametrize(
    ("scale", "bias", "wanted"),
    [(10.0, -10.0, (0, 1)), (100.0, -30.0, (0, 1)), (10.0, 15.0, (0, 1)), (10.0, -10.0, (0,)), (10.0, -10.0, (1,))],
)
def test_siglip(backend, device, dtype, n, _k, d, scale, bias, wanted):
    with serving(backend, device, dtype):
        inputs = problem(n, 1, d, dtype, device)[:2]
        mine = with_gradients(functional.siglip, inputs, scale, bias, wanted=wanted)
        eager = with_gradients(siglip, inputs, scale, bias, wanted=wanted)
        truth = with_gradients(siglip, [x.double() for x in inputs], scale, bias, wanted=wanted)
        losses = [siglip(x, y, scale, bias) for x, y in (inputs, [x.double() for x in inputs])]
        true = losses[1]
        allowed = allowed_error(losses[0].to(mine[0].dtype), true, true.abs() + 2 * scale).max()
        assert (mine[0].double() - true.mean()).abs() <= allowed
        for i, got, plain, want in zip(wanted, mine[1:], eager[1:], truth[1:], strict=True):
            # A row is pulled and pushed by each of the others, at most by scale / n times a unit row.
            terms = (2 * scale / inputs[i].double().norm(dim=1, keepdim=True)).expand_as(want)
            assert_as_accurate_as_eager(got, plain, want, terms, f"gradient {i}", refuses_zeros=want.abs().max() > 1e-3)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
def test_a_low_sigmoid_loss_is_exact(backend, device, dtype):
    """Near its minimum every pair adds next to nothing: 1 - sigmoid would be all rounding there."""
    with serving(backend, device, dtype):
        x = torch.eye(20, device=device, dtype=dtype)
        loss, dx, dy = with_gradients(functional.siglip, (x, x), 40.0, -20.0, wanted=(0, 1))
        pair = torch.tensor(-20.0, dtype=torch.float64).exp()  # of a match and of all others alike
        assert abs(loss.double().cpu() / (20 * pair.log1p()) - 1) < 1e-5
        if dtype == torch.float16:  # which ends at 6e-8
            return
        exact = 1e-2 if dtype == torch.bfloat16 else 1e-4
        others = ~torch.eye(20, dtype=torch.bool)  # of a row's own direction normalising leaves nothing
        for gradient in (dx, dy):
            assert (gradient.double().cpu()[others] / (40 / 20 * pair) - 1).abs().max() < exact


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("offset", [0, 3, 41, -2, 1000])
def test_a_block_of_siglips_rows_against_all_columns(backend, device, offset):
    """What a rank computes: the positive of row i is column offset + i, where there is one."""
    with serving(backend, device, torch.float64):
        x, y = rows(9, 5, dtype=torch.float64, device=device), rows(50, 5, dtype=torch.float64, device=device)
        rules = {"scale": 10.0, "bias": -3.0, "normalize": True, "row_offset": offset, "weight": 0.5, "columns": True}
        for tensor in (x, y):
            tensor.requires_grad_()
        results = torch.ops.fastssl.siglip(x, y, None, None, **rules, gradient=True, backend=backend)
        logits = 10 * unit(x) @ unit(y).T - 3
        place = offset + torch.arange(9, device=device)[:, None]
        label = torch.where(place == torch.arange(50, device=device), 1.0, -1.0)
        truth = -0.5 * F.logsigmoid(label * logits).sum()
        torch.testing.assert_close(results[0], truth)
        for got, want in zip(torch.autograd.grad(results[0], (x, y)), torch.autograd.grad(truth, (x, y)), strict=True):
            torch.testing.assert_close(got, want)
        alone = torch.ops.fastssl.siglip(
            x.detach(), y.detach(), None, None, **rules, gradient=False, backend=backend
        )  # fmt: skip
        torch.testing.assert_close(alone[0], truth.detach())


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_gradcheck(backend, device, normalize):
    with serving(backend, device, torch.float64):
        q, key, bank = (x / 2 for x in problem(4, 5, 3, torch.float64, device))
        for tensor in (q, key, bank):
            tensor.requires_grad_()
        tau = torch.tensor(0.3, dtype=torch.float64, device=device, requires_grad=True)

        def check(function, *inputs):
            assert torch.autograd.gradcheck(function, inputs, fast_mode=True)

        settings = {"normalize": normalize}
        check(lambda a, t: functional.info_nce(a, key.detach(), bank.detach(), temperature=t, **settings), q, tau)
        check(lambda a, t: functional.info_nce(a, key.detach(), temperature=t, reduction="sum", **settings), q, tau)
        check(lambda a, b, c, t: functional.info_nce(a, b, c, temperature=t, **settings), q, key, bank, tau)
        check(lambda a, b, t: functional.info_nce(a, b, temperature=t, reduction="none", **settings), q, key, tau)
        index = torch.tensor([4, 0, 0, 2], device=device)
        check(lambda a, c, t: functional.info_nce(a, c, index=index, temperature=t, **settings), q, bank, tau)
        check(lambda a, t: functional.info_nce(a, bank.detach(), index=index, temperature=t, **settings), q, tau)
        check(lambda a, b, t: functional.clip(a, b, 1 / t, **settings), q, key, tau)
        check(lambda a, t: functional.clip(a, key.detach(), 1 / t, reduction="none", **settings), q, tau)
        bias = torch.tensor(-0.5, dtype=torch.float64, device=device, requires_grad=True)
        check(lambda a, b, t, c: functional.siglip(a, b, 1 / t, c, **settings), q, key, tau, bias)
        check(lambda c: functional.siglip(q.detach(), key.detach(), 3.0, c, reduction="sum", **settings), bias)
        labels = torch.tensor([0, 1, 0, 1, 2], device=device)
        check(lambda c, t: functional.sup_con(c, labels, t, **settings), bank, tau)
        weights = (torch.rand(4, dtype=torch.float64, device=device), torch.rand(4, dtype=torch.float64, device=device))
        check(lambda a, b, t: functional.dcl(a, b, t, weights=weights, **settings), q, key, tau)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_reductions_and_ways_agree(backend, device):
    with serving(backend, device):
        q, key, bank = problem(6, 9, 5, torch.float32, device)
        index = torch.tensor([8, 0, 3, 3, 1, 2], device=device)
        for arguments, settings in (((q, key, bank), {}), ((q, key), {}), ((q, bank), {"index": index})):
            losses = functional.info_nce(*arguments, reduction="none", **settings)
            torch.testing.assert_close(losses, info_nce(*arguments, **settings))
            for x in (q, q.clone().requires_grad_()):
                mean = functional.info_nce(x, *arguments[1:], **settings)
                torch.testing.assert_close(mean.detach(), losses.mean())
                total = functional.info_nce(x, *arguments[1:], reduction="sum", **settings)
                torch.testing.assert_close(total.detach(), losses.sum())
        losses = functional.clip(q, key, 5.0, reduction="none")
        assert losses.shape == (12,)
        torch.testing.assert_close(functional.clip(q, key, 5.0), losses.mean())
        torch.testing.assert_close(functional.clip(q, key, 5.0, reduction="sum"), losses.sum())
        torch.testing.assert_close(losses, clip(q, key, 5.0))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_and_guard_bands(backend, device, dtype):
    """Nothing outside of the views is read, nothing is left unwritten, inputs stay."""
    with serving(backend, device, dtype):
        inputs = problem(50, 120, 33, dtype, device)
        before = [x.clone() for x in inputs]
        expected = with_gradients(functional.info_nce, inputs, wanted=(0,))
        index = torch.arange(100, device=device)
        of_places = with_gradients(functional.info_nce, inputs[::2], wanted=(0,), index=index[::2].clone())
        pairs = [
            with_gradients(function, inputs[:2], *numbers, wanted=(0, 1))
            for function, numbers in ((functional.clip, (10.0,)), (functional.siglip, (10.0, -5.0)))
        ]
        q, key, bank = (in_guard_band(x) for x in inputs)
        q.requires_grad_()
        with poisoned_outputs():
            loss = functional.info_nce(q, key, bank)
            (gradient,) = torch.autograd.grad(loss, q)
            of_index = functional.info_nce(q, bank, index=index[::2])
            of_index = of_index.detach(), *torch.autograd.grad(of_index, q)
            key.requires_grad_()
            losses = functional.clip(q, key, 10.0), functional.siglip(q, key, 10.0, -5.0)
            both = [torch.autograd.grad(value, (q, key)) for value in losses]
        assert torch.equal(loss.detach(), expected[0]) and torch.equal(gradient, expected[1])
        assert all(torch.equal(a, b) for a, b in zip(of_index, of_places, strict=True))
        for value, gradients, wanted in zip(losses, both, pairs, strict=True):
            assert all(torch.equal(a, b) for a, b in zip((value.detach(), *gradients), wanted, strict=True))
        assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


def test_the_same_bits_on_any_number_of_threads():
    with serving("cpp", "cpu"):
        inputs = problem(120, 3000, 40, torch.float32, "cpu")
        many = problem(1000, 1, 17, torch.float32, "cpu")[:2]
        results, threads = [], torch.get_num_threads()
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append([
                *with_gradients(functional.info_nce, inputs, wanted=(0,)),
                *with_gradients(functional.info_nce, inputs[::2], wanted=(0,), index=torch.arange(120) * 25),
                *with_gradients(functional.clip, many, 10.0, wanted=(0, 1)),
                *with_gradients(functional.clip, many, 100.0, wanted=(0, 1)),
                *with_gradients(functional.siglip, many, 10.0, -5.0, wanted=(0, 1)),
            ])  # fmt: skip
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_nan_in_nan_out(backend, device):
    with serving(backend, device):
        for which in range(3):
            inputs = [x.clone() for x in problem(5, 7, 6, torch.float32, device)]
            inputs[which][2, 3] = torch.nan
            loss, gradient = with_gradients(functional.info_nce, inputs, wanted=(0,))
            assert loss.isnan()
            assert gradient.isnan().any(1).tolist() == ([True] * 5 if which == 2 else [i == 2 for i in range(5)])
            if which < 2:
                for scale in (10.0, 100.0):
                    loss, *gradients = with_gradients(functional.clip, inputs[:2], scale, wanted=(0, 1))
                    assert loss.isnan() and all(gradient.isnan().any(1).all() for gradient in gradients)
                loss, *gradients = with_gradients(functional.siglip, inputs[:2], 10.0, -5.0, wanted=(0, 1))
                assert loss.isnan() and gradients[1 - which].isnan().any(1).all()
                assert gradients[which].isnan().any(1).tolist() == [i == 2 for i in range(5)]


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_degenerate_rows_stay_finite(backend, device, dtype):
    """Duplicates, opposites, rows of zeros, one image, labels that nobody shares, at the sharpest usual temperature.

    The gradient of a row of zeros is about 1e12, which float16 does not reach.
    """
    with serving(backend, device, dtype):
        same = torch.ones(4, 8, dtype=dtype, device=device)
        zeros = 0 * same if dtype != torch.float16 else same
        for q, key, bank in ((same, same, same), (same, -same, same), (zeros, same, -same), (same[:1],) * 3):
            for loss, gradient in (
                with_gradients(functional.info_nce, (q, key, bank), wanted=(0,), temperature=0.07),
                with_gradients(functional.clip, (q, key), 100.0, wanted=(0,)),
                with_gradients(functional.siglip, (q, key), 100.0, -10.0, wanted=(0,)),
                with_gradients(functional.dcl, (q, key), 0.07, wanted=(0,)),
                with_gradients(functional.sup_con, (q,), torch.arange(len(q), device=device), 0.07, wanted=(0,)),
                with_gradients(functional.sup_con, (q,), torch.zeros(len(q), dtype=torch.int64, device=device), 0.07,
                               wanted=(0,)),
            ):  # fmt: skip
                assert loss.isfinite() and gradient.isfinite().all()
        assert functional.sup_con(same, torch.arange(4, device=device)) == 0
        alone = functional.dcl(same[:1], same[:1], 0.5)
        assert abs(alone + 2) < 1e-3  # nothing in the denominator


def test_sup_con_of_views_is_nt_xent():
    z0, z1 = rows(6, 5), rows(6, 5, seed=1)
    views = torch.stack([z0, z1], 1)
    torch.testing.assert_close(functional.sup_con(views, temperature=0.2), functional.nt_xent(z0, z1, 0.2))
    labels = torch.tensor([0, 1, 1, 2, 0, 3])
    flat = functional.sup_con(views.flatten(0, 1), labels.repeat_interleave(2), 0.2)
    torch.testing.assert_close(functional.sup_con(views, labels, 0.2), flat)
    losses = functional.sup_con(z0, labels, 0.2, reduction="none")
    assert losses[[3, 5]].tolist() == [0, 0] and (losses[[0, 1, 2, 4]] > 0).all()
    torch.testing.assert_close(functional.sup_con(z0, labels, 0.2), losses.sum() / 4)


def test_compiles_without_a_graph_break():
    q, key, bank = problem(6, 9, 5, torch.float32, "cpu")
    q.requires_grad_()
    labels = torch.tensor([0, 1, 0, 1, 2, 2])
    for function in (
        lambda q: functional.info_nce(q, key, bank), lambda q: functional.info_nce(q, key),
        lambda q: functional.info_nce(q, bank, index=labels),
        lambda q: functional.clip(q, key, 10.0), lambda q: functional.sup_con(q, labels),
        lambda q: functional.siglip(q, key, 10.0, -10.0),
        lambda q: functional.dcl(q, key),
    ):  # fmt: skip
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for wanted, got in zip(*((f(q), *torch.autograd.grad(f(q), q)) for f in (function, compiled)), strict=True):
            torch.testing.assert_close(got, wanted)


def test_opcheck():
    q, key, bank = problem(4, 5, 3, torch.float32, "cpu")
    q.requires_grad_()
    scale = torch.tensor(2.0, requires_grad=True)
    settings = {"scale": 1.5, "normalize": True, "weight": 0.25, "gradient": True, "backend": ""}
    utils = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    operators = torch.ops.fastssl
    index = torch.tensor([4, 0, -1, 0])
    for arguments in ((q, bank, key, None, scale), (q, bank, None, None, scale), (q, bank, None, index, scale)):
        torch.library.opcheck(operators.info_nce, arguments, {**settings, "row_offset": 1}, test_utils=utils)
    torch.library.opcheck(operators.clip, (q, key, scale), {**settings, "columns": False}, test_utils=utils)
    settings["columns"] = True
    torch.library.opcheck(operators.clip, (q, key.requires_grad_(), None), settings, test_utils=utils)
    rules = {"scale": 1.5, "normalize": True, "gradient": True, "backend": "", "exclude_positives": False}
    weights, key = torch.rand(4), torch.tensor([0, 1, 0, 1])
    for arguments, positives in (
        ((q, key, weights, -weights, scale), "key"),
        ((q, None, weights, weights, None), "pair"),
    ):
        torch.library.opcheck(operators.weighted, arguments, {**rules, "positives": positives}, test_utils=utils)
    bias = torch.tensor(-1.0, requires_grad=True)
    settings |= {"bias": 0.5, "row_offset": 1}
    for numbers in ((None, None), (scale, bias)):
        torch.library.opcheck(operators.siglip, (q, bank.requires_grad_(), *numbers), settings, test_utils=utils)


def test_second_derivatives_raise_and_frozen_inputs_are_refused():
    q, key, bank = problem(4, 5, 3, torch.float32, "cpu")
    q.requires_grad_()
    (gradient,) = torch.autograd.grad(functional.info_nce(q, key, bank), q, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        gradient.sum().backward()
    rules = {"scale": 1.0, "normalize": True, "row_offset": 0, "weight": 1.0, "backend": ""}
    with pytest.raises(RuntimeError, match="only q and logit_scale get gradients"):
        torch.ops.fastssl.info_nce(q, bank.requires_grad_(), key, None, None, gradient=True, **rules)
    with pytest.raises(RuntimeError, match="but the call has gradient=False"):
        torch.ops.fastssl.info_nce(q, bank.detach(), key, None, None, gradient=False, **rules)
    with pytest.raises(TypeError, match="computes no float16 gradients"):
        torch.ops.fastssl.info_nce(q.half(), bank.half(), key.half(), None, None, gradient=True, **rules)
    with pytest.raises(ValueError, match="positive and index exclude each other"):
        torch.ops.fastssl.info_nce(q, bank, key, torch.zeros(4, dtype=torch.int64), None, gradient=True, **rules)
    for operator, more in ((torch.ops.fastssl.clip, {}), (torch.ops.fastssl.siglip, {"bias": 0.0, "row_offset": 0})):
        numbers = [None] * (2 if more else 1)
        settings = {"scale": 1.0, "normalize": True, "weight": 1.0, "gradient": True, "columns": False, "backend": ""}
        with pytest.raises(RuntimeError, match="only x and logit_scale"):
            operator(q, key.clone().requires_grad_(), *numbers, **settings, **more)
        _, dx, dy, *_ = operator(q, key, *numbers, **settings, **more)
        assert dx.shape == q.shape and dy.shape == (0,)
    weights = torch.rand(4)
    of_rows = {"scale": 1.0, "normalize": True, "positives": "pair", "exclude_positives": False, "gradient": True}
    with pytest.raises(RuntimeError, match="only z and logit_scale get gradients"):
        torch.ops.fastssl.weighted(q, None, weights.requires_grad_(), weights, None, **of_rows, backend="")
    with pytest.raises(ValueError, match=r"weighted: positive_weight must be torch.float32 of shape \(4,\) on cpu"):
        torch.ops.fastssl.weighted(q, None, weights, weights[:3], None, **of_rows, backend="")
    with pytest.raises(ValueError, match="row_offset must leave a column for each of the 4 rows among 5, got 2"):
        torch.ops.fastssl.info_nce(q, bank.detach(), None, None, None, gradient=True, **{**rules, "row_offset": 2})


A, B = torch.zeros(3, 4), torch.zeros(5, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: functional.info_nce(A, B), r"query and key must have the same shape, got \(3, 4\) and \(5, 4\)"),
        (lambda: functional.info_nce(A, A, B[:, :3]), "query and negatives must have the same D"),
        (lambda: functional.info_nce(A, A, B.double()), "negatives must have the same dtype"),
        (lambda: functional.info_nce(A, A[0]), "info_nce: key must have shape"),
        (lambda: functional.info_nce(A, A, "bank"), "negatives must be a tensor"),
        (lambda: functional.info_nce(A, B, index=torch.zeros(2, dtype=torch.int64)), r"index must have shape \(3,\)"),
        (lambda: functional.info_nce(A, B, index=torch.zeros(3)), "index must be an int64 tensor"),
        (lambda: functional.info_nce(A, A, B, index=torch.zeros(3, dtype=torch.int64)), "exclude each other"),
        (lambda: functional.info_nce(A, A, temperature=0.0), "info_nce: temperature must be"),
        (lambda: functional.info_nce(A, A, reduction="max"), "reduction must be"),
        (lambda: functional.info_nce(A, A, group="all"), "group must be"),
        (lambda: functional.clip(A, B), "image and text must have the same shape"),
        (lambda: functional.clip(A, A, -1.0), "clip: logit_scale must be"),
        (lambda: functional.clip(A, A, torch.zeros(2)), "logit_scale must"),
        (lambda: functional.siglip(A, B), "image and text must have the same shape"),
        (lambda: functional.siglip(A, A, 0.0), "siglip: logit_scale must be"),
        (lambda: functional.siglip(A, A, 1.0, float("nan")), "siglip: logit_bias must be finite, got nan"),
        (lambda: functional.siglip(A, A, 1.0, "-10"), "siglip: logit_bias must be a number, got str"),
        (lambda: functional.siglip(A, A, 1.0, torch.zeros(2)), "logit_bias must"),
        (lambda: functional.siglip(A, A, reduction="none"), "siglip: reduction must be"),
        (lambda: functional.sup_con(A), "labels must be given for z"),
        (lambda: functional.sup_con(A, torch.zeros(3)), "labels must be an int64 tensor"),
        (lambda: functional.sup_con(A[None], torch.zeros(3, dtype=torch.int64)), r"labels must have shape \(1,\)"),
        (lambda: functional.sup_con("z"), "z must be"),
        (lambda: functional.dcl(A, B), "z0 and z1 must have the same shape"),
        (lambda: functional.dcl(A, A, weights=(torch.ones(3), torch.ones(2))), r"weights\[1\] must be of shape"),
        (lambda: functional.dcl(A, A, weights=(torch.ones(3), 1.0)), r"weights\[1\] must be a dense tensor"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_backends_agree_with_each_other():
    q, key, bank = problem(20, 50, 12, torch.float64, "cpu")
    results = []
    for backend in ("reference", "chunked", "cpp"):
        with fastssl.backend(backend):
            results.append([
                *with_gradients(functional.info_nce, (q, key, bank), wanted=(0,)),
                *with_gradients(functional.info_nce, (q, bank), wanted=(0,), index=torch.arange(20) * 2 - 1),
                *with_gradients(functional.clip, (q, key), 50.0, wanted=(0, 1)),
                *with_gradients(functional.siglip, (q, key), 50.0, -9.0, wanted=(0, 1)),
            ])  # fmt: skip
    for result in results[1:]:
        for got, want in zip(result, results[0], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
