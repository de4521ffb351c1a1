"""Views by torchvision, operation by operation, from the numbers that fastssl has drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.augment import ViewParameters


def torchvision_view(
    image: Tensor, parameters: ViewParameters, size: tuple[int, int], interpolation: str = "bilinear"
) -> Tensor:
    """One view of one image, uint8 [C, H, W] -> float32 [C, *size] in [0, 1].

    Args:
        image: the image.
        parameters: of one image.
        size: of the view.
        interpolation: "bilinear" or "bicubic".
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as tv

    p = parameters
    box = (int(p.top), int(p.left), int(p.height), int(p.width))
    x = image.float() / 255
    x = tv.resized_crop(x, *box, list(size), interpolation=InterpolationMode(interpolation), antialias=True).clamp(0, 1)
    if p.horizontal_flip:
        x = tv.horizontal_flip(x)
    if p.vertical_flip:
        x = tv.vertical_flip(x)
    x = x.rot90(int(p.quarter_turns), (-2, -1))
    for name, n in p.steps(0):
        if name == "brightness":
            x = tv.adjust_brightness(x, n["factor"])
        elif name == "contrast":
            x = tv.adjust_contrast(x, n["factor"])
        elif name == "saturation":
            x = tv.adjust_saturation(x, n["factor"])
        elif name == "hue":
            x = tv.adjust_hue(x, n["turns"])
        elif name == "grayscale":
            x = tv.rgb_to_grayscale(x, num_output_channels=len(x))
        elif name == "solarize":
            x = tv.solarize(x, n["threshold"])
        elif name == "blur":
            x = tv.gaussian_blur(x, [int(n["kernel_size"])] * 2, [n["sigma"]] * 2)
        elif name == "rotate":
            mode = InterpolationMode.BILINEAR if n["bilinear"] else InterpolationMode.NEAREST
            x = tv.rotate(x, n["degrees"], mode, fill=[n["fill"]])
        elif name == "cutout":
            top, left, height, width = (int(n[key]) for key in ("top", "left", "height", "width"))
            x = tv.erase(x, top, left, height, width, torch.tensor(n["value"]))
        else:
            raise ValueError(f"torchvision has no {name} with given numbers")
    return x
