"""MoCo's loss: N queries, each with its key, against a queue of K; only the queries want a gradient.

Every provider computes the mean over queries of ``-log(exp(s_+) / (exp(s_+) + sum_k exp(s_k)))`` with cosines over
the temperature. Queries and keys come as the heads make them; the queue's rows have length 1, as all peers keep them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

import fastssl

from .cases import Case, Expected, Family, Function, Provider, Work
from .providers import FORCED, GradientInForward, autocast, check_above_zero, compiled, of_fastssl

BLOCK_ROWS = 64  # of the chunked form


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, nargs="+", default=[256], metavar="N", help="queries")
    parser.add_argument("--queue", type=int, nargs="+", default=[65536], metavar="K", help="negatives")
    parser.add_argument("--dim", type=int, nargs="+", default=[128], metavar="D", help="features of a row")
    parser.add_argument("--temperature", type=float, default=0.2, help="of the softmax")


def cases(arguments: argparse.Namespace, device: str) -> list[Case]:
    check_above_zero({
        "--batch": arguments.batch, "--queue": arguments.queue, "--dim": arguments.dim,
        "--temperature": [arguments.temperature],
    })  # fmt: skip
    return [
        Case.named({"N": n, "K": k, "D": d, "temperature": arguments.temperature}, dtype, device)
        for dtype in arguments.dtype
        for d in arguments.dim
        for k in arguments.queue
        for n in arguments.batch
    ]


def tiny_sizes(sizes: Mapping[str, float]) -> dict[str, float]:
    return {**sizes, "N": min(sizes["N"], 4), "K": min(sizes["K"], 64)}


def inputs(case: Case, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys near them, and the queue."""
    n, k, d = (int(case.sizes[name]) for name in ("N", "K", "D"))
    generator = torch.Generator(case.device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=case.device)

    query = normal(n, d)
    key = (query + normal(n, d)).to(case.dtype)
    queue = F.normalize(normal(k, d), dim=1).to(case.dtype)
    return query.to(case.dtype).requires_grad_(), key, queue


def truth(case: Case, inputs: tuple[Tensor, ...], seed: int) -> list[Expected]:
    """Loss and gradient in float64."""
    query, key, queue = (x.detach().double() for x in inputs)
    query.requires_grad_()
    loss = eager(case.sizes["temperature"])(query, key, queue)
    loss.backward()
    gradient = query.grad
    assert gradient is not None
    # Attraction and repulsion, 1 / (N temperature) each in all, times the elements of unit rows.
    per_row = 2 / (case.sizes["N"] * case.sizes["temperature"] * query.detach().norm(dim=1, keepdim=True))
    return [
        Expected("loss", loss.detach(), loss.detach().abs() + 2 / case.sizes["temperature"], loss.shape),
        Expected("gradient of the queries", gradient, per_row.expand_as(gradient), gradient.shape, is_gradient=True),
    ]


def work(case: Case, which: str) -> Work:
    """A product for the similarities, and one for the gradient; the queue is read once."""
    n, k, d = (case.sizes[name] for name in ("N", "K", "D"))
    products = {"forward": 1, "backward": 1, "both": 2}[which]
    return Work(2 * products * n * k * d, k * d * case.dtype.itemsize)


# --- Providers ------------------------------------------------------------------------------------------------------


def eager(temperature: float) -> Function:
    """The published code: logits beside each other, and a cross-entropy."""

    def loss(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
        query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
        positive = torch.einsum("nc,nc->n", query, key).unsqueeze(-1)
        logits = torch.cat([positive, query @ queue.T], 1) / temperature
        return F.cross_entropy(logits.float() if logits.dtype != torch.float64 else logits,
                               torch.zeros(len(query), dtype=torch.int64, device=query.device))  # fmt: skip

    return loss


def lean(temperature: float) -> Function:
    """Without the copy beside the positives."""

    def loss(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
        query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
        positive = (query * key).sum(1).float() / temperature
        log_sum = (query @ queue.T).float().div(temperature).logsumexp(1)
        return (torch.logaddexp(log_sum, positive) - positive).mean()

    return loss


class _ByHand(GradientInForward):
    """Loss and gradient in the forward pass, a few queries at a time: no matrix is stored."""

    @staticmethod
    def forward(ctx, query, key, queue, temperature):  # type: ignore[no-untyped-def]
        unit, own = F.normalize(query, dim=1), F.normalize(key, dim=1)
        total, gradient = query.new_zeros((), dtype=torch.float32), torch.empty_like(query)
        for start in range(0, len(query), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            logits = (unit[rows] @ queue.T).float().div_(temperature)
            positive = (unit[rows] * own[rows]).sum(1).float() / temperature
            log_sum = torch.logaddexp(logits.logsumexp(1), positive)
            total += (log_sum - positive).sum()
            p = logits.sub_(log_sum[:, None]).exp_().to(query.dtype)
            of_key = ((positive - log_sum).exp() - 1).to(query.dtype)
            d_unit = (p @ queue + of_key[:, None] * own[rows]) / (temperature * len(query))
            radial = (d_unit * unit[rows]).sum(1, keepdim=True)
            gradient[rows] = (d_unit - radial * unit[rows]) / query[rows].norm(dim=1, keepdim=True)
        ctx.save_for_backward(gradient)
        return total / len(query)


def _of(make: Callable[[float], Function]) -> Callable[[Case], Function]:
    return lambda case: make(case.sizes["temperature"])


def _chunked(case: Case) -> Function:
    return lambda query, key, queue: _ByHand.apply(query, key, queue, case.sizes["temperature"])


def _fastssl(case: Case) -> Function:
    temperature = case.sizes["temperature"]
    return lambda query, key, queue: fastssl.functional.info_nce(query, key, queue, temperature=temperature)


def _lightly(case: Case) -> Function:
    """Its NTXentLoss with a bank that holds the queue; it copies the bank at every step, and enqueues."""
    from lightly.loss import NTXentLoss

    module = NTXentLoss(case.sizes["temperature"], memory_bank_size=(int(case.sizes["K"]), int(case.sizes["D"])))
    module = module.to(case.device)
    bank = module.memory_bank

    def loss(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
        bank.bank = queue.float()  # the same queue for everyone; no copy where it is float32
        bank._dequeue_and_enqueue = lambda batch: None
        return module(query, key)

    return loss


def _matrices(count: float) -> Callable[[Case], float]:
    """Bytes of so many float32 matrices of all logits."""
    return lambda case: count * 4 * case.sizes["N"] * case.sizes["K"]


PROVIDERS = {
    **of_fastssl(_fastssl, "info_nce"),
    "eager": Provider(_of(eager), bytes_needed=_matrices(4)),
    "eager-lean": Provider(_of(lean), bytes_needed=_matrices(3)),
    "compiled": Provider(compiled(_of(eager)), compiles=True, bytes_needed=_matrices(3)),
    "compiled-lean": Provider(compiled(_of(lean)), compiles=True, bytes_needed=_matrices(2)),
    "chunked": Provider(_chunked),
    "lightly": Provider(autocast(_lightly), bytes_needed=_matrices(4)),
}

FAMILY = Family(
    name="info_nce",
    module=__name__,
    subject="fastssl",
    baseline="eager",
    add_arguments=add_arguments,
    cases=cases,
    inputs=inputs,
    truth=truth,
    tiny_sizes=tiny_sizes,
    work=work,
    work_model="forward and backward N K D multiply-adds each, at the rate of the best product",
    providers=PROVIDERS,
    optional=FORCED,
)
