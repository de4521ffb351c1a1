"""Views of a whole batch in plain PyTorch, as lean as we can write it: to be compiled, the strongest home-made form.

Cropping with antialiased resizing is two matrix products per image, blurring two more. They take bfloat16 where the
machine multiplies it fast: source pixels are whole numbers up to 255, which it holds exactly, and the result is good to
about a grey level, like that of the libraries that work on uint8.

One thing is less than was asked for: the colours change in one order, not in a random one, which would be several times
the work for code that treats all images alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .augment_recipes import FLIP, GRAY, JITTER, MEAN, RATIO, SIGMA, STD, Recipe, recipes
from .cases import Case, Function

Planes = Sequence[Tensor]  # red, green and blue, each [B, size, size]

# Each channel is computed once and written to its place, not anew for every element of the stack.
OPTIONS: dict[str, Any] = {"max_pointwise_cat_inputs": 0}
TRIES = 10


def products_dtype(device: str) -> torch.dtype:
    """What the matrix products take."""
    fast = device == "cuda" or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def bytes_needed(case: Case) -> float:
    """The images as the products take them, the matrices that resize, and two forms of a view."""
    batch, height, width = (case.sizes[name] for name in ("B", "height", "width"))
    largest = max(recipe.size for recipe in recipes(case.sizes))
    each = 3 * height * width + largest * (height + width) + 3 * largest * height + 6 * largest**2
    return batch * each * (products_dtype(case.device).itemsize + 4) / 2


def batched(case: Case) -> Function:
    """uint8 [B, 3, H, W] -> the views, one after the other."""
    views = [view_of(recipe, products_dtype(case.device)) for recipe in recipes(case.sizes)]
    return lambda images: tuple(view(images) for view in views)


def compiled(case: Case) -> Function:
    """The same, compiled for the exact sizes. Equal views are one compiled function."""
    dtype = products_dtype(case.device)
    made = {
        recipe: torch.compile(view_of(recipe, dtype), dynamic=False, options=OPTIONS) for recipe in recipes(case.sizes)
    }
    views = [made[recipe] for recipe in recipes(case.sizes)]
    return lambda images: tuple(view(images) for view in views)


def view_of(recipe: Recipe, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """uint8 [B, 3, H, W] -> a view of each, with products of ``dtype``."""

    def view(images: Tensor) -> Tensor:
        planes = _recolour(_crop(images, recipe, dtype).unbind(1), recipe)
        if recipe.blur > 0:
            planes = _blur(torch.stack(list(planes), 1), recipe, dtype).unbind(1)
        if recipe.solarize > 0:
            chosen = _chosen(planes[0], recipe.solarize)
            planes = [torch.where(chosen & (plane >= 128 / 255), 1 - plane, plane) for plane in planes]
        return torch.stack([(plane - mean) * (1 / std) for plane, mean, std in zip(planes, MEAN, STD, strict=True)], 1)

    return view


def _uniform(images: Tensor, low: float, high: float) -> Tensor:
    """A number for each image, [B, 1, 1]."""
    return low + (high - low) * torch.rand(len(images), 1, 1, device=images.device)


def _chosen(images: Tensor, probability: float) -> Tensor:
    return _uniform(images, 0, 1) < probability


def _separable(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows @ x @ columns' for each image: [B, 3, H, W], [B, h, H], [B, w, W] -> [B, 3, h, w] in float32."""
    batch, channels, height, width = x.shape
    x = torch.bmm(x.reshape(batch, channels * height, width), columns.mT).view(batch, channels, height, -1)
    x = rows[:, None].expand(-1, channels, -1, -1) @ x
    return x.float()


def _crop(images: Tensor, recipe: Recipe, dtype: torch.dtype) -> Tensor:
    """Random resized crops of uint8 [B, 3, H, W], half of them flipped: float32 [B, 3, size, size] in [0, 1]."""
    batch, height, width = len(images), images.shape[-2], images.shape[-1]
    u = torch.rand(2 * TRIES + 3, batch, device=images.device)
    area = height * width * (recipe.scale[0] + (recipe.scale[1] - recipe.scale[0]) * u[:TRIES])
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    ratio = (low + (high - low) * u[TRIES : 2 * TRIES]).exp()
    w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (w <= width) & (h <= height)
    first = fits.to(torch.int8).argmax(0, keepdim=True)
    w, h = (side.gather(0, first)[0] for side in (w, h))
    w, h = w.clamp(1, width), h.clamp(1, height)  # without a try that fits: close to torchvision's central crop
    top, left = (u[-3] * (height - h + 1)).floor(), (u[-2] * (width - w + 1)).floor()
    flip = u[-1] < FLIP
    rows = resize_matrix(top, h, height, recipe)
    columns = resize_matrix(left, w, width, recipe)
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    return (_separable(images.to(dtype), rows.to(dtype), columns.to(dtype)) * (1 / 255)).clamp(0, 1)


