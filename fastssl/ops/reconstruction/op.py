"""The patch loss operators: schemas, shapes, gradient.

``patch_loss``
    the weighted error of every patch, straight from the image.
``patch_loss_grad``
    the gradient for the predictions, from a second read.
``patch_loss_step``
    the summed error and its gradient at once: image and predictions are read once.

Patches of weight 0 are neither read nor computed, and no patchified copy is made. ``reference.py`` holds the
definition; MAE and SimMIM are a few lines on top (``fastssl.functional``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..gradients import scaled
from ..precision import accumulator
from ..registry import define, define_gradient, forbid_gradient

_NAME = "patch_loss"
_INPUTS = "Tensor prediction, Tensor image, Tensor weight"
_RULES = "int patch_size, bool normalize, str error, float beta, bool channels_first, float[] scale, float[] shift"
IMAGE_DTYPES = (torch.uint8, *checks.FLOAT_DTYPES)
ERRORS = ("squared", "absolute", "smooth_l1")  # their places are the numbers that the kernels take
CHANNELS = 4  # at most


def check_image(image: Tensor, patch_size: int) -> None:
    """Images that can be cut into patches.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    if image.ndim != 4 or 0 in image.shape or not 1 <= image.shape[1] <= CHANNELS:
        raise ValueError(f"{_NAME}: image must be [B, C, H, W] with 1 to {CHANNELS} channels, got {tuple(image.shape)}")
    if image.dtype not in IMAGE_DTYPES or image.layout != torch.strided:
        raise TypeError(
            f"{_NAME}: image must be dense uint8, float32, bfloat16, float16 or float64, got {image.layout} of "
            f"{image.dtype}"
        )
    height, width = image.shape[2:]
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise ValueError(
            f"{_NAME}: patch_size must divide the image's height and width, {height} and {width}, got {patch_size}"
        )


def _check(
    prediction: Tensor,
    image: Tensor,
    weight: Tensor,
    *,
    patch_size: int,
    normalize: bool,
    error: str,
    scale: Sequence[float],
    shift: Sequence[float],
    **rules: Any,
) -> None:
    check_image(image, patch_size)
    batch, channels, height, width = image.shape
    patches, numbers = height // patch_size * (width // patch_size), patch_size * patch_size * channels
    checks.check_tensor(_NAME, "prediction", prediction, ndim=3, layout="[B, L, patch_size^2 C]")
    if prediction.shape[0] != batch or prediction.shape[1] < patches or prediction.shape[2] != numbers:
        raise ValueError(
            f"{_NAME}: prediction must have a row per patch, and perhaps class tokens before them, "
            f"({batch}, {patches} or more, {numbers}), got {tuple(prediction.shape)}"
        )
    checks.check_same(_NAME, "device", ("prediction", prediction), ("image", image))
    if image.dtype == torch.float64 and prediction.dtype != torch.float64:
        raise ValueError(f"{_NAME}: a float64 image needs a float64 prediction, got {prediction.dtype}")
    if normalize and numbers < 2:
        raise ValueError(f"{_NAME}: normalised patches must have at least two numbers, got {numbers}")
    checks.check_choice(_NAME, "error", error, ERRORS)
    if not len(scale) == len(shift) == channels:
        raise ValueError(
            f"{_NAME}: scale and shift must have a number per channel, {channels}, got {len(scale)} and {len(shift)}"
        )
    _check_numbers(_NAME, "weight", weight, prediction, (batch, patches))


def _check_numbers(function: str, name: str, tensor: Tensor, prediction: Tensor, shape: tuple[int, int]) -> None:
    """A tensor of the accumulator's dtype beside the predictions."""
    dtype, device = accumulator(prediction), prediction.device
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device != device:
        raise ValueError(
            f"{function}: {name} must be {dtype} of shape {shape} on {device}, "
            f"got {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
        )


def _check_grad(prediction: Tensor, image: Tensor, weight: Tensor, d_loss: Tensor, **rules: Any) -> None:
    _check(prediction, image, weight, **rules)
    _check_numbers(f"{_NAME}_grad", "d_loss", d_loss, prediction, (weight.shape[0], weight.shape[1]))


def _check_step(prediction: Tensor, image: Tensor, weight: Tensor, **rules: Any) -> None:
    _check(prediction, image, weight, **rules)
    # Rounded to float16 before a loss scaler multiplies them, gradients vanish.
    if prediction.dtype == torch.float16:
        raise TypeError(f"{_NAME}_step: the operator computes no float16 gradients, take patch_loss")


def _fake(prediction: Tensor, weight: Tensor, **arguments: Any) -> Tensor:
    return prediction.new_empty(weight.shape, dtype=accumulator(prediction))


def _fake_grad(prediction: Tensor, **arguments: Any) -> Tensor:
    return prediction.new_empty(prediction.shape)


def _fake_step(prediction: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:
    return prediction.new_empty((), dtype=accumulator(prediction)), prediction.new_empty(prediction.shape)


define(f"patch_loss({_INPUTS}, *, {_RULES}, str backend) -> Tensor", family=__package__, check=_check, fake=_fake)
define(
    f"patch_loss_grad({_INPUTS}, Tensor d_loss, *, {_RULES}, str backend) -> Tensor",
    family=__package__,
    check=_check_grad,
    fake=_fake_grad,
)
forbid_gradient("patch_loss_grad")
define(
    f"patch_loss_step({_INPUTS}, *, {_RULES}, str backend) -> (Tensor, Tensor)",
    family=__package__,
    check=_check_step,
    fake=_fake_step,
)


def _setup_context(ctx: Any, tensors: Sequence, keywords: dict[str, Any], outputs: Tensor) -> None:
    ctx.keywords = keywords
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, None, None]:
    if not ctx.needs_input_grad[0]:
        return None, None, None
    gradient = torch.ops.fastssl.patch_loss_grad(*ctx.saved_tensors, d_loss.contiguous(), **ctx.keywords)
    return gradient, None, None


def _setup_step(ctx: Any, tensors: Sequence, keywords: dict[str, Any], outputs: tuple) -> None:
    ctx.mark_non_differentiable(outputs[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(outputs[1])


def _backward_step(ctx: Any, d_loss: Tensor | None, _: None) -> tuple[Tensor | None, None, None]:
    if d_loss is None:
        return None, None, None
    return scaled(ctx.saved_tensors, d_loss)[0], None, None


define_gradient("patch_loss", setup_context=_setup_context, backward=_backward)
define_gradient("patch_loss_step", setup_context=_setup_step, backward=_backward_step)
