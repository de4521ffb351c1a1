"""MAE's loss on normalised pixels, against the paper's code, compiled PyTorch in its leanest form, and lightly.

Every provider computes, from images [B, C, H, H], predictions [B, L, D] with D = p^2 C and a mask [B, L], the mean over
the masked patches of the mean squared error between prediction and normalised patch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

import fastssl
from fastssl.ops.reconstruction import reference

from .cases import Case, Expected, Family, Function, Provider, Work
from .providers import FORCED, check_above_zero, compiled, of_fastssl

CHANNELS = 3
EPS = 1e-6
COMPARED_IMAGES = 8  # whose gradient is compared with the truth
TRUTH_IMAGES = 16  # in a block of the float64 truth


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256], metavar="B", help="images")
    parser.add_argument("--size", type=int, nargs="+", default=[224], metavar="H", help="pixels along a side")
    parser.add_argument("--patch", type=int, nargs="+", default=[16], metavar="p", help="pixels along a patch's side")
    parser.add_argument("--masked", type=float, nargs="+", default=[0.75], metavar="R", help="share of masked patches")


def cases(arguments: argparse.Namespace, device: str) -> list[Case]:
    check_above_zero(
        {
            "--batch": arguments.batch,
            "--size": arguments.size,
            "--patch": arguments.patch,
            "--masked": arguments.masked,
        }
    )
    for size in arguments.size:
        for patch in arguments.patch:
            if size % patch:
                raise ValueError(f"--patch must divide --size, {size}, got {patch}")
    if max(arguments.masked) > 1:
        raise ValueError(f"--masked must be at most 1, got {max(arguments.masked)}")
    return [
        Case.named({"B": batch, "H": size, "p": patch, "masked": share}, dtype, device)
        for dtype in arguments.dtype
        for size in arguments.size
        for patch in arguments.patch
        for share in arguments.masked
        for batch in arguments.batch
    ]


def tiny_sizes(sizes: Mapping[str, float]) -> dict[str, float]:
    return {**sizes, "B": min(sizes["B"], 2), "H": 2 * sizes["p"]}


def inputs(case: Case, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, size, patch = (int(case.sizes[name]) for name in ("B", "H", "p"))
    patches, numbers = (size // patch) ** 2, patch**2 * CHANNELS
    generator = torch.Generator(case.device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=case.device).to(case.dtype)

    order = torch.rand(batch, patches, generator=generator, device=case.device).argsort(1)
    mask = (order < max(1, round(case.sizes["masked"] * patches))).float()
    return normal(batch, CHANNELS, size, size), normal(batch, patches, numbers).requires_grad_(), mask


def truth(case: Case, inputs: tuple[Tensor, ...], seed: int) -> list[Expected]:
    """The loss in float64, and its gradient for some of the images."""
    images, predictions, mask = (tensor.detach() for tensor in inputs)
    patch, numbers = int(case.sizes["p"]), predictions.shape[2]
    weight = mask.double() / mask.double().sum()
    loss = terms = torch.zeros((), dtype=torch.float64, device=images.device)
    gradients: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(images), TRUTH_IMAGES):
        rows = slice(start, start + TRUTH_IMAGES)
        target = reference.patches(images[rows], patch, False, [1.0] * CHANNELS, [0.0] * CHANNELS, torch.float64)
        variance, mean = torch.var_mean(target, dim=2, keepdim=True)
        size = (target.abs() + target.abs().mean(2, keepdim=True)) / (variance + EPS).sqrt()
        difference = predictions[rows].double() - (target - mean) / (variance + EPS).sqrt()
        size = size + predictions[rows].double().abs()
        of_patch = weight[rows, :, None] / numbers
        loss = loss + (of_patch * difference.square()).sum()
        terms = terms + (of_patch * 2 * difference.abs() * size).sum()
        if start < COMPARED_IMAGES:
            gradients.append((2 * of_patch * difference, 2 * of_patch * size))
    compared = torch.arange(min(COMPARED_IMAGES, len(images)), device=images.device)
    gradient, of_gradient = (torch.cat(parts)[: len(compared)] for parts in zip(*gradients, strict=True))
    return [
        Expected("loss", loss, terms, loss.shape),
        Expected("gradient", gradient, of_gradient, predictions.shape, rows=compared, is_gradient=True),
    ]


def work(case: Case, which: str) -> Work:
    numbers = case.sizes["B"] * CHANNELS * case.sizes["H"] ** 2
    moves = {"forward": 2 * case.sizes["masked"], "backward": 1, "both": 2 * case.sizes["masked"] + 1}[which]
    return Work(0, moves * numbers * case.dtype.itemsize)


# --- Providers ------------------------------------------------------------------------------------------------------


def patchified(images: Tensor, patch: int) -> Tensor:
    batch, channels, height, width = images.shape
    grid = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return torch.einsum("nchpwq->nhwpqc", grid).reshape(batch, -1, patch**2 * channels)


def _paper(case: Case) -> Function:
    """As the paper's code writes it."""
    patch = int(case.sizes["p"])

    def loss(images: Tensor, predictions: Tensor, mask: Tensor) -> Tensor:
        target = patchified(images, patch)
        mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        target = (target - mean) / (variance + EPS) ** 0.5
        return (((predictions - target) ** 2).mean(-1) * mask).sum() / mask.sum()

    return loss


