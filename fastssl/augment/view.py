"""What a random view is: its distribution (:class:`View`) and, drawn from it, the numbers for each image.

The pixels are the business of :mod:`fastssl.augment.apply`; between the two stand only tensors of parameters, so that
any kernel that takes the same parameters makes the same views.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from fastssl.augment.random import uniform

_TRIES = 10  # of torchvision's RandomResizedCrop, before it falls back to the centre
_ORDERS = list(permutations(range(4)))


@dataclass(frozen=True)
class View:
    """The distribution of one random view, in the order in which its parts are applied.

    Probabilities are in [0, 1]. Definitions are torchvision's, on floating point images in [0, 1].

    Args:
        size: side of the view in pixels.
        scale: smallest and largest area of the crop, as a share of the image.
        ratio: smallest and largest width : height of the crop.
        flip: probability of a horizontal flip.
        jitter: probability that the colours change, in a random order of the next four.
        brightness: factor uniform in [max(0, 1 - brightness), 1 + brightness].
        contrast: likewise.
        saturation: likewise.
        hue: shift uniform in [-hue, hue], in turns; at most 0.5.
        gray: probability of grayscale.
        blur: probability of a Gaussian blur.
        blur_kernel: its width in pixels, odd; None takes a tenth of `size` as SimCLR does, and at least 3.
        sigma: smallest and largest standard deviation of the blur in pixels.

    Raises:
        ValueError: if a number is out of range.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    gray: float = 0.0
    blur: float = 0.0
    blur_kernel: int | None = None
    sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        def check(name: str, ok: bool, must: str) -> None:
            if not ok:
                raise ValueError(f"View: {name} must be {must}, got {getattr(self, name)}")

        check("size", self.size >= 1, "at least 1")
        check("scale", 0 < self.scale[0] <= self.scale[1] <= 1, "increasing and in (0, 1]")
        check("ratio", 0 < self.ratio[0] <= self.ratio[1] < math.inf, "increasing and positive")
        for name in ("flip", "jitter", "gray", "blur"):
            check(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        for name in ("brightness", "contrast", "saturation"):
            check(name, 0 <= getattr(self, name) < math.inf, "at least 0")
        check("hue", 0 <= self.hue <= 0.5, "in [0, 0.5]")
        check("sigma", 0 < self.sigma[0] <= self.sigma[1] < math.inf, "increasing and positive")
        if self.blur_kernel is not None:
            check("blur_kernel", self.blur_kernel >= 1 and self.blur_kernel % 2 == 1, "odd and positive")
        # Reflection at the border reaches back by half a kernel.
        if self.blur > 0 and self.kernel // 2 >= self.size:
            raise ValueError(f"View: blur_kernel must be below twice the size {self.size}, got {self.kernel}")

    @property
    def kernel(self) -> int:
        """Width of the blur in pixels."""
        return self.blur_kernel or max(3, self.size // 10 // 2 * 2 + 1)


@dataclass(frozen=True)
class ViewParameters:
    """The numbers of one view for each of B images.

    Attributes:
        top: int64 [B], first row of the crop; `left`, `height`, `width` likewise.
        flip: bool [B].
        jitter: bool [B], whether the next five apply.
        order: int64 [B, 4], 0 brightness, 1 contrast, 2 saturation, 3 hue, first to last.
        brightness: float32 [B], factor; `contrast`, `saturation` likewise.
        hue: float32 [B], shift in turns.
        gray: bool [B].
        blur: bool [B].
        sigma: float32 [B], in pixels.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor
    jitter: Tensor
    order: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    gray: Tensor
    blur: Tensor
    sigma: Tensor


def sample(view: View, number: int, height: int, width: int, *, seed: int, epoch: int, index: Tensor) -> ViewParameters:
    """Draw the parameters of view `number` for images of height x width pixels.

    Args:
        view: the distribution.
        number: which view of the image this is: other numbers are independent draws.
        height: of the images, in pixels; `width` likewise.
        seed: with `epoch` and `index` the key of the draw, see :func:`fastssl.augment.random.uniform`.
        index: int64 [B], position of each image in its data set.
    """
    u = uniform(2 * _TRIES + 12, seed=seed, epoch=epoch, index=index, view=number)
    areas, ratios, rest = u[:, :_TRIES], u[:, _TRIES : 2 * _TRIES], u[:, 2 * _TRIES :].unbind(1)

    def between(u: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * u

    def factor(u: Tensor, strength: float) -> Tensor:
        return between(u, max(0.0, 1 - strength), 1 + strength)

    # RandomResizedCrop: the first of ten draws that fits; failing that, the largest central crop of allowed ratio.
    area = height * width * between(areas, *view.scale)
    ratio = between(ratios, math.log(view.ratio[0]), math.log(view.ratio[1])).exp()
    w = (area * ratio).sqrt().round().long()
    h = (area / ratio).sqrt().round().long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.long().argmax(1, keepdim=True)
    fit = fits.any(1)
    w_centre = min(width, max(1, round(height * view.ratio[1])))
    h_centre = min(height, max(1, round(width / view.ratio[0])))
    w = torch.where(fit, w.gather(1, first)[:, 0], w_centre)
    h = torch.where(fit, h.gather(1, first)[:, 0], h_centre)
    return ViewParameters(
        top=torch.where(fit, (rest[0] * (height - h + 1)).long(), (height - h) // 2),
        left=torch.where(fit, (rest[1] * (width - w + 1)).long(), (width - w) // 2),
        height=h,
        width=w,
        flip=rest[2] < view.flip,
        jitter=rest[3] < view.jitter,
        order=torch.tensor(_ORDERS, device=index.device)[(rest[4] * len(_ORDERS)).long()],
        brightness=factor(rest[5], view.brightness),
        contrast=factor(rest[6], view.contrast),
        saturation=factor(rest[7], view.saturation),
        hue=between(rest[8], -view.hue, view.hue),
        gray=rest[9] < view.gray,
        blur=rest[10] < view.blur,
        sigma=between(rest[11], *view.sigma),
    )
