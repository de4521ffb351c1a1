"""nt_xent and pairwise_logsumexp as users call them: values, gradients, compilers, autocast, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from harness import BACKENDS, serving
from torch.utils._python_dispatch import TorchDispatchMode

import fastssl
from fastssl.functional import nt_xent, pairwise_logsumexp
from fastssl.ops import registry
from fastssl.ops.pairwise import reference


def views(n=9, d=5, dtype=torch.float32, device="cpu", requires_grad=True):
    generator = torch.Generator().manual_seed(n * d)
    z0 = torch.randn(n, d, generator=generator)
    z1 = z0 + 0.5 * torch.randn(n, d, generator=generator)
    return tuple(z.to(device, dtype).requires_grad_(requires_grad) for z in (z0, z1))


def textbook_nt_xent(z0, z1, temperature):
    """The loss as SimCLR's paper writes it."""
    n = z0.shape[0]
    z = torch.nn.functional.normalize(torch.cat((z0, z1)), dim=1)
    logits = (z @ z.T / temperature).fill_diagonal_(-math.inf)
    return torch.nn.functional.cross_entropy(logits, torch.arange(2 * n, device=z.device).roll(n))


class CountOperators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "fastssl":
            self.calls.append((function._opname, args[0].shape[0]))
        return function(*args, **(kwargs or {}))


# ----------------------------------------------------------------------------------------------- the lectures' numbers


@pytest.mark.parametrize(("negatives", "loss"), [((0.3, 0.1, -0.2), 0.0028), ((0.85, 0.1, -0.2), 0.474)])
def test_worked_infonce_examples(negatives, loss):
    cosines = torch.tensor((0.9, *negatives))
    keys = torch.stack((cosines, (1 - cosines**2).sqrt()), dim=1)
    log_sum, positive = pairwise_logsumexp(torch.tensor([[1.0, 0.0]]), keys, scale=10.0, positives="diagonal")
    assert abs((log_sum - positive).item() - loss) < 5e-4 * max(1.0, loss)


def test_a_uniform_prediction_over_n_candidates_costs_log_n():
    log_sum, positive = pairwise_logsumexp(torch.ones(1, 3), torch.ones(37, 3), positives="diagonal")
    assert (log_sum - positive).item() == pytest.approx(math.log(37), rel=1e-6)


def test_simclr_with_4096_images_is_an_8191_way_classification():
    z = torch.ones(4096, 2)
    assert nt_xent(z, z, 0.5).item() == pytest.approx(math.log(8191), rel=1e-6)


def test_one_image_has_nothing_to_tell_apart():
    z0, z1 = views(1)
    loss = nt_xent(z0, z1, 0.1)
    loss.backward()
    assert loss.item() == 0 and z0.grad.abs().max() < 1e-5


# -------------------------------------------------------------------------------------------------- values, gradients


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("temperature", [0.5, 0.07, 0.01])
def test_equals_the_textbook_in_value_and_gradient(backend, device, temperature):
    with serving(backend, device):
        z0, z1 = views(50, 16, device=device)
        expected = textbook_nt_xent(z0.double(), z1.double(), temperature)
        loss = nt_xent(z0, z1, temperature)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
        for a, b in zip(torch.autograd.grad(loss, (z0, z1)), torch.autograd.grad(expected, (z0, z1)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.05, 0.034, 0.033, 0.025, 0.01])
def test_opposite_views_keep_their_gradient_finite_under_a_loss_scaler(backend, device, dtype, temperature):
    """With one image the loss is 0 whatever its views are, so its gradient is too: times GradScaler's first scale."""
    with serving(backend, device, dtype):
        z0 = torch.eye(8, device=device, dtype=dtype)[:1].requires_grad_()
        loss = nt_xent(z0, -z0.detach(), temperature)
        (gradient,) = torch.autograd.grad(65536 * loss, z0)
        assert loss.abs() < 1e-4 and gradient.isfinite().all() and gradient.abs().max() < 1


def test_a_temperature_in_bfloat16_costs_no_accuracy():
    z0, z1 = views(30, 16)
    temperature = torch.tensor(0.07, dtype=torch.bfloat16, requires_grad=True)
    loss = nt_xent(z0, z1, temperature)
    torch.testing.assert_close(loss, nt_xent(z0, z1, temperature.item()))
    (gradient,) = torch.autograd.grad(loss, temperature)
    assert gradient.dtype == torch.bfloat16 and gradient != 0


