"""NTXentLoss against the real lightly loss: same arguments, same values, same gradients."""

from __future__ import annotations

import pytest
import torch
from harness import BACKENDS, assert_as_accurate_as_eager, serving

from fastssl.losses import NTXentLoss

lightly_loss = pytest.importorskip("lightly.loss")


def gradients(module, z0, z1):
    z0, z1 = (z.detach().requires_grad_() for z in (z0, z1))
    loss = module(z0, z1)
    return loss, torch.cat(torch.autograd.grad(loss, (z0, z1)))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "d"), [(1, 4), (2, 1), (3, 7), (17, 33), (64, 128), (129, 100)])
@pytest.mark.parametrize("temperature", [0.5, 0.1])
def test_equals_lightly(backend, device, dtype, n, d, temperature):
    with serving(backend, device, dtype):
        generator = torch.Generator().manual_seed(n + d)
        z0 = torch.randn(n, d, generator=generator).to(device, dtype)
        z1 = (z0.cpu() + torch.randn(n, d, generator=generator)).to(device, dtype)
        mine = gradients(NTXentLoss(temperature), z0, z1)
        theirs = gradients(lightly_loss.NTXentLoss(temperature), z0, z1)
        truth = gradients(lightly_loss.NTXentLoss(temperature), z0.double(), z1.double())
        size = torch.ones((), device=device) / temperature
        assert mine[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        accumulator = mine[0].dtype
        values = (t.to(accumulator).reshape(1) for t in (mine[0], theirs[0]))
        assert_as_accurate_as_eager(*values, truth[0].reshape(1), size.double().reshape(1), "loss")
        # A row's gradient adds up attractions and repulsions of 4 / (2 N temperature) in all, times unit elements.
        z = torch.cat((z0, z1)).double()
        length = z.norm(dim=1, keepdim=True)
        terms = (2 / (n * temperature) * (z / length).abs().max() / length).expand(2 * n, d)
        if n > 1 and d > 1:  # otherwise the gradient is exactly zero
            assert_as_accurate_as_eager(mine[1], theirs[1], truth[1], terms, "gradient")


def test_mirrors_the_constructor():
    assert NTXentLoss().temperature == lightly_loss.NTXentLoss().temperature
    assert NTXentLoss(0.2, 0, True).gather_distributed
    assert NTXentLoss(0.2).state_dict() == lightly_loss.NTXentLoss(0.2).state_dict() == {}
    assert repr(NTXentLoss(0.2)) == "NTXentLoss(temperature=0.2, gather_distributed=False)"


@pytest.mark.parametrize(("temperature", "error"), [(0.0, ValueError), (-0.5, ValueError), (None, TypeError)])
def test_a_bad_temperature_is_named(temperature, error):
    with pytest.raises(error, match="NTXentLoss: temperature must be"):
        NTXentLoss(temperature)


def test_gathering_without_a_process_group_is_one_process():
    z = torch.randn(4, 3), torch.randn(4, 3)
    assert torch.equal(NTXentLoss(gather_distributed=True)(*z), NTXentLoss()(*z))
