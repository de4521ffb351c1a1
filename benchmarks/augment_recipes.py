"""What ``fastssl bench augment`` asks everyone for: the recipes of random views, and images to make them of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RATIO = (3 / 4, 4 / 3)
SIGMA = (0.1, 2.0)
GRAY = 0.2
FLIP = 0.5
JITTER = 0.8


@dataclass(frozen=True)
class Recipe:
    """The distribution of one view, in the order of its steps; then it is normalised with ``MEAN`` and ``STD``.

    Flip, jitter and grayscale have the probabilities above, crops the aspect ratios and blurs the sigmas.

    Attributes:
        size: side of the view, pixels.
        scale: smallest and largest area of the crop, as a share of the image.
        bicubic: how the crop is resized; else bilinear. Antialiased.
        jitter: strengths of brightness, contrast, saturation and hue.
        blur: probability of the Gaussian blur.
        kernel: its width, pixels.
        solarize: probability of it, at half of the brightness.
    """

    size: int
    scale: tuple[float, float]
    bicubic: bool
    jitter: tuple[float, float, float, float]
    blur: float
    kernel: int
    solarize: float


def recipes(sizes: Mapping[str, float]) -> list[Recipe]:
    """The views of each image that a case's sizes stand for.

    Without small crops ("local" = 0): one view of SimCLR (Chen et al. 2020, appendix A) of side "size", with its
    colours' "strength" and its probability of a "blur". With them: DINO's (Caron et al. 2021) two views of side "size"
    and "local" ones of side "local_size".
    """
    side, local = int(sizes["size"]), int(sizes["local"])
    if local == 0:
        strength = sizes["strength"]
        jitter = (0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
        kernel = max(3, side // 10 // 2 * 2 + 1)
        return [Recipe(side, (0.08, 1.0), False, jitter, sizes["blur"], kernel, 0.0)]
    jitter = (0.4, 0.4, 0.2, 0.1)

    def view(size: int, scale: tuple[float, float], blur: float, solarize: float) -> Recipe:
        return Recipe(size, scale, True, jitter, blur, min(9, size // 2 * 2 - 1), solarize)

    small = view(int(sizes["local_size"]), (0.05, 0.4), 0.5, 0.0)
    return [view(side, (0.4, 1.0), 1.0, 0.0), view(side, (0.4, 1.0), 0.1, 0.2), *[small] * local]


_SHARP = 1 << 20  # pixels


def photographs(batch: int, height: int, width: int, generator: torch.Generator, device: str) -> Tensor:
    """Random images with what the steps of a view change: uint8 [batch, height, width, 3].

    Structure of every size, as photographs have it: amplitude falls with frequency.
    """

    if height * width > _SHARP:  # larger ones are rarely sharp to the pixel, and would take minutes to make
        soft = photographs(batch, -(-height // 4), -(-width // 4), generator, device)
        large = torch.empty(batch, height, width, 3, dtype=torch.uint8, device=device)
        for image, out in zip(soft, large, strict=True):
            out.copy_(
                F.interpolate(image.permute(2, 0, 1)[None].float(), (height, width), mode="bilinear")[0].permute(
                    1, 2, 0
                )
            )
        return large

    def noise(channels: int, shape: tuple[int, int]) -> Tensor:
        return torch.randn(batch, channels, *shape, generator=generator, device=device)

    total = torch.zeros(batch, 3, height, width, device=device)
    cells, longest = 2, max(height, width)
    while cells < longest:
        shape = (max(1, cells * height // longest), max(1, cells * width // longest))
        coarse = noise(3, shape) + 2 * noise(1, shape)  # most of it is common to the channels
        total += F.interpolate(coarse, (height, width), mode="bilinear") * (0.11 / cells**0.5)
        cells *= 2
    colour = torch.tensor([0.62, 0.47, 0.36], device=device)[:, None, None]
    return (total + colour).clamp_(0, 1).mul_(255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def charts(batch: int, height: int, width: int, device: str) -> Tensor:
    """Images of one colour whose brightness climbs to the right and falls at once, several times: uint8
    [batch, height, width, 3].

    A view shows what was done to it, wherever it was cut out: the steepness of the falls tells of blur and solarising,
    their direction of a flip and their number of the size of the crop, the colour of all colour steps.
    """
    place = torch.arange(width, device=device) * (max(1, min(8, width // 8)) / width)
    light = 0.15 + 0.75 * (place - place.floor())
    colour = torch.tensor([1.0, 0.75, 0.5], device=device)[:, None, None]
    chart = (light * colour * 255).round().to(torch.uint8).expand(3, height, width)
    return chart.permute(1, 2, 0).expand(batch, height, width, 3).contiguous()
