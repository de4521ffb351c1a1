"""MAE's encoder input: random masks, and the tokens that stay with their positions, against the published forms.

Every provider makes, of tokens x [B, L, D], noise [B, L], fixed positions [L + 1, D] and a class token, the class token
and the K = L (1 - ratio) tokens with the least noise, each plus its position, and the mask [B, L]. The noise is given,
so that everyone draws the same masks. The gradient that arrives is given too: what is timed is the moves alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import fastssl

from .cases import Case, Expected, Family, Function, Provider, Work
from .providers import FORCED, check_above_zero, compiled, of_fastssl


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, nargs="+", default=[256], metavar="B", help="images")
    parser.add_argument("--length", type=int, nargs="+", default=[196], metavar="L", help="patches of an image")
    parser.add_argument("--dim", type=int, nargs="+", default=[768], metavar="D", help="numbers of a token")
    parser.add_argument("--mask-ratio", type=float, default=0.75, help="share of the patches that is removed")


def cases(arguments: argparse.Namespace, device: str) -> list[Case]:
    check_above_zero({"--batch": arguments.batch, "--length": arguments.length, "--dim": arguments.dim})
    if not 0 <= arguments.mask_ratio < 1:
        raise ValueError(f"--mask-ratio must be at least 0 and below 1, got {arguments.mask_ratio}")
    return [
        Case.named({"B": b, "L": length, "D": d, "ratio": arguments.mask_ratio}, dtype, device)
        for dtype in arguments.dtype
        for d in arguments.dim
        for length in arguments.length
        for b in arguments.batch
    ]


def tiny_sizes(sizes: Mapping[str, float]) -> dict[str, float]:
    return {**sizes, "B": min(sizes["B"], 2), "D": min(sizes["D"], 16)}


def kept(case: Case) -> int:
    """K."""
    return max(1, int(case.sizes["L"] * (1 - case.sizes["ratio"])))


class Arriving(torch.autograd.Function):
    """Stands for all that follows: a number of the output, whose gradient is a given tensor."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return out.detach().flatten()[0].clone()

    @staticmethod
    def backward(ctx: Any, *one: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0], None


def normal(case: Case, seed: int) -> Callable[..., Tensor]:
    """Makes tensors of a shape."""
    generator = torch.Generator(case.device).manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, device=case.device).to(case.dtype)


def inputs(case: Case, seed: int) -> tuple[Tensor, ...]:
    b, length, d = (int(case.sizes[name]) for name in ("B", "L", "D"))
    make = normal(case, seed)
    noise = torch.rand(b, length, generator=torch.Generator(case.device).manual_seed(seed), device=case.device)
    return (
        make(b, length, d).requires_grad_(),
        make(1, length + 1, d),
        make(1, 1, d).requires_grad_(),
        noise,
        make(b, kept(case) + 1, d),
    )


def truth(case: Case, inputs: tuple[Tensor, ...], seed: int) -> list[Expected]:
    """The published form in float64."""
    x, pos, token, noise, gradient = inputs
    wide = [x.detach().double().requires_grad_(), pos.double(), token.detach().double().requires_grad_()]
    loss, out, mask = published(wide[0], wide[1], wide[2], noise, gradient.double(), keep=kept(case))
    loss.backward()
    dx, dtoken = wide[0].grad, wide[2].grad
    assert dx is not None and dtoken is not None
    added = gradient[:, :1].double().abs().sum(0, keepdim=True)
    return [
        Expected("a number", loss.detach(), loss.detach().abs() + 1, loss.shape),
        Expected("tokens", out.detach(), out.detach().abs() + 1, out.shape),
        Expected("mask", mask.double(), torch.zeros_like(mask, dtype=torch.float64), mask.shape),
        Expected(
            "gradient of x", dx, torch.zeros(1, dtype=torch.float64, device=dx.device), dx.shape, is_gradient=True
        ),
        Expected("gradient of the class token", dtoken, added, dtoken.shape, is_gradient=True),
    ]


