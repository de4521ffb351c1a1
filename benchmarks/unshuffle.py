"""MAE's decoder input: tokens back at their places, mask tokens, positions, against the published forms.

Every provider makes, of the class token and K tokens x [B, 1 + K, D], their places restore [B, L], a mask token and
fixed positions [L + 1, D], the whole sequence [B, 1 + L, D]. The gradient that arrives is given, as in ``masking``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastssl

from .cases import Case, Expected, Family, Function, Work
from .masking import Arriving, add_arguments, cases, kept, normal, providers, tiny_sizes
from .providers import FORCED


def inputs(case: Case, seed: int) -> tuple[Tensor, ...]:
    b, length, d = (int(case.sizes[name]) for name in ("B", "L", "D"))
    make = normal(case, seed)
    noise = torch.rand(b, length, generator=torch.Generator(case.device).manual_seed(seed), device=case.device)
    return (
        make(b, kept(case) + 1, d).requires_grad_(),
        noise.argsort(dim=1).argsort(dim=1),
        make(1, 1, d).requires_grad_(),
        make(1, length + 1, d),
        make(b, length + 1, d),
    )


def truth(case: Case, inputs: tuple[Tensor, ...], seed: int) -> list[Expected]:
    """The published form in float64."""
    x, restore, token, pos, gradient = inputs
    wide = [x.detach().double().requires_grad_(), token.detach().double().requires_grad_()]
    loss, out = published(wide[0], restore, wide[1], pos.double(), gradient.double())
    loss.backward()
    dx, dtoken = wide[0].grad, wide[1].grad
    assert dx is not None and dtoken is not None
    masked = (restore >= kept(case))[..., None]
    added = torch.where(masked, gradient[:, 1:].double().abs(), 0.0).sum((0, 1))[None, None]
    return [
        Expected("a number", loss.detach(), loss.detach().abs() + 1, loss.shape),
        Expected("tokens", out.detach(), out.detach().abs() + 1, out.shape),
        Expected(
            "gradient of x", dx, torch.zeros(1, dtype=torch.float64, device=dx.device), dx.shape, is_gradient=True
        ),
        Expected("gradient of the mask token", dtoken, added, dtoken.shape, is_gradient=True),
    ]


def work(case: Case, which: str) -> Work:
    """Forward tokens are read and the sequence written, backward the other way around."""
    moves = (kept(case) + case.sizes["L"] + 2) * case.sizes["D"] * case.dtype.itemsize * case.sizes["B"]
    return Work(0, {"forward": 1, "backward": 1, "both": 2}[which] * moves)


# --- Providers ------------------------------------------------------------------------------------------------------


def published(x: Tensor, restore: Tensor, token: Tensor, pos: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """He et al.: mask tokens repeated and appended, a gather of everything, the class token in front, positions."""
    (b, rows, d), length = x.shape, restore.shape[1]
    whole = torch.cat([x[:, 1:], token.repeat(b, length + 1 - rows, 1)], 1)
    whole = whole.gather(1, restore[..., None].repeat(1, 1, d))
    out = torch.cat([x[:, :1], whole], 1) + pos
    return Arriving.apply(out, gradient), out


def lean(x: Tensor, restore: Tensor, token: Tensor, pos: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens gathered where there is one, else the mask token."""
    keep = x.shape[1] - 1
    ids = torch.cat([torch.zeros_like(restore[:, :1]), restore.clamp(max=keep - 1) + 1], 1)
    stays = torch.cat([torch.ones_like(restore[:, :1], dtype=torch.bool), restore < keep], 1)
    out = torch.where(stays[..., None], x.gather(1, ids[..., None].expand(-1, -1, x.shape[2])), token) + pos
    return Arriving.apply(out, gradient), out


def _plain(function: Callable[..., Any]) -> Callable[[Case], Function]:
    return lambda case: function


def _fastssl(case: Case) -> Function:
    def function(x: Tensor, restore: Tensor, token: Tensor, pos: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        out = fastssl.functional.unshuffle_tokens(x, restore, token, pos, num_prefix_tokens=1)
        return Arriving.apply(out, gradient), out

    return function


def _lightly(case: Case) -> Function:
    """Its example of MAE: mask tokens repeated over the sequence, into which ``set_at_index`` puts the tokens."""
    from lightly.models import utils

    keep = kept(case)

    def function(x: Tensor, restore: Tensor, token: Tensor, pos: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        order = restore.argsort(dim=1)  # of the ids to keep, which its users have
        ids = torch.cat([torch.zeros_like(order[:, :1]), order[:, :keep] + 1], 1)
        whole = utils.repeat_token(token, (len(x), restore.shape[1] + 1))
        out = utils.set_at_index(whole, ids, x) + pos
        return Arriving.apply(out, gradient), out

    return function


PROVIDERS = providers("unshuffle_tokens", _fastssl, _plain(published), _plain(lean), _lightly)

FAMILY = Family(
    name="unshuffle",
    module=__name__,
    subject="fastssl",
    baseline="eager",
    add_arguments=add_arguments,
    cases=cases,
    inputs=inputs,
    truth=truth,
    tiny_sizes=tiny_sizes,
    work=work,
    work_model="which is memory's bandwidth: tokens read and the sequence written, backward the other way around, at "
    "the rate of the best copy",
    providers=PROVIDERS,
    optional=FORCED,
)