def resize_matrix(start: Tensor, length: Tensor, source: int, recipe: Recipe) -> Tensor:
    """[B, size, source]: linear or cubic (a = -0.5) interpolation of pixels [start, start + length), antialiased."""
    step = (length / recipe.size)[:, None, None]
    middle = (torch.arange(recipe.size, device=start.device) + 0.5)[:, None] * step + start[:, None, None]
    pixel = torch.arange(source, device=start.device)
    t = (pixel + 0.5 - middle).abs() / step.clamp(min=1)
    if recipe.bicubic:
        near, far = (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
        weight = torch.where(t < 1, near, torch.where(t < 2, far, 0.0))
    else:
        weight = (1 - t).clamp(min=0)
    inside = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])
    weight = weight * inside[:, None]
    return weight / weight.sum(-1, keepdim=True)


def _luma(red: Tensor, green: Tensor, blue: Tensor) -> Tensor:
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def _recolour(planes: Planes, recipe: Recipe) -> Planes:
    """Jitter and grayscale: brightness, contrast, saturation, hue in this order."""
    jitter = _chosen(planes[0], JITTER)

    def factor(strength: float) -> Tensor:
        drawn = _uniform(planes[0], max(0.0, 1 - strength), 1 + strength)
        return torch.where(jitter, drawn, 1.0)

    brightness, contrast, saturation = (factor(strength) for strength in recipe.jitter[:3])
    planes = [(plane * brightness).clamp(0, 1) for plane in planes]
    mean = _luma(*planes).mean((1, 2), keepdim=True)
    planes = [torch.lerp(mean, plane, contrast).clamp(0, 1) for plane in planes]
    gray = _luma(*planes)
    planes = [torch.lerp(gray, plane, saturation).clamp(0, 1) for plane in planes]
    shift = torch.where(jitter, _uniform(gray, -recipe.jitter[3], recipe.jitter[3]), 0.0)
    planes = _hue(planes, shift)
    gray, chosen = _luma(*planes), _chosen(gray, GRAY)
    return [torch.where(chosen, gray, plane) for plane in planes]


def _hue(planes: Planes, shift: Tensor) -> Planes:
    """Hue turned by ``shift`` [B, 1, 1] turns."""
    red, green, blue = planes
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    scale = 1 / torch.where(chroma == 0, 1.0, chroma)
    sixth = torch.where(
        value == red,
        (green - blue) * scale,
        torch.where(value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale),
    )
    turned = []
    for offset in (5.0, 3.0, 1.0):
        k = sixth + (6 * shift + offset)
        k = k - 6 * (k * (1 / 6)).floor()
        turned.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return turned


def _blur(x: Tensor, recipe: Recipe, dtype: torch.dtype) -> Tensor:
    """Gaussian blur of some of [B, 3, size, size], reflected at the border."""
    # A sigma of next to nothing leaves an image as it is.
    sigma = torch.where(_chosen(x, recipe.blur), _uniform(x, *SIGMA), 1e-3)
    reach, last = recipe.kernel // 2, recipe.size - 1
    i = torch.arange(recipe.size, device=x.device)[:, None]
    j = torch.arange(recipe.size, device=x.device)

    def kernel(distance: Tensor, meant: Tensor) -> Tensor:
        t = distance.float() / sigma
        return torch.where(meant & (distance.abs() <= reach), torch.exp(-0.5 * t * t), 0.0)

    matrix = kernel(i - j, j >= 0) + kernel(i + j, j > 0) + kernel(2 * last - i - j, j < last)
    matrix = (matrix / matrix.sum(-1, keepdim=True)).to(dtype)
    return _separable(x.to(dtype), matrix, matrix)