def work(case: Case, which: str) -> Work:
    """Forward the tokens that stay are read and written, backward their gradients read, those of all tokens written."""
    row = case.sizes["D"] * case.dtype.itemsize * case.sizes["B"]
    forward, backward = 2 * kept(case) * row, (kept(case) + case.sizes["L"]) * row
    return Work(0, {"forward": forward, "backward": backward, "both": forward + backward}[which])


# --- Providers ------------------------------------------------------------------------------------------------------


def published(
    x: Tensor, pos: Tensor, token: Tensor, noise: Tensor, gradient: Tensor, *, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    """He et al.: positions for all tokens, two argsorts, gathers, a mask that is gathered, the class token."""
    x = x + pos[:, 1:]
    order = noise.argsort(dim=1)
    restore = order.argsort(dim=1)
    stay = x.gather(1, order[:, :keep, None].repeat(1, 1, x.shape[2]))
    mask = torch.ones(noise.shape, device=x.device)
    mask[:, :keep] = 0
    mask = mask.gather(1, restore)
    out = torch.cat([(token + pos[:, :1]).expand(len(x), -1, -1), stay], 1)
    return Arriving.apply(out, gradient), out, mask


def lean(
    x: Tensor, pos: Tensor, token: Tensor, noise: Tensor, gradient: Tensor, *, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One argsort; positions of the tokens that stay are added to them alone."""
    ids = noise.argsort(dim=1)[:, :keep]
    stay = x.gather(1, ids[..., None].expand(-1, -1, x.shape[2])) + pos[0, 1:][ids]
    mask = torch.ones(noise.shape, device=x.device).scatter_(1, ids, 0.0)
    out = torch.cat([(token + pos[:, :1]).expand(len(x), -1, -1), stay], 1)
    return Arriving.apply(out, gradient), out, mask


def _with_keep(function: Callable[..., Any]) -> Callable[[Case], Function]:
    def build(case: Case) -> Function:
        keep = kept(case)
        return lambda *tensors: function(*tensors, keep=keep)

    return build


def _fastssl(case: Case) -> Function:
    keep = kept(case)

    def function(x: Tensor, pos: Tensor, token: Tensor, noise: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
        masks = fastssl.functional.masks_from_noise(noise, keep=keep)
        out = fastssl.functional.gather_tokens(x, masks.keep, pos, token)
        return Arriving.apply(out, gradient), out, masks.mask

    return function


def _lightly(case: Case) -> Function:
    """Its masked vision transformer: class token, positions for all, ``get_at_index``; noise as in its masks."""
    from lightly.models import utils

    keep = kept(case)

    def function(x: Tensor, pos: Tensor, token: Tensor, noise: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
        order = noise.argsort(dim=1)
        ids = torch.cat([torch.zeros_like(order[:, :1]), order[:, :keep] + 1], 1)
        out = utils.get_at_index(utils.prepend_class_token(x, token) + pos, ids)
        mask = torch.ones(noise.shape, device=x.device).scatter_(1, order[:, :keep], 0.0)
        return Arriving.apply(out, gradient), out, mask

    return function


Build = Callable[[Case], Function]


def providers(operation: str, own: Build, published: Build, lean: Build, lightly: Build) -> dict[str, Provider]:
    """Ours, and the others' forms as they are and compiled."""
    others = {"eager": published, "eager-lean": lean, "compiled": published, "compiled-lean": lean}
    others |= {"lightly": lightly, "lightly-compiled": lightly}
    return of_fastssl(own, operation) | {
        name: Provider(compiled(build), compiles=True) if "compiled" in name else Provider(build)
        for name, build in others.items()
    }


PROVIDERS = providers("gather_tokens", _fastssl, _with_keep(published), _with_keep(lean), _lightly)

FAMILY = Family(
    name="masking",
    module=__name__,
    subject="fastssl",
    baseline="eager",
    add_arguments=add_arguments,
    cases=cases,
    inputs=inputs,
    truth=truth,
    tiny_sizes=tiny_sizes,
    work=work,
    work_model="which is memory's bandwidth: tokens that stay read and written, their gradients read, those of all "
    "tokens written, at the rate of the best copy",
    providers=PROVIDERS,
    optional=FORCED,
)