def test_reductions():
    z0, z1 = views()
    rows = nt_xent(z0, z1, 0.2, reduction="none")
    assert rows.shape == (18,)
    torch.testing.assert_close(rows.mean(), nt_xent(z0, z1, 0.2))
    torch.testing.assert_close(rows.sum(), nt_xent(z0, z1, 0.2, reduction="sum"))
    z = torch.nn.functional.normalize(torch.cat((z0, z1)), dim=1)
    logits = (z @ z.T / 0.2).fill_diagonal_(-math.inf)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(18).roll(9), reduction="none")
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("backend", "device"), [b for b in BACKENDS if b[0] != "triton"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("frozen", [None, 0, 1])
def test_gradcheck_with_learnable_temperature_and_frozen_views(backend, device, normalize, frozen):
    with serving(backend, device, torch.float64):
        z0, z1 = views(5, 3, torch.float64, device)
        temperature = torch.tensor(0.7, dtype=torch.float64, device=device, requires_grad=True)
        if frozen is not None:
            (z0, z1)[frozen].requires_grad_(False)
        for t in (temperature, temperature.detach(), 0.7):
            assert torch.autograd.gradcheck(lambda a, b, t: nt_xent(a, b, t, normalize=normalize), (z0, z1, t))


def test_no_work_for_a_gradient_that_nobody_asked_for():
    z0, z1 = views(6)
    with CountOperators() as count:
        nt_xent(z0.detach(), z1.detach(), 0.1)
        with torch.no_grad():
            nt_xent(z0, z1, 0.1)
    assert count.calls == [("nt_xent", 6)] * 2
    with CountOperators() as count:
        nt_xent(z0, z1, 0.1).backward()
    assert count.calls == [("nt_xent", 6)], "loss and gradient at once"
    with CountOperators() as count:
        nt_xent(z0, z1.detach(), 0.1).backward()
    assert count.calls == [("pairwise_logsumexp", 12), ("pairwise_logsumexp_grad", 6)], "only one view's rows"
    q, k = views(6)
    with CountOperators() as count:
        pairwise_logsumexp(q, k.detach())[0].sum().backward()
        pairwise_logsumexp(q.detach(), k)[0].sum().backward()
    assert [name for name, _ in count.calls] == ["pairwise_logsumexp", "pairwise_logsumexp_grad"] * 2


def test_accumulated_gradients_and_a_second_backward_pass_leave_everything_as_it_was():
    z0, z1 = views()
    before = z0.detach().clone(), z1.detach().clone()
    loss = nt_xent(z0, z1, 0.1)
    loss.backward(retain_graph=True)
    once = z0.grad.clone()
    loss.backward()
    torch.testing.assert_close(z0.grad, 2 * once, rtol=0, atol=0)
    assert torch.equal(z0, before[0]) and torch.equal(z1, before[1])


@pytest.mark.parametrize("backend", ["chunked", "cpp"])
def test_thirty_two_training_steps_follow_the_reference(backend):
    """Same curve for the fused loss and the textbook, from the same start on the same data."""

    def train(loss_function):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 16))
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        data = torch.randn(256, 20)
        curve = []
        for step in range(32):
            batch = data[(step % 4) * 64 : (step % 4 + 1) * 64]
            z0, z1 = (model(batch + 0.1 * torch.randn_like(batch)) for _ in range(2))
            loss = loss_function(z0, z1, 0.2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        return torch.tensor(curve)

    with serving(backend, "cpu"):
        fused, textbook = train(nt_xent), train(textbook_nt_xent)
    assert textbook[-4:].mean() < 0.7 * textbook[0], "the reference learns"
    torch.testing.assert_close(fused, textbook, rtol=2e-3, atol=2e-3)


# ------------------------------------------------------------------------------------------------ PyTorch's machinery


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_compiles_without_a_graph_break(backend, device):
    with serving(backend, device):
        z0, z1 = views(device=device)
        temperature = torch.tensor(0.3, device=device, requires_grad=True)

        def step(z0, z1, temperature):
            return nt_xent(z0 * 1.5, z1 + 0.1, temperature)

        torch._dynamo.reset()
        compiled = torch.compile(step, fullgraph=True)
        expected = torch.autograd.grad(step(z0, z1, temperature), (z0, z1, temperature))
        actual = torch.autograd.grad(compiled(z0, z1, temperature), (z0, z1, temperature))
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_compiles_for_changing_batch_sizes():
    torch._dynamo.reset()
    compiled = torch.compile(lambda a, b: nt_xent(a, b, 0.2), fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (4, 9, 17):
        z0, z1 = views(n)
        torch.testing.assert_close(compiled(z0, z1), nt_xent(z0, z1, 0.2))


def test_compiles_once_for_changing_temperatures():
    z0, z1 = views()
    torch._dynamo.reset()
    compiled = torch.compile(nt_xent, fullgraph=True, backend="aot_eager")
    for temperature in (0.1, 0.2, 0.35, 0.5):
        torch.testing.assert_close(compiled(z0, z1, temperature), nt_xent(z0, z1, temperature))


def test_exports():
    z0, z1 = views(requires_grad=False)
    exported = torch.export.export(fastssl.losses.NTXentLoss(0.2), (z0, z1))
    torch.testing.assert_close(exported.module()(z0, z1), nt_xent(z0, z1, 0.2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_dtype_and_returns_float32(dtype):
    z0, z1 = views(20, 16)
    with torch.autocast("cpu", dtype):
        loss = nt_xent(z0, z1.to(dtype), 0.1)
    loss.backward()
    assert loss.dtype == torch.float32 and z0.grad.dtype == torch.float32
    torch.testing.assert_close(loss, nt_xent(z0.to(dtype), z1.to(dtype), 0.1))


def test_second_derivatives_and_vmap_raise():
    z0, z1 = views()
    for reduction in ("mean", "none"):  # in one operator and in two
        loss = nt_xent(z0, z1, 0.1, reduction=reduction).sum()
        (first,) = torch.autograd.grad(loss, z0, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivatives"):
            (first.sum() + z0.square().sum()).backward()
    with pytest.raises(NotImplementedError, match=r"does not support torch\.vmap"):
        torch.vmap(lambda a, b: nt_xent(a, b, 0.1))(torch.randn(2, 4, 3), torch.randn(2, 4, 3))


def test_forward_mode_raises():
    with torch.autograd.forward_ad.dual_level():
        z = torch.autograd.forward_ad.make_dual(torch.randn(4, 3), torch.randn(4, 3))
        with pytest.raises(NotImplementedError, match="does not support forward-mode differentiation"):
            nt_xent(z, torch.randn(4, 3), 0.1)


def test_a_backend_object_serves_more_than_one_block():
    chosen = fastssl.backend(None)
    forced = fastssl.backend("chunked")
    for _ in range(2):
        with chosen:
            assert fastssl.backends.forced() == ""
        with forced:
            assert fastssl.backends.forced() == "chunked"
        fastssl.backend(None)


def test_any_device_is_served_by_plain_pytorch():
    assert [name for name, _ in registry.explain("fastssl.ops.pairwise", "mps", torch.float32)] == ["chunked"]
    z = torch.zeros(4, 3, device="meta")
    assert nt_xent(z, z, 0.1).device.type == "meta"


def test_the_backend_of_the_forward_pass_serves_the_backward_pass(monkeypatch):
    called = []
    real = reference.pairwise_logsumexp_grad
    monkeypatch.setattr(reference, "pairwise_logsumexp_grad", lambda **k: called.append(1) or real(**k))
    z0, z1 = views()
    with fastssl.backend("reference"):
        losses = nt_xent(z0, z1, 0.1, reduction="none")
    losses.sum().backward()
    assert called == [1]


# ------------------------------------------------------------------------------------------------------------ errors

GOOD = torch.zeros(4, 3)
KEYED = {"positives": "key"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (GOOD, torch.zeros(5, 3), 0.1),
            ValueError,
            r"nt_xent: z0 and z1 must have the same shape, got \(4, 3\) and \(5, 3\)",
        ),
        (
            (GOOD, GOOD.bfloat16(), 0.1),
            ValueError,
            "z0 and z1 must have the same dtype, got torch.float32 and torch.bfloat16",
        ),
        ((GOOD, GOOD.to("meta"), 0.1), ValueError, "z0 and z1 must have the same device, got cpu and meta"),
        ((GOOD.int(), GOOD.int(), 0.1), TypeError, "z0 must have one of the dtypes float32, .* got torch.int32"),
        ((GOOD.numpy(), GOOD, 0.1), TypeError, r"z0 must be a tensor of shape \[N, D\], got ndarray"),
        ((GOOD, torch.zeros(4), 0.1), ValueError, r"z1 must have shape \[N, D\], got \(4,\)"),
        ((GOOD[:0], GOOD[:0], 0.1), ValueError, r"z0 must not be empty, got shape \(0, 3\)"),
        ((GOOD[:, :0], GOOD[:, :0], 0.1), ValueError, "must not be empty"),
        ((GOOD.to_sparse(), GOOD, 0.1), TypeError, "z0 must be a dense tensor"),
        ((GOOD, GOOD, 0.0), ValueError, "temperature must be finite and above 0, got 0.0"),
        ((GOOD, GOOD, -1), ValueError, "temperature must be finite and above 0, got -1"),
        ((GOOD, GOOD, float("nan")), ValueError, "temperature must be finite and above 0, got nan"),
        ((GOOD, GOOD, float("inf")), ValueError, "temperature must be finite and above 0, got inf"),
        ((GOOD, GOOD, "hot"), TypeError, "temperature must be a number, got str"),
        ((GOOD, GOOD, torch.ones(2)), ValueError, r"temperature must have one element, got shape \(2,\)"),
        ((GOOD, GOOD, torch.tensor(1)), TypeError, "temperature must have a floating dtype, got torch.int64"),
        ((GOOD, GOOD, torch.ones(1, device="meta")), ValueError, "temperature must be on cpu .* got meta"),
    ],
)
def test_nt_xent_names_what_is_wrong(arguments, error, message):
    with pytest.raises(error, match=message):
        nt_xent(*arguments)


def test_nt_xent_names_a_wrong_group():
    with pytest.raises(TypeError, match=r"group must be a process group .* got 'world'"):
        nt_xent(GOOD, GOOD, 0.1, group="world")


def test_nt_xent_takes_numpy_numbers():
    assert nt_xent(GOOD, GOOD, np.float32(0.5)).isfinite()


def test_nt_xent_names_a_wrong_reduction():
    with pytest.raises(ValueError, match="reduction must be one of 'mean', 'sum', 'none', got 'median'"):
        nt_xent(GOOD, GOOD, 0.1, reduction="median")


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((GOOD, torch.zeros(4, 2)), {}, ValueError, r"q and k must have the same D, got shapes \(4, 3\) and \(4, 2\)"),
        ((GOOD,), {"positives": "self"}, ValueError, "positives must be one of 'none', .* got 'self'"),
        ((GOOD,), KEYED, TypeError, r"row_key must be an int64 tensor of shape \(4,\), got NoneType"),
        ((GOOD,), {**KEYED, "row_key": torch.zeros(4)}, TypeError, "row_key must be an int64 .* got torch.float32"),
        ((GOOD,), {**KEYED, "row_key": torch.zeros(3).long()}, ValueError, r"row_key must have shape \(4,\), got \(3"),
        ((GOOD, GOOD), {**KEYED, "row_key": torch.zeros(4).long()}, TypeError, "col_key must be an int64"),
        ((GOOD,), {"row_key": torch.zeros(4).long()}, ValueError, 'row_key is only for positives="key"'),
        ((GOOD,), {"col_offset": 4}, ValueError, "col_offset must equal row_offset, got 4 and 0"),
        ((GOOD,), {"scale": -1.0}, ValueError, "scale must be finite and above 0, got -1.0"),
        ((GOOD, None, torch.ones(3)), {}, ValueError, "logit_scale must have one element"),
    ],
)  # fmt: skip
def test_pairwise_logsumexp_names_what_is_wrong(arguments, options, error, message):
    with pytest.raises(error, match=message):
        pairwise_logsumexp(*arguments, **options)


def test_an_unknown_or_unable_backend_is_named():
    with pytest.raises(ValueError, match="must be one of reference, chunked, cpp, triton, cuda, got 'cuda12'"):
        fastssl.backend("cuda12")
    with fastssl.backend("triton"), pytest.raises(RuntimeError, match=r"the backend 'triton' cannot serve .* on cpu"):
        nt_xent(GOOD, GOOD, 0.1)
