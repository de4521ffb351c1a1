"""KoLeo, DINOv2's nearest-neighbour regulariser, against its published form, compiled and chunked PyTorch, lightly.

Every provider computes, from features x [N, D], the mean of ``-log(||x_i - x_nn(i)|| + eps)`` over normalised rows,
with nn(i) the row of the largest inner product. Published code leaves autocast for it: everyone computes in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

import fastssl

from .cases import Case, Expected, Family, Function, Provider, Work
from .providers import FORCED, check_above_zero, compiled, of_fastssl

EPS = 1e-8
BLOCK_ROWS = {"cpu": 512, "cuda": 8192}  # of the chunked form


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--n", type=int, nargs="+", default=[512, 4096], metavar="N", help="rows")
    parser.add_argument("--dim", type=int, nargs="+", default=[384], metavar="D", help="features of a row")


def cases(arguments: argparse.Namespace, device: str) -> list[Case]:
    check_above_zero({"--n": arguments.n, "--dim": arguments.dim})
    if min(arguments.n) < 2:
        raise ValueError(f"--n must be at least 2, or there is no neighbour, got {min(arguments.n)}")
    return [
        Case.named({"N": n, "D": d}, dtype, device)
        for dtype in arguments.dtype
        for d in arguments.dim
        for n in arguments.n
    ]


def tiny_sizes(sizes: Mapping[str, float]) -> dict[str, float]:
    return {**sizes, "N": min(sizes["N"], 16)}


def inputs(case: Case, seed: int) -> tuple[Tensor]:
    """Rows in pairs (cosine about 0.7) at random places: which row is nearest does not hang on rounding."""
    n, d = int(case.sizes["N"]), int(case.sizes["D"])
    generator = torch.Generator(case.device).manual_seed(seed)
    middle = torch.randn(-(-n // 2), d, generator=generator, device=case.device).repeat(2, 1)[:n]
    rows = middle + 0.65 * torch.randn(n, d, generator=generator, device=case.device)
    order = torch.randperm(n, generator=generator, device=case.device)
    return (rows[order].to(case.dtype).requires_grad_(),)


TRUTH_BLOCK = 1 << 22  # inner products in a block of rows of the float64 truth: 32 MB


def truth(case: Case, inputs: tuple[Tensor, ...], seed: int) -> list[Expected]:
    """Loss and gradient in float64, of all rows, with the sums of absolute terms.

    A row's gradient has a term for its own distance and one for each row whose nearest it is; each is 1 / distance
    times a unit vector, less its part along the row, and inherits the distance's relative error.
    """
    x = inputs[0].detach().double()
    n = x.shape[0]
    norm = x.norm(dim=1, keepdim=True).clamp_min(EPS)
    unit = x / norm
    nearest = torch.empty(n, dtype=torch.long, device=x.device)
    for rows in torch.arange(n, device=x.device).split(max(1, TRUTH_BLOCK // n)):
        cosines = unit[rows] @ unit.T
        cosines[torch.arange(len(rows), device=x.device), rows] = -2
        nearest[rows] = cosines.argmax(1)
    apart = unit - unit[nearest] + EPS
    distance = apart.norm(dim=1, keepdim=True)
    loss = -(distance + EPS).log().mean()
    pull = -apart / (distance * (distance + EPS) * n)
    size = (unit.abs() + unit[nearest].abs()) / (distance * (distance + EPS) * n) * (1 + 1 / distance)
    through = pull.index_add(0, nearest, pull, alpha=-1)
    terms = size.index_add(0, nearest, size)
    gradient = (through - (through * unit).sum(1, keepdim=True) * unit) / norm
    terms = (terms + (terms * unit.abs()).sum(1, keepdim=True) * unit.abs()) / norm
    loss_terms = ((distance + EPS).log().abs() + 1 / distance).mean()
    return [
        Expected("loss", loss, loss_terms, loss.shape),
        Expected("gradient of x", gradient, terms, gradient.shape, is_gradient=True),
    ]


def work(case: Case, which: str) -> Work:
    n, d = case.sizes["N"], case.sizes["D"]
    moves = {"forward": 1, "backward": 2, "both": 3}[which]
    return Work(0 if which == "backward" else n * n * d, moves * n * d * case.dtype.itemsize)


# --- Providers ------------------------------------------------------------------------------------------------------


def _distances(rows: Tensor, nearest: Tensor) -> Tensor:
    return -(F.pairwise_distance(rows, rows[nearest], p=2, eps=EPS) + EPS).log().mean()


def eager(x: Tensor) -> Tensor:
    """As it is published: all inner products, their arg-max, and the distance to that row."""
    rows = F.normalize(x.float(), dim=1, eps=EPS)
    with torch.no_grad():
        products = rows @ rows.T
        products.fill_diagonal_(-2)
        nearest = products.argmax(1)
    return _distances(rows, nearest)


def chunked(x: Tensor) -> Tensor:
    """The same with a block of rows' inner products at a time."""
    rows = F.normalize(x.float(), dim=1, eps=EPS)
    with torch.no_grad():
        found = []
        for start in range(0, len(rows), BLOCK_ROWS[x.device.type]):
            products = rows[start : start + BLOCK_ROWS[x.device.type]] @ rows.T
            products.diagonal(start).fill_(-2)
            found.append(products.argmax(1))
    return _distances(rows, torch.cat(found))


def _plain(function: Function) -> Callable[[Case], Function]:
    return lambda case: function


def _fastssl(case: Case) -> Function:
    return lambda x: fastssl.functional.koleo(x, eps=EPS)


def _lightly(case: Case) -> Function:
    from lightly.loss import KoLeoLoss

    module = KoLeoLoss(eps=EPS)
    return lambda x: module(x.float())


def _matrices(count: float) -> Callable[[Case], float]:
    """Bytes of so many float32 matrices of all inner products."""
    return lambda case: count * 4 * case.sizes["N"] ** 2


PROVIDERS = {
    **of_fastssl(_fastssl, "nearest_neighbors"),
    "eager": Provider(_plain(eager), bytes_needed=_matrices(1)),
    "compiled": Provider(compiled(_plain(eager)), compiles=True, bytes_needed=_matrices(1)),
    "chunked": Provider(_plain(chunked)),
    "lightly": Provider(_lightly, bytes_needed=_matrices(1)),
}

FAMILY = Family(
    name="koleo",
    module=__name__,
    subject="fastssl",
    baseline="eager",
    add_arguments=add_arguments,
    cases=cases,
    inputs=inputs,
    truth=truth,
    tiny_sizes=tiny_sizes,
    work=work,
    work_model="forward N^2 D FLOPs (half of the symmetric matrix of inner products), backward as good as none",
    providers=PROVIDERS,
    optional=FORCED,
)
