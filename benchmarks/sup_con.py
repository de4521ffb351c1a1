"""The supervised contrastive loss: N images with labels, two views each, [N, 2, D], and the gradient of all rows.

Every provider computes the mean over rows of minus the mean log-probability of the other rows of their class.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

import fastssl

from .cases import Case, Expected, Family, Function, Provider, Work
from .clip import BLOCK_LOGITS, accumulated
from .providers import FORCED, GradientInForward, autocast, check_above_zero, compiled, of_fastssl, of_raw_rows

VIEWS = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, nargs="+", default=[2048], metavar="N", help="images, of two views each")
    parser.add_argument("--dim", type=int, nargs="+", default=[128], metavar="D", help="features of a row")
    parser.add_argument("--classes", type=int, default=100, help="of the labels, drawn at random")
    parser.add_argument("--temperature", type=float, default=0.1, help="of the softmax")


def cases(arguments: argparse.Namespace, device: str) -> list[Case]:
    check_above_zero({
        "--batch": arguments.batch, "--dim": arguments.dim, "--classes": [arguments.classes],
        "--temperature": [arguments.temperature],
    })  # fmt: skip
    sizes = {"classes": arguments.classes, "temperature": arguments.temperature}
    return [
        Case.named({"N": n, "D": d, **sizes}, dtype, device)
        for dtype in arguments.dtype
        for d in arguments.dim
        for n in arguments.batch
    ]


def tiny_sizes(sizes: Mapping[str, float]) -> dict[str, float]:
    return {**sizes, "N": min(sizes["N"], 8)}


def inputs(case: Case, seed: int) -> tuple[Tensor, Tensor]:
    """Views near each other, and labels."""
    n, d = int(case.sizes["N"]), int(case.sizes["D"])
    generator = torch.Generator(case.device).manual_seed(seed)
    image = torch.randn(n, 1, d, generator=generator, device=case.device)
    z = image + torch.randn(n, VIEWS, d, generator=generator, device=case.device)
    labels = torch.randint(int(case.sizes["classes"]), (n,), generator=generator, device=case.device)
    return z.to(case.dtype).requires_grad_(), labels


def truth(case: Case, inputs: tuple[Tensor, ...], seed: int) -> list[Expected]:
    """Loss and gradient in float64; a row's gradient adds up attraction and repulsion, 2 / (M temperature) each."""
    z = inputs[0].detach().double().requires_grad_()
    loss = lean(case.sizes["temperature"])(z, inputs[1])
    (gradient,) = torch.autograd.grad(loss, z)
    loss, length = loss.detach(), z.detach().norm(dim=2, keepdim=True)
    terms = 4 / (VIEWS * len(z) * case.sizes["temperature"] * length)
    return [
        Expected("loss", loss, loss.abs() + 2 / case.sizes["temperature"], loss.shape),
        Expected("gradient", gradient, terms.expand_as(gradient), gradient.shape, is_gradient=True),
    ]


def work(case: Case, which: str) -> Work:
    """Of a symmetric matrix half of the similarities are products; the gradient takes one with all of it."""
    m, d = VIEWS * case.sizes["N"], case.sizes["D"]
    products = {"forward": 0.5, "backward": 1, "both": 1.5}[which]
    return Work(2 * products * m * m * d, 2 * m * d * case.dtype.itemsize)


# --- Providers ------------------------------------------------------------------------------------------------------


def eager(temperature: float) -> Function:
    """The published code: masks beside the logits, log-probabilities of all pairs."""

    def loss(z: Tensor, labels: Tensor) -> Tensor:
        rows = F.normalize(z.flatten(0, 1), dim=1)
        labels = labels.repeat_interleave(VIEWS)
        mask = (labels[:, None] == labels).float()
        others = 1 - torch.eye(len(rows), device=z.device)
        mask = mask * others
        logits = accumulated(rows @ rows.T) / temperature
        logits = logits - logits.max(1, keepdim=True).values.detach()
        log_prob = logits - (logits.exp() * others).sum(1, keepdim=True).log()
        return -((mask * log_prob).sum(1) / mask.sum(1)).mean()

    return loss


