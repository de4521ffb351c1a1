"""NT-Xent against what people use: eager, compiled and chunked PyTorch, lightly, pytorch-metric-learning.

Every provider computes the SimCLR loss of two views z0, z1 [N, D]: rows normalised, the mean over all 2N rows of
``logsumexp over the others - similarity to the other view``, similarities divided by the temperature. Baselines are
written as their users write them, and in the strongest forms that we know (``nt_xent_baselines``).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

import fastssl

from .cases import Case, Expected, Family, Function, Provider, Unavailable, Work, precision
from .nt_xent_baselines import BLOCK_ROWS, chunked, eager, lean, symmetric
from .providers import FORCED, LOW_PRECISION, autocast, check_above_zero, compiled, of_fastssl


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--n", type=int, nargs="+", default=[512, 1024, 4096], metavar="N", help="images per batch")
    parser.add_argument("--dim", type=int, nargs="+", default=[128], metavar="D", help="embedding dimension")
    parser.add_argument("--temperature", type=float, default=0.1)


def cases(arguments: argparse.Namespace, device: str) -> list[Case]:
    check_above_zero({"--n": arguments.n, "--dim": arguments.dim, "--temperature": [arguments.temperature]})
    return [
        Case.named({"N": n, "D": d, "temperature": arguments.temperature}, dtype, device)
        for dtype in arguments.dtype
        for d in arguments.dim
        for n in arguments.n
    ]


def tiny_sizes(sizes: Mapping[str, float]) -> dict[str, float]:
    return {**sizes, "N": min(sizes["N"], 16)}


def inputs(case: Case, seed: int) -> tuple[Tensor, Tensor]:
    """Two correlated views (cosine about 0.55): softmax weights that are neither equal nor saturated."""
    n, d = int(case.sizes["N"]), int(case.sizes["D"])
    generator = torch.Generator(case.device).manual_seed(seed)
    image = torch.randn(n, d, generator=generator, device=case.device)
    other = image + 1.5 * torch.randn(n, d, generator=generator, device=case.device)
    z0, z1 = (view.to(case.dtype).requires_grad_() for view in (image, other))
    return z0, z1


TRUTH_BLOCK = {"cpu": 1 << 22, "cuda": 1 << 27}  # logits in a block of rows of the float64 truth: 32 MB, 1 GB
EVERY_ROW = 8192  # the most rows (M = 2N) of which all gradients are compared
SAMPLED_ROWS = 512  # of a larger problem, and:
EDGE_ROWS = 16  # at either end of each view, where a kernel's tails are
# exp(logit - s) is above the smallest float64 where s stays below half of this.
LARGEST_EXPONENT = 700


def truth(case: Case, inputs: tuple[Tensor, ...], seed: int) -> list[Expected]:
    """Loss and gradients in float64, a block of rows at a time, with the sums of absolute terms beside them.

    The loss is of all rows. Gradients are of all rows in problems of up to ``EVERY_ROW``, beyond that of the rows that
    ``compared_rows`` chooses. A term of the gradient is a softmax weight exp(logit - log-sum) times a row. Whoever
    takes the exponential inherits the error of its argument, which is summed in float32 at least: relative to the term,
    float32's eps times the sizes of logit and log-sum.
    """
    n, s = inputs[0].shape[0], 1 / case.sizes["temperature"]
    m = 2 * n
    inherited = torch.finfo(torch.float32).eps / case.eps
    z = torch.cat([view.detach().double() for view in inputs])  # [M, D]
    norm = z.norm(dim=1, keepdim=True).clamp_min(1e-12)
    unit = z / norm
    size = unit.abs().float()  # for the terms, which are a bound and need no float64
    positive = torch.arange(m, device=z.device).roll(n)
    lse = _log_sums(unit, s)
    loss = lse.mean() - s * (unit * unit[positive]).sum() / m

    compared = compared_rows(n, seed).to(z.device)
    gradient, gradient_terms, loss_terms = [], [], []
    inexact = (1 + inherited * (s + lse.abs())).float()  # no logit exceeds s
    with precision("float32"):
        for rows in compared.split(max(1, TRUTH_BLOCK[case.device] // m)):
            logits = s * unit[rows] @ unit.T
            logits[torch.arange(len(rows), device=z.device), rows] = -torch.inf
            of_row, of_column = (logits - lse[rows, None]).exp_(), (logits - lse[None, :]).exp_()
            through = (of_row + of_column) @ unit - 2 * unit[positive[rows]]
            scale = s / m / norm[rows]
            gradient.append(scale * (through - (through * unit[rows]).sum(1, keepdim=True) * unit[rows]))

            of_row, of_column = of_row.float(), of_column.float()
            absolute = (of_row * inexact[rows, None] + of_column * inexact) @ size + 2 * size[positive[rows]]
            terms = absolute + (absolute * size[rows]).sum(1, keepdim=True) * size[rows]
            gradient_terms.append(scale * terms)
            # An error in a logit reaches the log-sum with the logit's probability as weight.
            reached = ((of_row @ size + size[positive[rows]]) * size[rows]).sum(1)
            loss_terms.append(s * reached + lse[rows].abs())

    of_z0 = int((compared < n).sum())  # they are sorted
    everything = m <= EVERY_ROW
    both = zip(torch.cat(gradient).tensor_split([of_z0]), torch.cat(gradient_terms).tensor_split([of_z0]), strict=True)
    expected = [Expected("loss", loss, torch.cat(loss_terms).mean(), loss.shape)]
    for view, (value, terms) in enumerate(both):
        rows = compared[compared < n] if view == 0 else compared[compared >= n] - n
        shape = inputs[view].shape
        expected.append(Expected(f"gradient of z{view}", value, terms, shape, None if everything else rows, True))
    return expected


def compared_rows(n: int, seed: int) -> Tensor:
    """Which of the 2N gradient rows are compared with the truth, in ascending order: z0's, then z1's.

    All of them up to ``EVERY_ROW``. Beyond, the first and last ``EDGE_ROWS`` of each view and one random row out of
    each of ``SAMPLED_ROWS`` equal ranges: an error in as many neighbouring rows of a view as two ranges hold is seen
    for certain (N = 8192: 64 rows), a smaller one with the probability that its rows are drawn.
    """
    m = 2 * n
    if m <= EVERY_ROW:
        return torch.arange(m)
    generator = torch.Generator().manual_seed(seed)
    borders = torch.linspace(0, m, SAMPLED_ROWS + 1, dtype=torch.float64).long()
    drawn = borders[:-1] + (torch.rand(SAMPLED_ROWS, generator=generator) * borders.diff()).long()
    edge = torch.arange(EDGE_ROWS)
    return torch.cat([drawn, edge, n - 1 - edge, n + edge, m - 1 - edge]).unique()


def _log_sums(unit: Tensor, s: float) -> Tensor:
    """Log-sum-exp of each row's logits without its own, [M]; from half of the symmetric matrix where that is safe."""
    m = unit.shape[0]
    block = max(1, TRUTH_BLOCK[unit.device.type] // m)
    symmetric = 2 * s < LARGEST_EXPONENT
    sums = torch.zeros_like(unit[:, 0])
    for start in range(0, m, block):
        first_column = start if symmetric else 0
        logits = s * unit[start : start + block] @ unit[first_column:].T
        logits.diagonal(start - first_column).fill_(-torch.inf)
        if symmetric:  # row sums and column sums of a block serve both sides
            weights = logits.sub_(s).exp_()
            sums[start : start + block] += weights.sum(1)
            sums[start + block :] += weights[:, block:].sum(0)
        else:
            sums[start : start + block] = logits.logsumexp(1)
    return sums.log_().add_(s) if symmetric else sums


def work(case: Case, which: str) -> Work:
    m, d = 2 * case.sizes["N"], case.sizes["D"]
    backward = 3 if case.device == "cpu" else 4
    flops = {"forward": 1, "backward": backward, "both": 1 + backward}[which] * m * m * d
    moves = {"forward": 1, "backward": 2, "both": 3}[which]  # read in both directions, gradients written
    return Work(flops, moves * m * d * case.dtype.itemsize)


# --- Providers ------------------------------------------------------------------------------------------------------


LARGEST_CUBIC_N = 128


def _with_temperature(function: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[[Case], Function]:
    def build(case: Case) -> Function:
        temperature = case.sizes["temperature"]
        return lambda z0, z1: function(z0, z1, temperature)

    return build


def _block_note(case: Case) -> str:
    return f"{min(BLOCK_ROWS[case.device], 2 * int(case.sizes['N']))} rows a block"


def _lightly(case: Case) -> Function:
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature=case.sizes["temperature"])


def _pytorch_metric_learning(case: Case) -> Function:
    if case.sizes["N"] > LARGEST_CUBIC_N:
        raise Unavailable(f"O(N^3) time and memory, not tried above N = {LARGEST_CUBIC_N} (27 s and 17 GB at N = 512)")
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    return SelfSupervisedLoss(NTXentLoss(temperature=case.sizes["temperature"]))


def _matrices(count: float) -> Callable[[Case], float]:
    """Bytes of ``count`` float32 matrices of all similarities."""
    return lambda case: count * 4 * (2 * case.sizes["N"]) ** 2


_FASTSSL = _with_temperature(fastssl.functional.nt_xent)
_OPERATION = "pairwise_logsumexp"

PROVIDERS = {
    **of_fastssl(_FASTSSL, _OPERATION),
    "eager": Provider(_with_temperature(eager), bytes_needed=_matrices(5)),
    "eager-lean": Provider(_with_temperature(lean), bytes_needed=_matrices(4)),
    "eager-autocast": Provider(autocast(_with_temperature(eager)), dtypes=LOW_PRECISION, bytes_needed=_matrices(5)),
    "compiled": Provider(compiled(_with_temperature(lean)), compiles=True, bytes_needed=_matrices(2)),
    "compiled-autocast": Provider(
        compiled(autocast(_with_temperature(lean))), compiles=True, dtypes=LOW_PRECISION, bytes_needed=_matrices(2)
    ),
    "compiled-symmetric": Provider(compiled(_with_temperature(symmetric)), compiles=True, bytes_needed=_matrices(2)),
    "chunked": Provider(_with_temperature(chunked), note=_block_note),
    "chunked-compiled": Provider(_with_temperature(partial(chunked, compiled=True)), note=_block_note, compiles=True),
    "lightly": Provider(_lightly, bytes_needed=_matrices(5)),
    # It compares every positive pair with every negative pair.
    "pytorch-metric-learning": Provider(_pytorch_metric_learning, note=lambda case: "O(N^3)"),
}

FAMILY = Family(
    name="nt_xent",
    module=__name__,
    subject="fastssl",
    baseline="eager",
    add_arguments=add_arguments,
    cases=cases,
    inputs=inputs,
    truth=truth,
    tiny_sizes=tiny_sizes,
    work=work,
    work_model="with M = 2N: forward M^2 D FLOPs (half of the symmetric matrix); backward 3 M^2 D on a CPU (half of it "
    "again, and the gradient's product), 4 M^2 D on CUDA (all of it again). Who keeps its exponentials, as a small "
    "problem can, computes less and may pass 100%",
    providers=PROVIDERS,
    optional=FORCED,
)
