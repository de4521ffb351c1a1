"""CLIP's loss: N images and their texts, [N, D] each, and the gradients of both and of the scale.

Every provider computes the mean of the two directions' cross-entropies over ``scale`` times the cosines. Features come
as the towers make them, not normalised, and the scale as the tensor that a model learns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

import fastssl

from .cases import Case, Expected, Family, Function, Provider, Work
from .providers import FORCED, GradientInForward, autocast, check_above_zero, compiled, of_fastssl, of_raw_rows

BLOCK_LOGITS = 1 << 20  # of the chunked forms: 4 MB in float32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, nargs="+", default=[4096], metavar="N", help="pairs of image and text")
    parser.add_argument("--dim", type=int, nargs="+", default=[512], metavar="D", help="features of a row")
    parser.add_argument("--scale", type=float, default=1 / 0.07, help="of the cosines; CLIP goes from 14.3 to 100")


def cases(arguments: argparse.Namespace, device: str) -> list[Case]:
    check_above_zero({"--batch": arguments.batch, "--dim": arguments.dim, "--scale": [arguments.scale]})
    return [
        Case.named({"N": n, "D": d, "scale": arguments.scale}, dtype, device)
        for dtype in arguments.dtype
        for d in arguments.dim
        for n in arguments.batch
    ]


def tiny_sizes(sizes: Mapping[str, float]) -> dict[str, float]:
    return {**sizes, "N": min(sizes["N"], 16)}


def inputs(case: Case, seed: int) -> tuple[Tensor, ...]:
    """Images, texts at a cosine of about 0.55 to them, and the scale."""
    n, d = int(case.sizes["N"]), int(case.sizes["D"])
    generator = torch.Generator(case.device).manual_seed(seed)
    image = torch.randn(n, d, generator=generator, device=case.device)
    text = image + 1.5 * torch.randn(n, d, generator=generator, device=case.device)
    scale = torch.tensor(case.sizes["scale"], device=case.device)
    return image.to(case.dtype).requires_grad_(), text.to(case.dtype).requires_grad_(), scale.requires_grad_()


def expected(case: Case, inputs: tuple[Tensor, ...], function: Function, names: tuple[str, ...]) -> list[Expected]:
    """Loss and gradients in float64; a row's gradient adds up attraction and repulsion, scale / N each in all."""
    wide = [x.detach().double().requires_grad_() for x in inputs]
    loss = function(*wide)
    gradients = torch.autograd.grad(loss, wide)
    scale = case.sizes["scale"]
    loss = loss.detach()
    out = [Expected("loss", loss, loss.abs() + 2 * scale, loss.shape)]
    for name, x, gradient in zip(names, wide, gradients, strict=True):
        terms = torch.full_like(gradient, 2 + float(loss) / scale)  # of a number: cosines of all pairs, by weight
        if x.ndim == 2:
            terms = (2 * scale / len(x) / x.detach().norm(dim=1, keepdim=True)).expand_as(gradient)
        out.append(Expected(f"gradient of {name}", gradient, terms, gradient.shape, is_gradient=True))
    return out


def truth(case: Case, inputs: tuple[Tensor, ...], seed: int) -> list[Expected]:
    return expected(case, inputs, lean, ("the images", "the texts", "the scale"))


def work(case: Case, which: str) -> Work:
    """One product for the similarities, one for each side's gradient."""
    n, d = case.sizes["N"], case.sizes["D"]
    products = {"forward": 1, "backward": 2, "both": 3}[which]
    return Work(2 * products * n * n * d, 4 * n * d * case.dtype.itemsize)


def matrices(count: float) -> Callable[[Case], float]:
    """Bytes of so many float32 matrices of all logits."""
    return lambda case: count * 4 * case.sizes["N"] ** 2


def accumulated(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


# --- Providers ------------------------------------------------------------------------------------------------------


def eager(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """The published code: two products, two cross-entropies."""
    image, text = F.normalize(image, dim=1), F.normalize(text, dim=1)
    target = torch.arange(len(image), device=image.device)
    images, texts = (accumulated(scale * a @ b.T) for a, b in ((image, text), (text, image)))
    return (F.cross_entropy(images, target) + F.cross_entropy(texts, target)) / 2


def lean(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """One product, log-sums along both of its sides."""
    image, text = F.normalize(image, dim=1), F.normalize(text, dim=1)
    logits = accumulated(image @ text.T) * scale
    return ((logits.logsumexp(1) + logits.logsumexp(0)) / 2 - logits.diagonal()).mean()


class _ByHand(GradientInForward):
    """Log-sums, then gradients, some rows at a time: no matrix is stored, products are made twice."""

    @staticmethod
    def forward(ctx, image, text, scale):  # type: ignore[no-untyped-def]
        x, y = F.normalize(image, dim=1), F.normalize(text, dim=1)
        n, step = len(x), max(1, BLOCK_LOGITS // len(x))
        blocks = [slice(start, start + step) for start in range(0, n, step)]
        of_rows = x.new_empty(n, dtype=torch.float32)
        of_columns = torch.full_like(of_rows, -torch.inf)
        for rows in blocks:
            logits = (x[rows] @ y.T).float().mul_(scale)
            of_rows[rows] = logits.logsumexp(1)
            of_columns = torch.logaddexp(of_columns, logits.logsumexp(0))
        diagonal = (x.float() * y.float()).sum(1)
        loss = ((of_rows + of_columns) / 2 - scale * diagonal).mean()
        dx, dy = torch.empty_like(x), torch.zeros_like(y, dtype=torch.float32)
        for rows in blocks:
            logits = (x[rows] @ y.T).float().mul_(scale)
            g = (logits - of_rows[rows, None]).exp_()
            g += logits.sub_(of_columns).exp_()
            g.diagonal(rows.start).sub_(2)
            g = g.mul_(0.5 / n).to(x.dtype)
            dx[rows] = g @ y
            dy += g.T @ x[rows]
        d_scale = (dx.float() * x.float()).sum()
        of_inputs = (of_raw_rows(dx.float() * scale, x, image), of_raw_rows(dy * scale, y, text))
        ctx.save_for_backward(*of_inputs, d_scale)
        return loss


def _open_clip(case: Case) -> Function:
    from open_clip.loss import ClipLoss

    module = ClipLoss()
    return lambda image, text, scale: module(F.normalize(image, dim=1), F.normalize(text, dim=1), scale)


PROVIDERS = {
    **of_fastssl(lambda case: fastssl.functional.clip, "clip"),
    "eager": Provider(lambda case: eager, bytes_needed=matrices(6)),
    "eager-lean": Provider(lambda case: lean, bytes_needed=matrices(4)),
    "compiled": Provider(compiled(lambda case: eager), compiles=True, bytes_needed=matrices(4)),
    "compiled-lean": Provider(compiled(lambda case: lean), compiles=True, bytes_needed=matrices(3)),
    "chunked": Provider(lambda case: _ByHand.apply),
    "open_clip": Provider(autocast(_open_clip), bytes_needed=matrices(6)),
}

FAMILY = Family(
    name="clip",
    module=__name__,
    subject="fastssl",
    baseline="eager",
    add_arguments=add_arguments,
    cases=cases,
    inputs=inputs,
    truth=truth,
    tiny_sizes=tiny_sizes,
    work=work,
    work_model="forward N^2 D and backward 2 N^2 D multiply-adds, at the rate of the best product",
    providers=PROVIDERS,
    optional=FORCED,
)
