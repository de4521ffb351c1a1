"""SigLIP's loss: whether an image and a text belong together, asked of each pair."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from .. import backends, distributed, ops  # noqa: F401 - ops registers the operators
from ..ops import checks
from ..ops.precision import widened
from . import ring
from .contrastive import number_or_tensor, paired, wanted_first
from .ring import Exchange


def siglip(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor = 10.0,
    logit_bias: float | Tensor = -10.0,
    *,
    normalize: bool = True,
    reduction: Literal["mean", "sum"] = "mean",
    group: dist.ProcessGroup | None = None,
    exchange: Exchange = "gather",
) -> Tensor:
    r"""Sigmoid loss of all pairs of rows of two sets, without the N x N matrix: loss and gradient in one pass.

    With x_ij = logit_scale image_i . text_j + logit_bias, the sum over all pairs of ``log(1 + exp(x_ij))``, where
    i = j of ``log(1 + exp(-x_ij))``, over N: Zhai, Mustafa, Kolesnikov, Beyer, "Sigmoid Loss for Language Image
    Pre-Training", 2023, equation in section 3.2 and algorithm 1.

    Args:
        image: [N, D], float32, bfloat16, float16 or float64, any strides. float16 is computed in float32.
        text: [N, D], same shape, dtype and device; row n belongs to row n of ``image``.
        logit_scale: above 0; or a tensor with one element, which then may receive a gradient and whose value is not
            checked. The paper starts at 10 and learns its logarithm.
        logit_bias: added to all logits: a number, or a tensor with one element, which then may receive a gradient.
        normalize: divide rows by their length first.
        reduction: "mean", the sum over the N^2 pairs divided by N as in the paper, or "sum".
        group: process group over which texts are gathered: images of this rank against the texts of all ranks. The
            mean is over this rank's images, and gradients averaged over ranks (as DDP does) equal those of one process
            on the global batch, those of scale and bias included. Every rank must have the same N.
        exchange: how the ranks of ``group`` see each other's rows: "gather" holds all of them, "ring" passes them on
            block by block while it computes, so that memory does not grow with the ranks; ``torch.compile`` leaves it
            out of its graph.

    Returns:
        float32 (float64 for float64 input), [].

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.

    Example:
        >>> loss = siglip(image_tower(images), text_tower(tokens), log_scale.exp(), bias)
    """
    name = "siglip"
    checks.check_choice(name, "reduction", reduction, ("mean", "sum"))
    image, text = paired(name, ("image", image), ("text", text), reduction, group)
    rings = ring.in_ring(name, exchange, group)
    scale, scale_tensor = number_or_tensor(
        name, "logit_scale", logit_scale, image, checks.check_positive_number, neutral=1.0
    )
    bias, bias_tensor = number_or_tensor(name, "logit_bias", logit_bias, image, checks.check_number, neutral=0.0)
    columns, offset = text, 0
    if group is not None and group.size() > 1 and not rings:
        distributed.check_same_shape(name, "image", image, group)
        columns, offset = distributed.gather_with_gradient(text, group), image.shape[0] * group.rank()
    inputs = (image, columns, scale_tensor, bias_tensor)
    gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs if tensor is not None)
    if image.dtype == torch.float16:  # its gradient would be rounded before a loss scaler multiplies it
        image, columns = widened(image), widened(columns)
    rules = {
        "scale": scale, "bias": bias, "normalize": normalize, "gradient": gradient,
        "weight": 1.0 if reduction == "sum" else 1.0 / image.shape[0],
    }  # fmt: skip
    if group is not None and rings:
        rules["columns"] = True
        return ring.siglip(image, columns, scale_tensor, bias_tensor, caller=(name, "image"), group=group, **rules)
    x, y, both = wanted_first(image, columns)
    loss, *_ = torch.ops.fastssl.siglip(
        x, y, scale_tensor, bias_tensor, row_offset=offset if x is image else -offset, columns=both,
        backend=backends.forced(), **rules,
    )  # fmt: skip
    return loss
