"""What the ranks of tests/test_distributed.py run. In a module of its own, so that spawned processes can import it."""

from __future__ import annotations

import datetime
import os
import time
import traceback

import commands
import torch
import torch.distributed as dist
import torch.multiprocessing  # so that tensors travel in queues
from torch.utils._python_dispatch import TorchDispatchMode

import fastssl
from fastssl import distributed, functional, losses
from fastssl.ops import registry

N, FEATURES, D = 12, 10, 8  # images in the global batch, input features, embedding dimension or prototypes


class Encoder(torch.nn.Module):
    """A projector of two views, with a temperature that learns too."""

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


class Objective(torch.nn.Module):
    """A loss of what the encoder gives, named after the class that it tests.

    Args:
        name: of the loss, with words after it that say how it is called.
        gather: over the processes of the default group.
    """

    def __init__(self, name, gather):
        super().__init__()
        self.name, self.gather = name, gather
        self.exchange = "ring" if "ring" in name else "gather"
        self.compute = getattr(self, name.split()[0])
        self.criterion = {
            "NTXent": lambda: losses.NTXentLoss(0.2, gather_distributed=gather, exchange=self.exchange),
            "InfoNCE": torch.nn.Identity,
            "Bank": lambda: losses.NTXentLoss(0.2, (7, D), gather_distributed=gather),
            "Clip": torch.nn.Identity,
            "SigLip": torch.nn.Identity,
            "SupCon": lambda: losses.SupConLoss(0.2, gather_distributed=gather, exchange=self.exchange),
            "DCLW": lambda: losses.DCLWLoss(0.2, gather_distributed=gather, exchange=self.exchange),
            "DINO": lambda: losses.DINOLoss(D),
            "IBOT": lambda: losses.IBOTPatchLoss(D),
            "SwaV": lambda: losses.SwaVLoss(sinkhorn_gather_distributed=gather),
            "KoLeo": lambda: losses.KoLeoLoss(gather_distributed=gather),
            "MSN": lambda: losses.MSNLoss(gather_distributed=gather),
        }[name.split()[0]]()

    def forward(self, z0, z1, temperature):
        calls = 2 if list(self.buffers()) else 1  # the second with the centre that the first has moved
        loss = sum(self.compute(z0, z1, temperature) for _ in range(calls))
        return loss + 0.0 * temperature  # DDP wants every parameter used

    def over_ranks(self):
        return {"group": dist.group.WORLD, "exchange": self.exchange} if self.gather else {}

    def NTXent(self, z0, z1, temperature):
        if "learned" in self.name:
            return functional.nt_xent(z0, z1, temperature, **self.over_ranks())
        return self.criterion(z0, z1)

    def InfoNCE(self, z0, z1, temperature):
        key = z1.detach() if "keys" in self.name else z1
        temperature = temperature if "learned" in self.name else 0.2
        return functional.info_nce(z0, key, temperature=temperature, **self.over_ranks())

    def Bank(self, z0, z1, temperature):
        return self.criterion(z0, z1)

    def Clip(self, z0, z1, temperature):
        return functional.clip(z0, z1, 1 / temperature, **self.over_ranks())

    def SigLip(self, z0, z1, temperature):
        return functional.siglip(z0, z1, 1 / temperature, temperature - 2.0, **self.over_ranks())

    def SupCon(self, z0, z1, temperature):
        labels = (100 * z0.detach()[:, 0]).long() % 3  # some are alone on their rank
        return self.criterion(torch.cat((z0, z1)), torch.cat((labels, labels + (labels == 2))))

    def DCLW(self, z0, z1, temperature):
        return self.criterion(z0, z1)

    def DINO(self, z0, z1, temperature):
        return self.criterion([z1.detach() + 0.1, z0.detach()], [z0, z1, z0 * z1])

    def IBOT(self, z0, z1, temperature):
        tokens = torch.stack((z0, z1, z0 * z1), 1)  # [B, 3, D]
        mask = z0.detach()[:, :3] > 0  # of each image as many as it happens to be
        if "gathered" in self.name:
            return self.criterion(tokens.detach().roll(1, 2)[mask], tokens[mask], mask)
        return self.criterion(tokens.detach().roll(1, 2), tokens, mask)

    def SwaV(self, z0, z1, temperature):
        return self.criterion([z0, z1], [z0 * z1]).squeeze()

    def KoLeo(self, z0, z1, temperature):
        return self.criterion(z0) + self.criterion(z1)

    def MSN(self, z0, z1, temperature):
        prototypes = torch.randn(5, D, generator=torch.Generator().manual_seed(2))
        return self.criterion(torch.cat((z0, z1)), z0 * z1, prototypes)


