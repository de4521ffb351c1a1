"""Sinkhorn-Knopp against the published loop, in PyTorch and by lightly.

Every provider turns logits [B, K] into assignments whose rows sum to 1 and whose columns are as equal as three
iterations make them (SwAV, DINOv2). Others return the assignments, [B, K]. fastssl returns their logarithms' two
potentials, [K] and [B], which is what its losses take: for the comparison with the truth the assignments are made of
them, untimed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

import fastssl

from .cases import Case, Expected, Family, Function, Provider, Work
from .providers import FORCED, check_above_zero, compiled, of_fastssl

ITERATIONS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--k", type=int, nargs="+", default=[8192, 65536], metavar="K", help="prototypes")
    parser.add_argument("--batch", type=int, nargs="+", default=[128], metavar="B", help="rows: images times views")
    parser.add_argument("--temperature", type=float, default=0.05)


def cases(arguments: argparse.Namespace, device: str) -> list[Case]:
    temperature = arguments.temperature
    check_above_zero({"--k": arguments.k, "--batch": arguments.batch, "--temperature": [temperature]})
    return [
        Case.named({"K": k, "B": b, "temperature": temperature}, dtype, device)
        for dtype in arguments.dtype
        for b in arguments.batch
        for k in arguments.k
    ]


def tiny_sizes(sizes: Mapping[str, float]) -> dict[str, float]:
    return {**sizes, "K": min(sizes["K"], 64), "B": min(sizes["B"], 4)}


def inputs(case: Case, seed: int) -> tuple[Tensor]:
    """Logits of the size of cosines, with prototypes of unequal popularity."""
    k, b = int(case.sizes["K"]), int(case.sizes["B"])
    generator = torch.Generator(case.device).manual_seed(seed)
    logits = torch.randn(b, k, generator=generator, device=case.device).mul_(0.1)
    popularity = torch.randn(k, generator=generator, device=case.device).mul_(0.05)
    return ((logits + popularity).to(case.dtype),)


def truth(case: Case, inputs: tuple[Tensor, ...], seed: int) -> list[Expected]:
    """Assignments in float64, all of them. An assignment inherits the error of its exponential's argument.

    Logits are what they are in any dtype, and everyone computes in float32: its eps bounds the error, not the logits'.
    """
    scaled = inputs[0].double() / case.sizes["temperature"]
    columns, rows = log_domain_potentials(scaled)
    assignments = (scaled - columns - rows[:, None]).exp_()
    sizes = scaled.abs().add_(columns.abs()).add_(rows.abs()[:, None])
    terms = assignments * (1 + sizes) * (torch.finfo(torch.float32).eps / case.eps)
    return [Expected("assignments", assignments, terms, assignments.shape)]


def work(case: Case, which: str) -> Work:
    """An iteration reads the logits once, for the rows' and the next columns' potentials; the first one twice."""
    return Work(0, (ITERATIONS + 1) * case.sizes["B"] * case.sizes["K"] * case.dtype.itemsize)


# --- Providers ------------------------------------------------------------------------------------------------------


def log_domain_potentials(scaled: Tensor) -> tuple[Tensor, Tensor]:
    """Potentials of columns, [K], and rows, [B], of logits that were divided by the temperature."""
    rows = scaled.new_zeros(scaled.shape[0])
    columns = scaled.new_zeros(scaled.shape[1])
    for _ in range(ITERATIONS):
        columns = (scaled - rows[:, None]).logsumexp(0)
        rows = (scaled - columns).logsumexp(1)
    return columns, rows


def _loop(case: Case) -> Function:
    """As it is published: exponentials that overflow for large logits, normalised in turns."""
    temperature = case.sizes["temperature"]

    def function(logits: Tensor) -> Tensor:
        q = torch.exp(logits.float() / temperature).t()
        k, b = q.shape
        q /= q.sum()
        for _ in range(ITERATIONS):
            q /= q.sum(1, keepdim=True)
            q /= k
            q /= q.sum(0, keepdim=True)
            q /= b
        return (q * b).t()

    return function


def _log_domain(case: Case) -> Function:
    """Safe for logits of any size."""
    temperature = case.sizes["temperature"]

    def function(logits: Tensor) -> Tensor:
        scaled = logits.float() / temperature
        columns, rows = log_domain_potentials(scaled)
        return (scaled - columns - rows[:, None]).exp()

    return function


def _fastssl(case: Case) -> Function:
    temperature = case.sizes["temperature"]
    return lambda logits: fastssl.functional.sinkhorn_knopp(logits, temperature, iterations=ITERATIONS)


def _assignments(case: Case, inputs: Sequence[Tensor], potentials: tuple[Tensor, Tensor]) -> Tensor:
    columns, rows = potentials
    return (inputs[0].float() / case.sizes["temperature"] - columns - rows[:, None]).exp_()


def _lightly(case: Case) -> Function:
    from lightly.loss.swav_loss import sinkhorn

    temperature = case.sizes["temperature"]
    return lambda logits: sinkhorn(logits.float(), ITERATIONS, temperature)


def _matrices(count: float) -> Callable[[Case], float]:
    """Bytes of so many float32 [B, K]."""
    return lambda case: count * 4 * case.sizes["B"] * case.sizes["K"]


PROVIDERS = {
    **of_fastssl(_fastssl, "potential_logsumexp", finish=_assignments),
    "eager": Provider(_loop, bytes_needed=_matrices(2)),
    "eager-log": Provider(_log_domain, bytes_needed=_matrices(4)),
    "compiled": Provider(compiled(_loop), compiles=True, bytes_needed=_matrices(2)),
    "compiled-log": Provider(compiled(_log_domain), compiles=True, bytes_needed=_matrices(2)),
    "lightly": Provider(_lightly, bytes_needed=_matrices(2)),
}

FAMILY = Family(
    name="sinkhorn_knopp",
    module=__name__,
    subject="fastssl",
    baseline="eager",
    add_arguments=add_arguments,
    cases=cases,
    inputs=inputs,
    truth=truth,
    tiny_sizes=tiny_sizes,
    work=work,
    work_model=f"which is memory's bandwidth: the logits read {ITERATIONS + 1} times for {ITERATIONS} iterations, at "
    "the rate of the best copy; two exponentials per number and iteration are not counted. fastssl returns potentials",
    providers=PROVIDERS,
    optional=FORCED,
    passes=("forward",),
)