def lean(temperature: float) -> Function:
    """A log-sum and the mean positive logit of each row."""

    def loss(z: Tensor, labels: Tensor) -> Tensor:
        rows = F.normalize(z.flatten(0, 1), dim=1)
        labels = labels.repeat_interleave(VIEWS)
        itself = torch.eye(len(rows), dtype=torch.bool, device=z.device)
        positive = (labels[:, None] == labels) & ~itself
        logits = accumulated(rows @ rows.T) / temperature
        log_sum = logits.masked_fill(itself, -torch.inf).logsumexp(1)
        return (log_sum - torch.where(positive, logits, 0.0).sum(1) / positive.sum(1)).mean()

    return loss


class _ByHand(GradientInForward):
    """Log-sums, then the gradient, some rows at a time: no matrix is stored, similarities are made twice."""

    @staticmethod
    def forward(ctx, z, labels, temperature):  # type: ignore[no-untyped-def]
        rows, labels = F.normalize(z.flatten(0, 1), dim=1), labels.repeat_interleave(VIEWS)
        m, step = len(rows), max(1, BLOCK_LOGITS // len(rows))
        blocks = [slice(start, start + step) for start in range(0, m, step)]
        count = labels.bincount()[labels] - 1
        log_sum, positive = (rows.new_empty(m, dtype=torch.float32) for _ in range(2))
        for here in blocks:
            logits = (rows[here] @ rows.T).float().div_(temperature)
            logits.diagonal(here.start).fill_(-torch.inf)
            log_sum[here] = logits.logsumexp(1)
            match = labels[here, None] == labels
            match.diagonal(here.start).fill_(False)
            positive[here] = torch.where(match, logits, 0.0).sum(1)
        gradient = torch.empty_like(rows)
        for here in blocks:
            logits = (rows[here] @ rows.T).float().div_(temperature)
            g = (logits - log_sum[here, None]).exp_()
            g += logits.sub_(log_sum).exp_()
            match = labels[here, None] == labels
            g -= torch.where(match, (1 / count[here, None] + 1 / count), 0.0)
            g.diagonal(here.start).fill_(0.0)
            gradient[here] = g.to(rows.dtype) @ rows
        gradient = gradient.float() / (m * temperature)
        ctx.save_for_backward(of_raw_rows(gradient, rows, z.flatten(0, 1)).view_as(z))
        return (log_sum - positive / count).mean()


def _of(make: Callable[[float], Function]) -> Callable[[Case], Function]:
    return lambda case: make(case.sizes["temperature"])


def _chunked(case: Case) -> Function:
    return lambda z, labels: _ByHand.apply(z, labels, case.sizes["temperature"])


def _fastssl(case: Case) -> Function:
    return lambda z, labels: fastssl.functional.sup_con(z, labels, case.sizes["temperature"])


def _pytorch_metric_learning(case: Case) -> Function:
    from pytorch_metric_learning.losses import SupConLoss

    module = SupConLoss(case.sizes["temperature"])
    return lambda z, labels: module(z.flatten(0, 1), labels.repeat_interleave(VIEWS))


def _matrices(count: float) -> Callable[[Case], float]:
    """Bytes of so many float32 matrices of all logits."""
    return lambda case: count * 4 * (VIEWS * case.sizes["N"]) ** 2


PROVIDERS = {
    **of_fastssl(_fastssl, "pairwise_logsumexp"),
    "eager": Provider(_of(eager), bytes_needed=_matrices(8)),
    "eager-lean": Provider(_of(lean), bytes_needed=_matrices(5)),
    "compiled": Provider(compiled(_of(eager)), compiles=True, bytes_needed=_matrices(4)),
    "compiled-lean": Provider(compiled(_of(lean)), compiles=True, bytes_needed=_matrices(3)),
    "chunked": Provider(_chunked),
    "pytorch-metric-learning": Provider(autocast(_pytorch_metric_learning), bytes_needed=_matrices(12)),
}

FAMILY = Family(
    name="sup_con",
    module=__name__,
    subject="fastssl",
    baseline="eager",
    add_arguments=add_arguments,
    cases=cases,
    inputs=inputs,
    truth=truth,
    tiny_sizes=tiny_sizes,
    work=work,
    work_model="forward M^2 D / 2 and backward M^2 D multiply-adds, M = 2N, at the rate of the best product",
    providers=PROVIDERS,
    optional=FORCED,
)
