"""DCL, DCLW, SupCon, CLIP, SigLIP and NT-Xent with a memory bank against the real ones, and MemoryBank."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from harness import BACKENDS, assert_as_accurate_as_eager, serving

import fastssl
from fastssl import functional, losses
from fastssl.compat import open_clip

SHAPES = [(2, 3), (3, 7), (17, 33), (64, 128), (101, 20)]


def views(n, d, dtype, device="cpu"):
    generator = torch.Generator().manual_seed(n + d)
    z0 = torch.randn(n, d, generator=generator)
    return z0.to(device, dtype), (z0 + torch.randn(n, d, generator=generator)).to(device, dtype)


def gradients(function, *inputs):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    loss = function(*inputs)
    return loss.detach(), torch.cat(torch.autograd.grad(loss, inputs))


def compare(function, peer, inputs, temperature, slack=1.0, rows=None):
    """Against a peer. Its mean may be right by luck: where `rows` gives the rows' losses in plain PyTorch, the worst of
    their errors is allowed too."""
    mine, theirs = gradients(function, *inputs), gradients(peer, *inputs)
    truth = gradients(peer, *(x.double() for x in inputs))
    accumulator = torch.float64 if inputs[0].dtype == torch.float64 else torch.float32
    assert mine[0].dtype == accumulator
    size = torch.tensor([4.0 * slack / temperature], dtype=torch.float64)
    if rows is not None:
        with fastssl.backend("reference"):
            worst = (rows(*inputs).double() - rows(*(x.double() for x in inputs))).abs().max().cpu()
        size = size + worst / (4 * torch.finfo(torch.float32).eps)
    values = [x.to(accumulator).reshape(1).cpu() for x in (mine[0], theirs[0])]
    assert_as_accurate_as_eager(*values, truth[0].double().reshape(1).cpu(), size, "loss", refuses_zeros=False)
    length = torch.cat(inputs).double().norm(dim=1, keepdim=True)
    terms = (4 * slack / (len(inputs[0]) * temperature) / length).expand_as(truth[1])
    assert_as_accurate_as_eager(mine[1], theirs[1], truth[1], terms, "gradient")


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("name", ["DCLLoss", "DCLLoss weighted", "DCLWLoss"])
def test_dcl_equals_lightlys(backend, device, dtype, n, d, name):
    peer = pytest.importorskip("lightly.loss")
    settings = {"weight_fn": lambda a, b: (a - b).square().sum(1)} if "weighted" in name else {}
    name = name.split()[0]
    with serving(backend, device, dtype):
        mine, theirs = (getattr(module, name)(0.2, **settings) for module in (losses, peer))
        # Its gradient goes through the weights too, unless they are DCLW's.
        if settings:
            theirs.weight_fn = lambda a, b: settings["weight_fn"](a.detach(), b.detach())
        rows = lambda z0, z1: functional.dcl(z0, z1, 0.2, reduction="none")  # noqa: E731
        compare(mine, theirs, views(n, d, dtype, device), 0.2, slack=4.0, rows=rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_sup_con_equals_that_of_pytorch_metric_learning(dtype, n, d):
    peers = pytest.importorskip("pytorch_metric_learning.losses")
    labels = torch.randint(0, max(2, n // 3), (2 * n,), generator=torch.Generator().manual_seed(n))
    labels[:2] = 0  # at least one row has a positive, and one a negative
    labels[2] = 1
    z = torch.cat(views(n, d, dtype))
    with serving("cpp", "cpu", dtype):
        compare(lambda z: losses.SupConLoss(0.2)(z, labels), lambda z: peers.SupConLoss(0.2)(z, labels), [z], 0.2)
    alone = torch.arange(2 * n)
    assert losses.SupConLoss()(z, alone) == 0


@pytest.mark.parametrize("scale", [10.0, 100.0])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_clip_equals_open_clips(n, d, scale):
    peer = pytest.importorskip("open_clip")
    x = F.normalize(views(n, d, torch.float64)[0], dim=1)
    y = F.normalize(views(n, d, torch.float64)[1].roll(1, 0) + x, dim=1)  # neighbours tempt
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        results = []
        for criterion in (losses.ClipLoss(), peer.ClipLoss()):
            leaves = [leaf.to(dtype).requires_grad_() for leaf in (x, y, torch.tensor(scale))]
            loss = criterion(*leaves)
            results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


def test_clip_takes_open_clips_arguments():
    assert open_clip.ClipLoss is losses.ClipLoss
    x, y = (F.normalize(z, dim=1) for z in views(6, 5, torch.float32))
    scale, bias = torch.tensor(10.0, requires_grad=True), torch.tensor(-2.0, requires_grad=True)
    criterion = losses.ClipLoss(local_loss=True, gather_with_grad=True, cache_labels=True, rank=0, world_size=1)
    loss = criterion(x, y, scale, logit_bias=bias, output_dict=True)["contrastive_loss"]
    logits = scale * x @ y.T + bias
    target = torch.arange(6)
    truth = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(loss, truth)
    for got, want in zip(*(torch.autograd.grad(value, (scale, bias)) for value in (loss, truth)), strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="use_horovod must be False"):
        losses.ClipLoss(use_horovod=True)
    with pytest.raises(ValueError, match="world_size must be that of the default process group, 1, got 4"):
        losses.ClipLoss(world_size=4)


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (100.0, -20.0)])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_siglip_equals_open_clips(n, d, scale, bias):
    peer = pytest.importorskip("open_clip.loss")
    x = F.normalize(views(n, d, torch.float64)[0], dim=1)
    y = F.normalize(views(n, d, torch.float64)[1].roll(1, 0) + x, dim=1)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        results = []
        for criterion in (losses.SigLipLoss(), peer.SigLipLoss()):
            leaves = [leaf.to(dtype).requires_grad_() for leaf in (x, y, torch.tensor(scale), torch.tensor(bias))]
            loss = criterion(*leaves)
            results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


def test_siglip_takes_open_clips_arguments():
    assert open_clip.SigLipLoss is losses.SigLipLoss
    x, y = (F.normalize(z, dim=1) for z in views(6, 5, torch.float32))
    criterion = losses.SigLipLoss(cache_labels=True, rank=0, world_size=1, dist_impl="bidir")
    loss = criterion(x, y, torch.tensor(10.0), torch.tensor(-4.0), output_dict=True)["contrastive_loss"]
    label = 2 * torch.eye(6) - 1
    torch.testing.assert_close(loss, -F.logsigmoid(label * (10 * x @ y.T - 4)).sum() / 6)
    torch.testing.assert_close(criterion(x, y, 10.0), -F.logsigmoid(label * (10 * x @ y.T)).sum() / 6)
    with pytest.raises(ValueError, match="dist_impl must be bidir, shift, reduce or gather, got 'ring'"):
        losses.SigLipLoss(dist_impl="ring")
    with pytest.raises(ValueError, match="world_size must be that of the default process group, 1, got 2"):
        losses.SigLipLoss(world_size=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("d", [7, 128])
def test_a_memory_bank_as_lightlys_until_it_wraps(dtype, d):
    """Batches that divide the bank: lightly loses no row then."""
    peer = pytest.importorskip("lightly.loss")
    mine, theirs = losses.NTXentLoss(0.2, (24, d)), peer.NTXentLoss(0.2, (24, d))
    theirs.memory_bank.bank.copy_(mine.memory_bank.bank)
    for step in range(7):
        z0, z1 = views(8, d + step, torch.float32)
        query, key = z0[:, :d].to(dtype).requires_grad_(), z1[:, :d].to(dtype)
        loss, wanted = mine(query, key), theirs(query.float(), key.float())
        torch.testing.assert_close(loss, wanted, atol=0.02 if dtype != torch.float32 else 1e-5, rtol=0)
        (gradient,) = torch.autograd.grad(loss, query)
        (expected,) = torch.autograd.grad(wanted, query)
        assert (gradient - expected).abs().max() < (0.02 if dtype != torch.float32 else 1e-5) * expected.abs().max()
        torch.testing.assert_close(mine.memory_bank.rows(), theirs.memory_bank.bank, atol=1e-2, rtol=0)
    with torch.no_grad():
        before = mine.memory_bank.rows().clone()
        mine(query, key)
        assert torch.equal(mine.memory_bank.rows(), before)  # evaluation leaves it as it is


def test_the_bank_keeps_the_last_rows_of_any_batches():
    bank = losses.MemoryBank((7, 3))
    put = []
    for number, size in enumerate((2, 3, 5, 1, 7, 16, 4)):
        rows = torch.randn(size, 3, generator=torch.Generator().manual_seed(number))
        bank.enqueue(rows)
        put += list(F.normalize(rows, dim=1))
        held = bank.rows()
        last = torch.stack(put[-7:])
        for row in last:  # whatever is the youngest seven is there
            assert (held - row).abs().sum(1).min() < 1e-6
        place = int(bank.place)
        assert place == len(put) % 7
        if len(put) >= 7:
            torch.testing.assert_close(held.roll(-place, 0), last)


def test_a_bank_is_saved_with_what_waits_and_resumes_with_the_same_bits():
    first = losses.NTXentLoss(0.1, (10, 4))
    for step in range(3):
        first(torch.randn(4, 4).requires_grad_(), torch.randn(4, 4, generator=torch.Generator().manual_seed(step)))
    state = {name: value.clone() for name, value in first.state_dict().items()}
    assert set(state) == {"memory_bank.bank", "memory_bank.place"} and state["memory_bank.place"] == 2
    second = losses.NTXentLoss(0.1, (10, 4))
    second(torch.randn(4, 4).requires_grad_(), torch.randn(4, 4))
    second.load_state_dict(state)  # what waited there is forgotten
    query, key = torch.randn(4, 4).requires_grad_(), torch.randn(4, 4)
    assert torch.equal(first(query, key), second(query, key))
    assert torch.equal(first.memory_bank.rows(), second.memory_bank.rows())
    third = losses.NTXentLoss(0.1, (10, 4))
    third(query, key)
    third.to(torch.float64)  # written before it is converted
    assert third.memory_bank.rows().dtype == torch.float64 and third.memory_bank.place == 4


def test_the_bank_is_not_written_to_before_the_backward_pass():
    """float16 saves the bank for its backward pass, where PyTorch would refuse one that has been written to."""
    for dtype in (torch.float32, torch.float16):
        criterion = losses.NTXentLoss(0.2, (6, 4))
        query, key = torch.randn(6, 4).to(dtype).requires_grad_(), torch.randn(6, 4).to(dtype)
        loss = criterion(query, key)
        bank = criterion.memory_bank.bank.clone()
        loss.backward()
        assert torch.equal(criterion.memory_bank.bank, bank) and query.grad.abs().max() > 0
        assert not torch.equal(criterion.memory_bank.rows(), bank)


def test_the_bank_starts_the_same_everywhere():
    assert torch.equal(losses.MemoryBank((5, 3)).bank, losses.MemoryBank((5, 3)).bank)
    assert not torch.equal(losses.MemoryBank((5, 3), seed=1).bank, losses.MemoryBank((5, 3)).bank)
    torch.testing.assert_close(losses.MemoryBank((5, 3)).bank.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.MemoryBank(5), r"MemoryBank: size must be \(rows, dimension\), got 5"),
        (lambda: losses.MemoryBank((0, 3)), "size must be at least 1, got 0"),
        (lambda: losses.MemoryBank((4, 3)).enqueue(torch.zeros(2, 4)), "rows must have 3 numbers each"),
        (lambda: losses.NTXentLoss(memory_bank_size=4096), "memory_bank_size must be .* got 4096"),
        (lambda: losses.NTXentLoss(memory_bank_size=(1, 2, 3)), "memory_bank_size must be"),
        (lambda: losses.DCLLoss(0.0), "DCLLoss: temperature must be"),
        (lambda: losses.DCLLoss(weight_fn=3), "weight_fn must be a function"),
        (lambda: losses.DCLWLoss(sigma=0), "sigma must be"),
        (lambda: losses.SupConLoss(-1), "SupConLoss: temperature must be"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_the_constructors_are_lightlys():
    peer = pytest.importorskip("lightly.loss")
    import inspect

    for name in ("DCLLoss", "DCLWLoss", "NTXentLoss"):
        mine, theirs = (inspect.signature(getattr(module, name).__init__) for module in (losses, peer))
        assert list(mine.parameters)[len(theirs.parameters) :] == ["exchange"]  # behind all of theirs
        pairs = zip(mine.parameters.values(), theirs.parameters.values(), strict=False)
        assert all(a.name == b.name and a.default == b.default for a, b in pairs), name
    assert repr(losses.DCLWLoss()) == "DCLWLoss(temperature=0.1, gather_distributed=False, sigma=0.5)"