def run_ranks(world_size, calls):
    """Run calls, each (function, *arguments), one after the other in processes of one gloo group.

    Returns:
        For every call what ``function(rank, world_size, *arguments)`` returned, by rank. An exception is returned too:
        the following calls go on.
    """
    context = commands.SERVER
    results, done = context.SimpleQueue(), context.Event()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [
        context.Process(target=_rank, args=(rank, world_size, store.port, results, done, calls))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    found = {}
    end = time.monotonic() + 300
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
    return [[found[rank][call] for rank in range(world_size)] for call in range(len(calls))]


def _rank(rank, world_size, port, results, done, calls):
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    timeout = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)
    found = []
    for function, *arguments in calls:
        try:
            found.append(function(rank, world_size, *arguments))
        except Exception as error:
            traceback.print_exc()
            found.append(RuntimeError(f"rank {rank}: {error}"))
    results.put((rank, found))
    done.wait()
    os._exit(0)  # gloo's threads do not always survive an orderly end, which is not what is tested here


def train_step(rank, world_size, backend, name, compiled):
    """Loss, parameter gradients by name and the loss's buffers of a rank that holds its share of the batch."""
    encoder = torch.nn.parallel.DistributedDataParallel(Encoder())
    objective = Objective(name, gather=True)
    share = N // world_size
    x0, x1 = (x[rank * share : (rank + 1) * share] for x in global_batch())
    # Objectives differ in a bound method, which torch 2.11 does not look at before it takes the graph of another.
    torch.compiler.reset()
    loss_function = torch.compile(objective, fullgraph=True, backend="aot_eager") if compiled else objective
    with fastssl.backend(backend):
        loss = loss_function(*encoder(x0, x1))
        loss.backward()
    gradients = {parameter: value.grad.tolist() for parameter, value in encoder.module.named_parameters()}
    return loss.item(), gradients, {buffer: value.tolist() for buffer, value in objective.named_buffers()}


def frozen_view_step(rank, world_size):
    share = N // world_size
    z0, z1 = (x[rank * share : (rank + 1) * share].requires_grad_() for x in global_batch())
    same = []
    for loss, *numbers in ((functional.nt_xent, 0.2), (functional.clip, 5.0), (functional.siglip, 5.0, -3.0)):
        for over in ({}, {"group": dist.group.WORLD}):
            both = torch.autograd.grad(loss(z0, z1, *numbers, **over), (z0, z1))
            first = torch.autograd.grad(loss(z0, z1.detach(), *numbers, **over), z0)
            second = torch.autograd.grad(loss(z0.detach(), z1, *numbers, **over), z1)
            same += [torch.allclose(a, b, atol=1e-6) for a, b in zip(both, (*first, *second), strict=True)]
    return all(same)


def uneven_step(rank, world_size):
    z = torch.randn(3 + rank, D)
    try:
        functional.nt_xent(z, z, 0.2, group=dist.group.WORLD)
    except ValueError as error:
        return str(error)


def _of_two_views(**over):
    """The losses that can be computed in a ring, by name, as functions of two views [N, D]."""
    labels = torch.arange(N) // 3
    return {
        "nt_xent": lambda x, y: functional.nt_xent(x, y, **over),
        "info_nce": lambda x, y: functional.info_nce(x, y, **over),
        "info_nce of keys": lambda x, y: functional.info_nce(x, y.detach(), **over) + 0.0 * y.sum(),
        "clip": lambda x, y: functional.clip(x, y, 5.0, **over),
        "siglip": lambda x, y: functional.siglip(x, y, 5.0, -5.0, **over),
        "sup_con": lambda x, y: functional.sup_con(torch.stack((x, y), 1), labels[: len(x)], **over),
        "dcl": lambda x, y: functional.dcl(x, y, **over),
    }


