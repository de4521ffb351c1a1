"""SigLIP's loss: N images and their texts, [N, D] each, and the gradients of both, of the scale and of the bias.

Every provider computes the sum over all pairs of ``-log sigmoid(+- (scale cosine + bias))`` over N. The cases are those
of ``clip``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import fastssl

from . import clip
from .cases import Case, Expected, Family, Function, Provider
from .clip import BLOCK_LOGITS, accumulated, add_arguments, cases, matrices, tiny_sizes, work
from .providers import FORCED, GradientInForward, autocast, compiled, of_fastssl, of_raw_rows

BIAS = -10.0  # where the paper starts


def inputs(case: Case, seed: int) -> tuple[Tensor, ...]:
    """Those of ``clip``, and the bias."""
    return *clip.inputs(case, seed), torch.tensor(BIAS, device=case.device).requires_grad_()


def truth(case: Case, inputs: tuple[Tensor, ...], seed: int) -> list[Expected]:
    return clip.expected(case, inputs, lean, ("the images", "the texts", "the scale", "the bias"))


# --- Providers ------------------------------------------------------------------------------------------------------


def eager(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The published code: a matrix of labels beside that of logits."""
    logits = accumulated(scale * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T) + bias
    labels = 2 * torch.eye(len(image), dtype=logits.dtype, device=image.device) - torch.ones_like(logits)
    return -F.logsigmoid(labels * logits).sum() / len(image)


def lean(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """All pairs as if they were none, and the matches put right: log sigmoid(x) = x + log sigmoid(-x)."""
    logits = accumulated(F.normalize(image, dim=1) @ F.normalize(text, dim=1).T) * scale + bias
    return -(F.logsigmoid(-logits).sum() + logits.diagonal().sum()) / len(image)


class _ByHand(GradientInForward):
    """Loss and gradients in the forward pass, some rows at a time: no matrix is stored, each product is made once."""

    @staticmethod
    def forward(ctx, image, text, scale, bias):  # type: ignore[no-untyped-def]
        x, y = F.normalize(image, dim=1), F.normalize(text, dim=1)
        n, step = len(x), max(1, BLOCK_LOGITS // len(x))
        dx, dy = torch.empty_like(x), torch.zeros_like(y, dtype=torch.float32)
        loss, d_bias = (x.new_zeros((), dtype=torch.float32) for _ in range(2))
        for start in range(0, n, step):
            rows = slice(start, start + step)
            logits = (x[rows] @ y.T).float().mul_(scale).add_(bias)
            loss -= F.logsigmoid(-logits).sum() + logits.diagonal(start).sum()
            g = logits.sigmoid_()
            g.diagonal(start).sub_(1)
            d_bias += g.sum()
            g = g.div_(n).to(x.dtype)
            dx[rows] = g @ y
            dy += g.T @ x[rows]
        d_scale = (dx.float() * x.float()).sum()
        of_inputs = (of_raw_rows(dx.float() * scale, x, image), of_raw_rows(dy * scale, y, text))
        ctx.save_for_backward(*of_inputs, d_scale, d_bias / n)
        return loss / n


def _open_clip(case: Case) -> Function:
    from open_clip.loss import SigLipLoss

    module = SigLipLoss()
    return lambda image, text, scale, bias: module(F.normalize(image, dim=1), F.normalize(text, dim=1), scale, bias)


PROVIDERS = {
    **of_fastssl(lambda case: fastssl.functional.siglip, "siglip"),
    "eager": Provider(lambda case: eager, bytes_needed=matrices(6)),
    "eager-lean": Provider(lambda case: lean, bytes_needed=matrices(4)),
    "compiled": Provider(compiled(lambda case: eager), compiles=True, bytes_needed=matrices(4)),
    "compiled-lean": Provider(compiled(lambda case: lean), compiles=True, bytes_needed=matrices(3)),
    "chunked": Provider(lambda case: _ByHand.apply),
    "open_clip": Provider(autocast(_open_clip), bytes_needed=matrices(6)),
}

FAMILY = Family(
    name="siglip",
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
