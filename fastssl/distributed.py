"""The few collectives that the losses need, in forms that ``torch.compile`` traces.

The invariant of every loss that gathers: each rank returns the mean over its own rows, and the parameter gradients
after DDP's averaging equal those of one process on the global batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _functional_collectives as collectives

# torch 2.15 renamed it
_all_gather: Callable[..., Tensor] = getattr(collectives, "all_gather_single", None) or collectives.all_gather_tensor
_reduce_scatter: Callable[..., Tensor] = (
    getattr(collectives, "reduce_scatter_single", None) or collectives.reduce_scatter_tensor
)
_all_reduce: Callable[..., Tensor] = collectives.all_reduce  # takes a group's name, which its annotation hides
_checked: set[tuple[str, str]] = set()


def all_gather_rows(rows: Tensor, group: str) -> Tensor:
    """Every rank's rows [M, ...] in rank order, [world_size * M, ...]. Not differentiable.

    ``group`` is a group's name, which unlike the group itself can stand in an operator's schema and in a graph.
    """
    return collectives.wait_tensor(_all_gather(rows.contiguous(), 0, group))


def all_gather_vectors(vectors: Sequence[Tensor | None], group: str) -> list[Tensor | None]:
    """Gather some vectors [M] of one dtype with one collective: [world_size * M] each, None stays None."""
    present = [vector for vector in vectors if vector is not None]
    gathered = iter(all_gather_rows(torch.stack(present, 1), group).unbind(1))
    return [None if vector is None else next(gathered).contiguous() for vector in vectors]


def sum_over_ranks(values: Tensor, group: str) -> Tensor:
    """Elementwise sum of every rank's values. Not differentiable."""
    return collectives.wait_tensor(_all_reduce(values, "sum", group))


def logsumexp_over_ranks(values: Tensor, group: str) -> Tensor:
    """Elementwise log-sum-exp of every rank's values, [K]. Not differentiable."""
    largest = collectives.wait_tensor(_all_reduce(values, "max", group))
    shift = torch.where(largest == -torch.inf, 0.0, largest)  # nowhere a summand: the sum is minus infinity again
    total = collectives.wait_tensor(_all_reduce((values - shift).exp(), "sum", group))
    return total.log() + shift


def check_same_shape(function: str, name: str, tensor: Tensor, group: dist.ProcessGroup) -> None:
    """Raise on every rank when the ranks disagree about a shape, instead of hanging in the next collective.

    On the CPU every call checks. On a GPU reading the answer would stop the stream, so the first call with a group
    checks, and every call does with FASTSSL_DEBUG=1. A compiled graph never checks.

    Raises:
        ValueError: naming each rank's shape.
    """
    if torch.compiler.is_compiling():  # values cannot be read in a graph: compiled steps must be even
        return
    key = (function, group.group_name)
    if tensor.is_cuda and key in _checked and os.environ.get("FASTSSL_DEBUG") != "1":
        return
    mine = torch.tensor(tensor.shape, device=tensor.device)
    shapes = [torch.empty_like(mine) for _ in range(group.size())]
    dist.all_gather(shapes, mine, group=group)
    listed = [tuple(shape.tolist()) for shape in shapes]
    if any(shape != listed[0] for shape in listed):
        raise ValueError(f"{function}: {name} must have the same shape on every rank, got {listed} by rank")
    _checked.add(key)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: str) -> Tensor:
        ctx.group = group
        return all_gather_rows(rows, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return collectives.wait_tensor(_reduce_scatter(gradient.contiguous(), "sum", 0, ctx.group)), None


def gather_with_gradient(rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    """As ``all_gather_rows``; each rank's rows get the sum of the gradients that all ranks have for them."""
    return _Gather.apply(rows, group.group_name)


def ring_blocks(own: Sequence[Tensor], group: dist.ProcessGroup) -> Iterator[tuple[int, list[Tensor]]]:
    """Every rank's tensors, one rank's after the other's, this one's first: (rank, tensors).

    They come from the rank before this one and go on to the next while the caller computes with them. Besides its own,
    a rank holds two ranks' tensors at a time. Not differentiable. Every rank must go through all of them, and all
    ranks' tensors must have the same shapes.
    """
    size, rank = group.size(), group.rank()
    here = [tensor.detach().contiguous() for tensor in own]
    spare: list[Tensor] | None = None
    for step in range(size):
        arriving, transfers = here, []
        if step < size - 1:
            arriving = [torch.empty_like(tensor) for tensor in here] if spare is None or step == 1 else spare
            transfers = pass_on(here, arriving, group)
        yield (rank - step) % size, here
        for transfer in transfers:
            transfer.wait()
        here, spare = arriving, here


def pass_on(send: Sequence[Tensor], receive: Sequence[Tensor], group: dist.ProcessGroup) -> list[dist.Work]:
    """Start to send tensors to the next rank of a group and to receive the previous one's.

    What is returned has to be waited for before the sent tensors change or the received ones are read.
    """
    size, rank = group.size(), group.rank()
    after, before = (dist.get_global_rank(group, other % size) for other in (rank + 1, rank - 1))
    return dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, tensor, after, group) for tensor in send]
        + [dist.P2POp(dist.irecv, tensor, before, group) for tensor in receive]
    )