def ring_memory(rank, world_size):
    """The largest tensor that each loss and its backward pass make, in numbers, by exchange and loss."""
    largest = {}
    for exchange in ("gather", "ring"):
        for name, loss in _of_two_views(group=dist.group.WORLD, exchange=exchange).items():
            with Largest() as seen:
                loss(*(torch.randn(N, 64, requires_grad=True) for _ in range(2))).backward()
            largest[exchange, name] = seen.numbers
    return largest


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest result of an operator has."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


def ring_order(rank, world_size):
    """What happens in which order: "send" as a transfer starts, "wait" as it is waited for, else a block's rank."""
    events = []

    class Transfer:
        def __init__(self, work):
            self.work = work

        def wait(self):
            events.append("wait")
            self.work.wait()

    def pass_on(*arguments):
        events.append("send")
        return [Transfer(work) for work in start(*arguments)]

    start, distributed.pass_on = distributed.pass_on, pass_on
    try:
        for other, (block,) in distributed.ring_blocks([torch.full((2,), float(rank))], dist.group.WORLD):
            assert (block == other).all()
            events.append(other)
    finally:
        distributed.pass_on = start
    return events


def uneven_ring(rank, world_size):
    z = torch.randn(3 + rank, D)
    try:
        functional.clip(z, z, group=dist.group.WORLD, exchange="ring")
    except ValueError as error:
        return str(error)
    return "no error"


def ring_elsewhere(rank, world_size):
    """A backward pass outside of the block that chose the backend, one of the keys alone, and a second derivative."""
    q, k = (torch.randn(5, D, generator=torch.Generator().manual_seed(rank + 10 * i)) for i in range(2))
    q, k = q.requires_grad_(), k.requires_grad_()
    over = {"group": dist.group.WORLD, "exchange": "ring"}
    used = []
    choose = registry.backend_module
    registry.backend_module = lambda family, backend: used.append(backend) or choose(family, backend)
    try:
        with fastssl.backend("chunked"):
            loss = functional.info_nce(q, k, **over)
        (gradient,) = torch.autograd.grad(loss, q, create_graph=True)
    finally:
        registry.backend_module = choose
    keys_alone = torch.autograd.grad(functional.info_nce(q.detach(), k, **over), k)[0]
    both = torch.autograd.grad(functional.info_nce(q, k, **over), k)[0]
    try:
        gradient.sum().backward()
        second = "no error"
    except RuntimeError as error:
        second = str(error)
    compiled = torch.compile(lambda q, k: functional.clip(q, k, 5.0, **over) * 2.0, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k), functional.clip(q, k, 5.0, **over) * 2.0)
    uneven = torch.randn(3 + rank, D)
    try:
        compiled(uneven, uneven)
        message = "no error"
    except ValueError as error:
        message = str(error)
    return sorted(set(used)), torch.equal(keys_alone, both), second, message


def ring_in_bfloat16(rank, world_size):
    """Largest errors of bfloat16 gradients relative to the largest number, by loss: gathering's, and a ring's."""
    generator = torch.Generator().manual_seed(rank)
    views = [torch.randn(N, D, generator=generator).bfloat16() for _ in range(2)]
    gather, ring = (_of_two_views(group=dist.group.WORLD, exchange=exchange) for exchange in ("gather", "ring"))

    def gradients(loss, dtype):
        inputs = [view.to(dtype).requires_grad_() for view in views]
        return torch.cat(torch.autograd.grad(loss(*inputs), inputs)).double()

    errors = {}
    for name in gather:
        truth = gradients(gather[name], torch.float64)
        errors[name] = [
            ((gradients(forms[name], torch.bfloat16) - truth).abs().max() / truth.abs().max()).item()
            for forms in (gather, ring)
        ]
    return errors