def _lean(case: Case) -> Function:
    """The same without a patchified copy, for the compiler: one view of the image, variance and mean together."""
    patch = int(case.sizes["p"])

    def loss(images: Tensor, predictions: Tensor, mask: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        rows, columns = height // patch, width // patch
        target = images.view(batch, channels, rows, patch, columns, patch).permute(0, 2, 4, 3, 5, 1).float()
        variance, mean = torch.var_mean(target, (3, 4, 5), keepdim=True)
        predicted = predictions.view(batch, rows, columns, patch, patch, channels)
        difference = predicted - (target - mean) * torch.rsqrt(variance + EPS)
        return (difference.square().mean((3, 4, 5)) * mask.view(batch, rows, columns)).sum() / mask.sum()

    return loss


def _lightly(case: Case) -> Function:
    """Its utilities, on the masked rows alone."""
    from lightly.models import utils

    patch = int(case.sizes["p"])

    def loss(images: Tensor, predictions: Tensor, mask: Tensor) -> Tensor:
        masked = mask.bool()
        target = utils.normalize_mean_var(utils.patchify(images, patch), dim=-1)
        return torch.nn.functional.mse_loss(predictions[masked], target[masked])

    return loss


def _fastssl(case: Case) -> Function:
    patch = int(case.sizes["p"])
    return lambda images, predictions, mask: fastssl.functional.patch_loss(
        images, predictions, mask, patch_size=patch, normalize=True
    )


def _images(count: float) -> Callable[[Case], float]:
    """Bytes of so many batches of images."""
    return lambda case: count * case.sizes["B"] * CHANNELS * case.sizes["H"] ** 2 * case.dtype.itemsize


PROVIDERS = {
    **of_fastssl(_fastssl, "patch_loss", bytes_needed=_images(3)),
    "eager": Provider(_paper, bytes_needed=_images(8)),
    "compiled": Provider(compiled(_paper), compiles=True, bytes_needed=_images(8)),
    "compiled-lean": Provider(compiled(_lean), compiles=True, bytes_needed=_images(6)),
    "lightly": Provider(_lightly, bytes_needed=_images(8)),
}

FAMILY = Family(
    name="patch_loss",
    module=__name__,
    subject="fastssl",
    baseline="eager",
    add_arguments=add_arguments,
    cases=cases,
    inputs=inputs,
    truth=truth,
    tiny_sizes=tiny_sizes,
    work=work,
    work_model="forward reads the masked patches of image and prediction once, backward writes the whole gradient",
    providers=PROVIDERS,
    optional=FORCED,
)
