"""The error of predicted patches against the pixels of an image: the loss of MAE and SimMIM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .. import backends, ops  # noqa: F401 - ops registers the operators
from ..ops import checks
from ..ops.precision import accumulator
from ..ops.reconstruction.op import check_image

Error = Literal["squared", "absolute", "smooth_l1"]


def patch_loss(
    image: Tensor,
    prediction: Tensor,
    mask: Tensor,
    *,
    patch_size: int = 16,
    normalize: bool = False,
    error: Error = "squared",
    beta: float = 1.0,
    channels_first: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    eps: float = 0.0,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    r"""Error of the masked patches, ``sum(mask * error of the patch) / (sum(mask) + eps)``.

    A patch's error is the mean over its pixels and channels: section 3 of He et al., "Masked Autoencoders Are Scalable
    Vision Learners", 2022, with ``normalize`` for its normalised pixels. With ``error="absolute"`` and
    ``eps=1e-5 / patch_size**2`` it is the loss of Xie et al., "SimMIM", 2022, section 3.4, which adds 1e-5 to the
    number of masked pixels.

    The patches are read where they lie in the image, of which no patchified copy is made; patches that are not masked
    are neither read nor computed, and their predictions' gradient is 0.

    Args:
        image: [B, C, H, W] with 1 to 4 channels and any strides; float32, bfloat16, float16, float64, or uint8, which
            is divided by 255. A constant.
        prediction: [B, L, patch_size^2 C], a row per patch; L = H / patch_size * W / patch_size, row by row from the
            upper left. Rows before those, [B, 1 + L, ...] with a class token, are not read. The numbers of a row lie
            side by side, or are copied. float32, bfloat16, float16 or float64.
        mask: [B, L] or [B, H / patch_size, W / patch_size], bool or floating, 1 where a patch was removed. Other
            numbers are weights.
        patch_size: divides H and W.
        normalize: subtract each patch's mean and divide by the root of its unbiased variance + 1e-6.
        error: "squared", "absolute" or "smooth_l1".
        beta: where smooth L1 goes from squared to absolute, above 0.
        channels_first: the order of a row's numbers: (C, y, x), which is what ``pixel_shuffle`` takes (SimMIM), instead
            of (y, x, C) (MAE).
        mean: per channel, subtracted from the image before anything else.
        std: per channel, above 0; the image is divided by it.
        eps: added to the sum of the mask, at least 0.
        reduction: "mean", or "none": the error of every patch times its mask, [B, L].

    Returns:
        The loss, [] or [B, L], float32 (float64 for float64 predictions). Without a masked patch, and without ``eps``,
        it is 0 / 0, NaN, and so is the gradient.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be; ValueError too for an image that
            requires a gradient, which there is none of.

    Example:
        >>> loss = patch_loss(images, decoder(tokens), mask, patch_size=16, normalize=True)
    """
    name = "patch_loss"
    for tensor_name, tensor, layout in (
        ("image", image, "[B, C, H, W]"),
        ("prediction", prediction, "[B, L, patch_size^2 C]"),
        ("mask", mask, "[B, L] or [B, H / patch_size, W / patch_size]"),
    ):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: {tensor_name} must be a tensor {layout}, got {type(tensor).__name__}")
    if image.requires_grad:
        raise ValueError(f"{name}: image must not require a gradient, there is none for it; give image.detach()")
    patch_size = checks.check_count(name, "patch_size", patch_size, minimum=1)
    check_image(image, patch_size)
    beta = checks.check_positive_number(name, "beta", beta)
    eps = checks.check_range(name, "eps", eps)
    checks.check_choice(name, "reduction", reduction, ("mean", "none"))
    scale, shift = _affine(name, image, mean, std)
    mask = _flat_mask(name, mask, image, patch_size)
    checks.check_tensor(name, "prediction", prediction, ndim=3, layout="[B, L, patch_size^2 C]")
    checks.check_same(name, "device", ("prediction", prediction), ("mask", mask))

    weight = mask.detach().to(accumulator(prediction))
    if reduction == "mean":
        weight = weight / (weight.sum() + eps)
    rules: dict[str, Any] = {
        "patch_size": patch_size,
        "normalize": bool(normalize),
        "error": error,
        "beta": beta,
        "channels_first": bool(channels_first),
        "scale": scale,
        "shift": shift,
        "backend": backends.forced(),
    }
    # The gradient comes out of the pass that computes the loss, except where it would be rounded before a loss scaler
    # multiplies it, and in a graph, which could not leave out the multiplication by 1.
    at_once = (
        torch.is_grad_enabled()
        and prediction.requires_grad
        and reduction == "mean"
        and prediction.dtype != torch.float16
        and not torch.compiler.is_compiling()
    )
    if at_once:
        loss, _ = torch.ops.fastssl.patch_loss_step(prediction, image, weight, **rules)
        return loss
    losses = torch.ops.fastssl.patch_loss(prediction, image, weight, **rules)
    return losses.sum() if reduction == "mean" else losses


def _affine(
    function: str, image: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[list[float], list[float]]:
    """Per channel the scale and the shift that take a pixel to ``(x - mean) / std``, uint8 from 0 to 1."""
    channels = image.shape[1]
    numbers = []
    for name, values, default in (("mean", mean, 0.0), ("std", std, 1.0)):
        values = [default] * channels if values is None else list(values)
        if len(values) != channels:
            raise ValueError(
                f"{function}: {name} must have a number per channel of the image, {channels}, got {len(values)}"
            )
        numbers.append([float(value) for value in values])
    deviations = [checks.check_positive_number(function, "std", value) for value in numbers[1]]
    largest = 255.0 if image.dtype == torch.uint8 else 1.0
    return [1.0 / (largest * s) for s in deviations], [-m / s for m, s in zip(numbers[0], deviations, strict=True)]


def _flat_mask(function: str, mask: Tensor, image: Tensor, patch_size: int) -> Tensor:
    """The mask as [B, L]."""
    batch, _, height, width = image.shape
    grid = height // patch_size, width // patch_size
    if mask.dtype != torch.bool and mask.dtype not in checks.FLOAT_DTYPES:
        raise TypeError(f"{function}: mask must be bool or floating, got {mask.dtype}")
    if tuple(mask.shape) not in ((batch, grid[0] * grid[1]), (batch, *grid)):
        raise ValueError(
            f"{function}: mask must have a number per patch, {(batch, grid[0] * grid[1])} or {(batch, *grid)}, "
            f"got {tuple(mask.shape)}"
        )
    return mask.flatten(1)
