"""Gradients that a forward pass has computed already, for the backward pass that brings what they are multiplied by."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from .. import backends


def scaled(gradients: Sequence[Tensor], d_loss: Tensor) -> list[Tensor]:
    """Gradients that were saved for d_loss = 1, times d_loss [].

    They are as large as the inputs, so where nobody needs the saved ones again they are scaled where they lie, and not
    at all by 1, which is what ``loss.backward()`` brings. Nothing waits for a device.
    """
    traced = type(d_loss) is not Tensor
    if traced or not is_last_backward():
        return [gradient * d_loss for gradient in gradients]
    if d_loss.is_cpu and d_loss.item() == 1:
        return list(gradients)
    return [scale(gradient, d_loss) for gradient in gradients]


def is_last_backward() -> bool:
    """Whether the backward pass that runs now frees what it has saved: no ``retain_graph``, no ``create_graph``."""
    return not torch._C._autograd._get_current_graph_task_keep_graph()


def scale(gradient: Tensor, d_loss: Tensor) -> Tensor:
    """A gradient times a number [] on its device, where it lies. On a GPU its memory is not touched if that is 1."""
    if gradient.is_cuda and gradient.is_contiguous() and backends.forced() in ("", "triton") and find_spec("triton"):
        from . import triton_scale

        if triton_scale.unsupported_reason(gradient.device.type, gradient.dtype) is None:
            return triton_scale.scale(gradient, d_loss)
    return gradient.mul_(d_loss)
