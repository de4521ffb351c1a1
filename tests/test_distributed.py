"""Ranks that gather equal one process on the global batch: gloo processes, through DistributedDataParallel."""

from __future__ import annotations

import datetime
import os
import traceback

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from harness import serving

import fastssl
from fastssl import functional
from fastssl.losses import NTXentLoss

N, FEATURES, D = 12, 10, 8  # images in the global batch, input features, embedding dimension


class Encoder(torch.nn.Module):
    """A projector, with a temperature that learns too."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(FEATURES, 16), torch.nn.Tanh(), torch.nn.Linear(16, D))
        self.temperature = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, x0, x1):
        return self.layers(x0), self.layers(x1), self.temperature * 1.0


def global_batch():
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(N, FEATURES, generator=generator)
    return x0, x0 + 0.3 * torch.randn(N, FEATURES, generator=generator)


def loss_of(encoder, x0, x1, learn_temperature, group=None):
    z0, z1, temperature = encoder(x0, x1)
    if learn_temperature:
        return functional.nt_xent(z0, z1, temperature, group=group)
    # The module as SimCLR uses it; the temperature takes part with weight 0, as DDP wants every parameter used.
    return NTXentLoss(0.2, gather_distributed=group is not None)(z0, z1) + 0.0 * temperature


def run_ranks(world_size, function, *arguments):
    """Run ``function(rank, world_size, *arguments)`` in processes of one gloo group; returns their results by rank."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [
        context.Process(target=_rank, args=(rank, world_size, store.port, results, function, arguments))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert all(process.exitcode == 0 for process in processes), [process.exitcode for process in processes]
    return [result for _, result in sorted((results.get() for _ in processes), key=lambda item: item[0])]


def _rank(rank, world_size, port, results, function, arguments):
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=world_size, timeout=datetime.timedelta(seconds=60)
    )
    try:
        results.put((rank, function(rank, world_size, *arguments)))
    except Exception:
        traceback.print_exc()
        os._exit(1)
    dist.barrier()
    dist.destroy_process_group()


def train_step(rank, world_size, backend, learn_temperature, compiled):
    encoder = torch.nn.parallel.DistributedDataParallel(Encoder())
    share = N // world_size
    x0, x1 = (x[rank * share : (rank + 1) * share] for x in global_batch())
    step = torch.compile(loss_of, fullgraph=False, backend="aot_eager") if compiled else loss_of
    with fastssl.backend(backend):
        loss = step(encoder, x0, x1, learn_temperature, dist.group.WORLD)
        loss.backward()
    return loss.item(), [p.grad.tolist() for p in encoder.module.parameters()]


@pytest.mark.parametrize(
    ("world_size", "backend", "learn_temperature", "compiled"),
    [(2, "cpp", False, False), (4, "cpp", True, False), (2, "chunked", True, False), (2, "cpp", False, True)],
)
def test_gradient_equals_one_process_on_the_global_batch(world_size, backend, learn_temperature, compiled):
    with serving(backend, "cpu"):
        encoder = Encoder()
        loss = loss_of(encoder, *global_batch(), learn_temperature)
        loss.backward()
    ranks = run_ranks(world_size, train_step, backend, learn_temperature, compiled)
    assert sum(rank_loss for rank_loss, _ in ranks) / world_size == pytest.approx(loss.item(), rel=1e-5)
    for _, gradients in ranks:
        for (name, parameter), gradient in zip(encoder.named_parameters(), gradients, strict=True):
            torch.testing.assert_close(torch.tensor(gradient), parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert encoder.temperature.grad.abs() > 1e-3 or not learn_temperature


def frozen_view_step(rank, world_size):
    share = N // world_size
    z0, z1 = (x[rank * share : (rank + 1) * share].requires_grad_() for x in global_batch())
    group = dist.group.WORLD
    both = torch.autograd.grad(functional.nt_xent(z0, z1, 0.2, group=group), (z0, z1))
    first = torch.autograd.grad(functional.nt_xent(z0, z1.detach(), 0.2, group=group), z0)
    second = torch.autograd.grad(functional.nt_xent(z0.detach(), z1, 0.2, group=group), z1)
    return all(torch.allclose(a, b, atol=1e-7) for a, b in zip(both, (*first, *second), strict=True))


def test_a_frozen_view_leaves_the_others_gradient_as_it_is():
    assert run_ranks(2, frozen_view_step) == [True, True]


def uneven_step(rank, world_size):
    z = torch.randn(3 + rank, D)
    try:
        functional.nt_xent(z, z, 0.2, group=dist.group.WORLD)
    except ValueError as error:
        return str(error)


def test_uneven_batches_raise_on_every_rank():
    for message in run_ranks(2, uneven_step):
        assert message == "nt_xent: z0 must have the same shape on every rank, got [(3, 8), (4, 8)] by rank"
