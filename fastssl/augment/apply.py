"""The pixels of random views, in plain PyTorch, for a whole batch with different parameters per image.

Each operation is torchvision's (`torchvision.transforms.v2.functional`, floating point images in [0, 1]) and is tested
against it. Cropping with antialiased resizing and blurring are linear and separable, so both are two small matrix
products per image: out = R x C', with R [h, H] built from the parameters of that image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.augment.view import View, ViewParameters

_LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue


def apply_view(image: Tensor, view: View, parameters: ViewParameters) -> Tensor:
    """Make one view of each image.

    Args:
        image: uint8 [B, C, H, W], C = 1 or 3.
        view: gives the size of the output and of the blur.
        parameters: the numbers for each image, on the same device.

    Returns:
        float32 [B, C, size, size] in [0, 1].
    """
    p = parameters
    height, width = image.shape[-2:]
    rows = resize_matrix(p.top, p.height, height, view.size)
    columns = resize_matrix(p.left, p.width, width, view.size)
    columns = torch.where(p.flip[:, None, None], columns.flip(1), columns)
    x = separable(image.float() / 255, rows, columns)
    if image.shape[1] == 3:
        factors = (p.brightness, p.contrast, p.saturation, p.hue)
        for step in range(4):
            for which, (change, factor) in enumerate(
                zip((brightness, contrast, saturation, hue), factors, strict=True)
            ):
                _update(x, p.jitter & (p.order[:, step] == which), change, factor)
        _update(x, p.gray, lambda part: luma(part).expand_as(part))
    else:  # saturation, hue and grayscale leave an image of one channel as it is
        for step in range(4):
            for which, change, factor in ((0, brightness, p.brightness), (1, contrast, p.contrast)):
                _update(x, p.jitter & (p.order[:, step] == which), change, factor)
    if view.blur > 0:
        _update(x, p.blur, lambda part, sigma: gaussian_blur(part, sigma, view.kernel), p.sigma)
    return x


def _update(x: Tensor, mask: Tensor, change, *factors: Tensor) -> None:
    """x[mask] = change(x[mask], factors[mask]) without touching the other images."""
    rows = mask.nonzero()[:, 0]
    if len(rows):
        x[rows] = change(x[rows], *(factor[rows] for factor in factors))


def separable(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows @ x @ columns' for each image: x [B, C, H, W], rows [B, h, H], columns [B, w, W] -> [B, C, h, w]."""
    batch, channels, height, _ = x.shape
    x = torch.bmm(x.flatten(1, 2), columns.mT).view(batch, channels, height, -1)
    return rows[:, None] @ x


def resize_matrix(start: Tensor, length: Tensor, source: int, size: int) -> Tensor:
    """Antialiased linear resizing of pixels [start, start + length) to `size` pixels.

    Args:
        start: int64 [B]; `length` likewise, at least 1, start + length <= source.
        source: pixels of the source.
        size: pixels of the output.

    Returns:
        float32 [B, size, source]; each row sums to 1.
    """
    device = start.device
    step = (length.float() / size)[:, None, None]  # source pixels per output pixel
    centre = (torch.arange(size, device=device) + 0.5)[:, None] * step + start[:, None, None]
    pixel = torch.arange(source, device=device)
    weight = (1 - (pixel + 0.5 - centre).abs() / step.clamp(min=1)).clamp(min=0)
    inside = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])
    weight = weight * inside[:, None]
    return weight / weight.sum(-1, keepdim=True)


def luma(x: Tensor) -> Tensor:
    """Grayscale of images with three channels: [B, 3, H, W] -> [B, 1, H, W]; one channel is returned as it is."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue)[:, None]


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """x [B, C, H, W] times factor [B], clamped to [0, 1]."""
    return (x * factor[:, None, None, None]).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend of x [B, C, H, W] with the mean of its grayscale, factor [B]; clamped to [0, 1]."""
    return _blend(x, luma(x).mean((1, 2, 3), keepdim=True), factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blend of x [B, 3, H, W] with its grayscale, factor [B]; clamped to [0, 1]."""
    return _blend(x, luma(x), factor)


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(other, x, factor[:, None, None, None]).clamp_(0, 1)


def hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of x [B, 3, H, W] by shift [B] turns, at constant value and saturation (HSV)."""
    red, green, blue = x.unbind(1)
    value, low = x.amax(1), x.amin(1)
    chroma = value - low
    scale = 1 / torch.where(chroma == 0, 1.0, chroma)
    # Hue in sixths of a turn, by which of the channels is the largest.
    sixth = torch.where(
        value == red,
        (green - blue) * scale,
        torch.where(value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale),
    )
    sixth = sixth + 6 * shift[:, None, None]
    # Each channel is the value, lowered by the chroma over a third of the circle with ramps of a sixth on both sides.
    offset = torch.tensor([5.0, 3.0, 1.0], device=x.device)[:, None, None]
    k = (sixth[:, None] + offset).remainder(6)
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)


def gaussian_blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Gaussian blur of x [B, C, H, W] by sigma [B] pixels over `kernel` (odd) taps, reflected at the border."""
    tap = torch.arange(kernel, device=x.device) - kernel // 2
    weight = torch.exp(-0.5 * (tap / sigma[:, None]) ** 2)
    weight = weight / weight.sum(1, keepdim=True)

    def matrix(size: int) -> Tensor:  # [B, size, size]
        pixel = torch.arange(size, device=x.device)
        source = (pixel[:, None] + tap).abs()
        source = torch.where(source >= size, 2 * (size - 1) - source, source)
        dense = x.new_zeros(len(x), size, size)
        index, taps = source.expand(len(x), -1, -1), weight[:, None].expand(-1, size, -1)
        return dense.scatter_add_(2, index, taps)

    return separable(x, matrix(x.shape[-2]), matrix(x.shape[-1]))
