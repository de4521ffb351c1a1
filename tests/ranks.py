"""What the ranks of tests/test_distributed.py run. In a module of its own, so that spawned processes can import it."""

from __future__ import annotations

import datetime
import os
import time
import traceback

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

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


def loss_of(z0, z1, temperature, learn_temperature, group=None):
    if learn_temperature:
        return functional.nt_xent(z0, z1, temperature, group=group)
    # The module as SimCLR uses it; the temperature takes part with weight 0, as DDP wants every parameter used.
    return NTXentLoss(0.2, gather_distributed=group is not None)(z0, z1) + 0.0 * temperature


def run_ranks(world_size, function, *arguments):
    """Run ``function(rank, world_size, *arguments)`` in processes of one gloo group; returns their results by rank."""
    context = multiprocessing.get_context("spawn")
    results, done = context.SimpleQueue(), context.Event()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [
        context.Process(target=_rank, args=(rank, world_size, store.port, results, done, function, arguments))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    found = {}
    end = time.monotonic() + 120
    while len(found) < world_size:
        while not results.empty():
            rank, result = results.get()
            found[rank] = result
        codes = [process.exitcode for process in processes]
        assert not any(code is not None for code in codes), f"a rank ended early, exit codes {codes}"
        assert time.monotonic() < end, f"only ranks {sorted(found)} answered"
        time.sleep(0.01)
    done.set()
    for process in processes:
        process.join()
    return [found[rank] for rank in range(world_size)]


def _rank(rank, world_size, port, results, done, function, arguments):
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    timeout = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)
    try:
        results.put((rank, function(rank, world_size, *arguments)))
    except Exception:
        traceback.print_exc()
        os._exit(1)
    done.wait()
    os._exit(0)  # gloo's threads do not always survive an orderly end, which is not what is tested here


def train_step(rank, world_size, backend, learn_temperature, compiled):
    encoder = torch.nn.parallel.DistributedDataParallel(Encoder())
    share = N // world_size
    x0, x1 = (x[rank * share : (rank + 1) * share] for x in global_batch())
    loss_function = torch.compile(loss_of, fullgraph=True, backend="aot_eager") if compiled else loss_of
    with fastssl.backend(backend):
        loss = loss_function(*encoder(x0, x1), learn_temperature, dist.group.WORLD)
        loss.backward()
    return loss.item(), [p.grad.tolist() for p in encoder.module.parameters()]


def frozen_view_step(rank, world_size):
    share = N // world_size
    z0, z1 = (x[rank * share : (rank + 1) * share].requires_grad_() for x in global_batch())
    group = dist.group.WORLD
    both = torch.autograd.grad(functional.nt_xent(z0, z1, 0.2, group=group), (z0, z1))
    first = torch.autograd.grad(functional.nt_xent(z0, z1.detach(), 0.2, group=group), z0)
    second = torch.autograd.grad(functional.nt_xent(z0.detach(), z1, 0.2, group=group), z1)
    return all(torch.allclose(a, b, atol=1e-7) for a, b in zip(both, (*first, *second), strict=True))


def uneven_step(rank, world_size):
    z = torch.randn(3 + rank, D)
    try:
        functional.nt_xent(z, z, 0.2, group=dist.group.WORLD)
    except ValueError as error:
        return str(error)
