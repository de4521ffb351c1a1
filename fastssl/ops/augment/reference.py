"""Random views in plain PyTorch: the definition, one image at a time.

Operations are torchvision's (`torchvision.transforms.v2.functional` on floating point images in [0, 1]); Sobel is
kornia's. ``record.py`` says what the numbers mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..philox import philox4x32, sample_words
from .record import (
    BLOCKS,
    COLOR_CODES,
    CROPS,
    HEADER,
    STEP,
    TRIES,
    Code,
    Geometry,
    Kind,
    entries,
    record_length,
    steps_of,
)

_LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue
_ORDERS = list(permutations(range(4)))  # of brightness, contrast, saturation, hue
_WORDS = 4 * BLOCKS


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    return None


# Drawing


def view_parameters(
    index: Tensor,  # int64 [B]
    sizes: Tensor | None,  # int64 [B, 2], height and width of each image; None: all are height x width
    *,
    height: int,
    width: int,
    out_height: int,
    out_width: int,
    seed: int,
    epoch: int,
    view: int,
    program: Sequence[float],
) -> Tensor:
    """The records of one view for each sample: float32 [B, 8 + 6 steps], computed in float64 and rounded once."""
    batch, device = len(index), index.device
    if sizes is None:
        sizes = torch.tensor([[height, width]], device=device).expand(batch, 2)
    image_height, image_width = sizes.double().unbind(1)
    records = torch.zeros(batch, record_length(steps_of(program)), dtype=torch.float64, device=device)
    rows = entries(program)

    def draws(entry: int) -> Tensor:
        """Its 32 numbers in [0, 1), float64 [B, 32]: multiples of 2^-24."""
        words = sample_words(_WORDS, BLOCKS * entry, seed=seed, epoch=epoch, index=index, view=view)
        return (words >> 8).double() * 2.0**-24

    slot = 0
    for number, (kind, probability, group, a) in enumerate(rows):
        u = draws(number)
        if kind in CROPS:
            box = _crop(kind, a, u, image_height, image_width, out_height, out_width)
            records[:, : len(box)] = torch.stack(box, 1)
            continue
        applied = (u if group == number else draws(group))[:, 0] < probability
        if kind == Kind.HORIZONTAL_FLIP:
            records[:, Geometry.HORIZONTAL_FLIP] = applied.double()
        elif kind == Kind.VERTICAL_FLIP:
            records[:, Geometry.VERTICAL_FLIP] = applied.double()
        elif kind == Kind.QUARTER_TURN:
            records[:, Geometry.QUARTER_TURNS] = applied * (1 + (3 * u[:, 1]).floor())
        else:
            for step in _jitter(a, u) if kind == Kind.JITTER else [_step(kind, a, u, out_height, out_width)]:
                start = HEADER + STEP * slot
                columns = torch.stack(
                    [torch.as_tensor(x, dtype=torch.float64, device=device).expand(batch) for x in step], 1
                )
                drawn = applied & (columns[:, 0] != Code.NOTHING)
                records[:, start : start + len(step)] = torch.where(drawn[:, None], columns, 0.0)
                slot += 1
    return records.float()


def _between(u: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * u


def _log_between(u: Tensor, low: float, high: float) -> Tensor:
    return _between(u, math.log(low), math.log(high)).exp()


def _first(fits: Tensor, values: Tensor) -> Tensor:
    """Of each row, the value at the first place that fits."""
    return values.gather(1, fits.long().argmax(1, keepdim=True))[:, 0]


def _place(u: Tensor, room: Tensor) -> Tensor:
    """A start for a length that leaves so much room."""
    return (u * (room + 1)).floor()


def _crop(
    kind: Kind, a: Sequence[float], u: Tensor, height: Tensor, width: Tensor, out_height: int, out_width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """top, left, height, width, each float64 [B]."""
    if kind == Kind.WHOLE:
        return torch.zeros_like(height), torch.zeros_like(width), height, width
    if kind == Kind.CROP:
        h, w = height.clamp(max=out_height), width.clamp(max=out_width)
        return _place(u[:, 1], height - h), _place(u[:, 2], width - w), h, w
    if kind == Kind.CENTER:
        share = torch.minimum(height / out_height, width / out_width) * a[0]
        h, w = ((share * side).round().clamp(min=1) for side in (out_height, out_width))
        return ((height - h) / 2).floor(), ((width - w) / 2).floor(), h, w
    # RandomResizedCrop: the first of ten draws that fits; failing that, the largest central crop of allowed ratio.
    area = (height * width)[:, None] * _between(u[:, 1 : 1 + TRIES], a[0], a[1])
    ratio = _log_between(u[:, 1 + TRIES : 1 + 2 * TRIES], a[2], a[3])
    w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
    fit = fits.any(1)
    low, high = width / height < a[2], width / height > a[3]
    h_centre = torch.where(low, (width / a[2]).round(), height).clamp(min=1).minimum(height)
    w_centre = torch.where(high, (height * a[3]).round(), width).clamp(min=1).minimum(width)
    h = torch.where(fit, _first(fits, h), h_centre)
    w = torch.where(fit, _first(fits, w), w_centre)
    top = torch.where(fit, _place(u[:, 1 + 2 * TRIES], height - h), ((height - h) / 2).floor())
    left = torch.where(fit, _place(u[:, 2 + 2 * TRIES], width - w), ((width - w) / 2).floor())
    return top, left, h, w


def _jitter(a: Sequence[float], u: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(code, factor) of each of four steps, in a random order; code 0 for what changes nothing."""
    orders = torch.tensor(_ORDERS, device=u.device)[(u[:, 1] * len(_ORDERS)).long()]  # [B, 4]
    neutral = (1.0, 1.0, 1.0, 0.0)
    bounds = [(a[2 * which], a[2 * which + 1]) for which in range(4)]
    codes = u.new_tensor([
        Code.NOTHING if low == high == neutral[which] else Code.BRIGHTNESS + which
        for which, (low, high) in enumerate(bounds)
    ])  # fmt: skip
    factors = torch.stack([_between(u[:, 2 + which], *bounds[which]) for which in range(4)], 1)
    return [(codes[order], factors.gather(1, order[:, None])[:, 0]) for order in orders.unbind(1)]


def _step(kind: Kind, a: Sequence[float], u: Tensor, height: int, width: int) -> tuple[Tensor | float, ...]:
    """(code, a, b, ...) of a step of a view of this size."""
    if kind == Kind.SOLARIZE:
        return Code.SOLARIZE, a[0]
    if kind == Kind.BLUR:
        return Code.BLUR, _between(u[:, 1], a[0], a[1]), a[2]
    if kind == Kind.ROTATE:
        return Code.ROTATE, _between(u[:, 1], a[0], a[1]), a[2], a[3]
    if kind == Kind.NOISE:
        return Code.NOISE, a[1], a[0], u[:, 1] * 2**24, u[:, 2] * 2**24, a[2]
    if kind == Kind.CUTOUT:
        # torchvision's RandomErasing: the first of ten draws that leaves something of the view, or none.
        area = height * width * _between(u[:, 1 : 1 + TRIES], a[0], a[1])
        ratio = _log_between(u[:, 1 + TRIES : 1 + 2 * TRIES], a[2], a[3])
        hs, ws = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (hs > 0) & (hs < height) & (ws > 0) & (ws < width)
        h, w = _first(fits, hs), _first(fits, ws)
        code = torch.where(fits.any(1), float(Code.CUTOUT), float(Code.NOTHING))
        return code, _place(u[:, 1 + 2 * TRIES], height - h), _place(u[:, 2 + 2 * TRIES], width - w), h, w, a[4]
    return (Code.GRAYSCALE if kind == Kind.GRAYSCALE else Code.SOBEL,)


# Pixels


def augment_views(
    images: Sequence[Tensor],  # one uint8 [B, C, H, W], or B of [C, H, W]
    parameters: Sequence[Tensor],  # per view float32 [B, 8 + 6 steps]
    *,
    heights: Sequence[int],
    widths: Sequence[int],
    bicubic: Sequence[bool],
    passes: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> list[Tensor]:
    """Per view [B, C, height, width], normalised; arithmetic in float64 for that dtype, in float32 for others."""
    each = images[0] if images[0].ndim == 4 else images
    real = torch.float64 if dtype == torch.float64 else torch.float32
    centre, spread = (torch.tensor(x, dtype=real, device=each[0].device)[:, None, None] for x in (mean, std))
    return [
        torch.stack([
            ((view_of(image, record, (h, w), cubic, centre) - centre) / spread).to(dtype)
            for image, record in zip(each, records.tolist(), strict=True)
        ])
        for records, h, w, cubic in zip(parameters, heights, widths, bicubic, strict=True)
    ]  # fmt: skip


def view_of(image: Tensor, record: Sequence[float], size: tuple[int, int], bicubic: bool, mean: Tensor) -> Tensor:
    """One view of one image before normalisation: uint8 [C, H, W] -> [C, *size] in [0, 1], of ``mean``'s dtype."""
    x = resized_crop(image, record, size, bicubic, mean.dtype)
    if _truth(record[Geometry.HORIZONTAL_FLIP]):
        x = x.flip(-1)
    if _truth(record[Geometry.VERTICAL_FLIP]):
        x = x.flip(-2)
    turns = _whole(record[Geometry.QUARTER_TURNS]) & 3
    if size[0] == size[1] or turns == 2:
        x = x.rot90(turns, (-2, -1))
    for start in range(HEADER, len(record), STEP):
        code, *numbers = record[start : start + STEP]
        change = _STEPS.get(_whole(code))
        if change is not None and (_whole(code) not in COLOR_CODES or len(x) in (1, 3)):
            x = change(x, numbers, mean)
    return x


def _whole(number: float) -> int:
    """An int, 0 for what is none."""
    return int(number) if math.isfinite(number) else 0


def _truth(number: float) -> bool:
    return math.isfinite(number) and number != 0


def _inside(start: float, length: float, size: int) -> tuple[int, int]:
    """Start and length of what a record asks for, made to lie inside."""
    first = min(max(_whole(start), 0), size - 1)
    return first, min(max(_whole(length), 1), size - first)


def resized_crop(
    image: Tensor, record: Sequence[float], size: tuple[int, int], bicubic: bool, dtype: torch.dtype
) -> Tensor:
    """The crop that a record names, resized with antialiasing to [C, *size]; bicubic is clamped to [0, 1]."""
    top, height = _inside(record[Geometry.TOP], record[Geometry.HEIGHT], image.shape[-2])
    left, width = _inside(record[Geometry.LEFT], record[Geometry.WIDTH], image.shape[-1])
    x = image[:, top : top + height, left : left + width].to(dtype) / 255
    if (height, width) == tuple(size):
        return x
    mode = "bicubic" if bicubic else "bilinear"
    x = x[None]
    # Each axis as the last one: PyTorch (2.15 at least) resizes the height of a single column wrongly.
    for length in (size[1], size[0]):
        x = F.interpolate(x, (x.shape[-2], length), mode=mode, align_corners=False, antialias=True).mT
    return x[0].clamp(0, 1)


def gray(x: Tensor) -> Tensor:
    """[C, h, w] -> [1, h, w]; one channel is returned as it is."""
    if len(x) == 1:
        return x
    red, green, blue = x
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue)[None]


def brightness(x: Tensor, a: Sequence[float], mean: Tensor) -> Tensor:
    return (x * a[0]).clamp(0, 1)


def contrast(x: Tensor, a: Sequence[float], mean: Tensor) -> Tensor:
    """A blend with the mean of the grayscale view."""
    return _blend(x, gray(x).mean(), a[0])


def saturation(x: Tensor, a: Sequence[float], mean: Tensor) -> Tensor:
    """A blend with the grayscale view."""
    return _blend(x, gray(x), a[0]) if len(x) == 3 else x


def _blend(x: Tensor, other: Tensor, share: float) -> Tensor:
    return (share * x + (1 - share) * other).clamp(0, 1)


def hue(x: Tensor, a: Sequence[float], mean: Tensor) -> Tensor:
    """The hue turned by a[0] turns, at constant value and saturation (HSV)."""
    if len(x) != 3:
        return x
    red, green, blue = x
    value, low = x.amax(0), x.amin(0)
    chroma = value - low
    scale = 1 / torch.where(chroma == 0, 1.0, chroma)
    # Hue in sixths of a turn, by which of the channels is the largest.
    sixth = torch.where(
        value == red,
        (green - blue) * scale,
        torch.where(value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale),
    )
    # Each channel is the value, lowered by the chroma over a third of the circle with ramps of a sixth on both sides.
    offset = x.new_tensor([5, 3, 1])[:, None, None]
    k = (sixth + 6 * a[0] + offset).remainder(6)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def grayscale(x: Tensor, a: Sequence[float], mean: Tensor) -> Tensor:
    return gray(x).expand_as(x)


def solarize(x: Tensor, a: Sequence[float], mean: Tensor) -> Tensor:
    return torch.where(x >= a[0], 1 - x, x)


def blur(x: Tensor, a: Sequence[float], mean: Tensor) -> Tensor:
    """Gaussian blur by a[0] pixels over a[1] taps, reflected at the border without repeating it."""
    sigma, taps = a[0], _whole(a[1])
    if not 0 < sigma < math.inf or taps <= 1:
        return x
    taps = min(taps | 1, 2 * min(x.shape[-2:]) - 1)
    tap = torch.arange(taps, dtype=x.dtype, device=x.device) - taps // 2
    weight = torch.exp(-0.5 * (tap / sigma) ** 2)
    weight = weight / weight.sum()
    for axis in (-1, -2):
        kernel = weight.view(1, 1, 1, -1) if axis == -1 else weight.view(1, 1, -1, 1)
        pad = (taps // 2,) * 2 + (0, 0) if axis == -1 else (0, 0) + (taps // 2,) * 2
        x = F.conv2d(F.pad(x[:, None], pad, mode="reflect"), kernel)[:, 0]
    return x


def rotate(x: Tensor, a: Sequence[float], mean: Tensor) -> Tensor:
    """By a[0] degrees counter-clockwise about the centre; a[1] bilinear or nearest; a[2] where nothing was."""
    angle, bilinear, fill = math.radians(a[0] if math.isfinite(a[0]) else 0.0), a[1] != 0, a[2]
    height, width = x.shape[-2:]
    dx = torch.arange(width, dtype=torch.float64, device=x.device) - (width - 1) / 2
    dy = (torch.arange(height, dtype=torch.float64, device=x.device) - (height - 1) / 2)[:, None]
    column = math.cos(angle) * dx - math.sin(angle) * dy + (width - 1) / 2  # [h, w], where a pixel comes from
    row = math.sin(angle) * dx + math.cos(angle) * dy + (height - 1) / 2

    def at(row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [C, h, w], and whether there are any [h, w]."""
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        return x[:, row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()], inside

    if not bilinear:
        pixels, inside = at(row.round(), column.round())
        return torch.where(inside, pixels, fill)
    total, covered = torch.zeros_like(x), torch.zeros_like(x[0])
    for r, row_weight in ((row.floor(), 1 - row % 1), (row.floor() + 1, row % 1)):
        for c, column_weight in ((column.floor(), 1 - column % 1), (column.floor() + 1, column % 1)):
            pixels, inside = at(r, c)
            weight = (row_weight * column_weight * inside).to(x.dtype)
            total, covered = total + weight * pixels, covered + weight
    return (total - fill) * covered + fill  # torchvision's blend: what is partly covered fades twice


def cutout(x: Tensor, a: Sequence[float], mean: Tensor) -> Tensor:
    """A box [top, left, height, width] set to a[4], or to the mean where that is negative."""
    height, width = x.shape[-2:]
    rows = (_whole(a[0]), _whole(a[0]) + _whole(a[2]))
    columns = (_whole(a[1]), _whole(a[1]) + _whole(a[3]))
    (top, bottom), (left, right) = ([min(max(e, 0), n) for e in ends] for ends, n in ((rows, height), (columns, width)))
    x = x.clone()
    x[:, top:bottom, left:right] = mean if a[4] < 0 else a[4]
    return x


def noise(x: Tensor, a: Sequence[float], mean: Tensor) -> Tensor:
    """Gaussian noise of deviation a[0] and mean a[1], keyed by two words; clamped to [0, 1] where a[4] is not 0."""
    x = x + a[1] + a[0] * _normal(x, (_whole(a[2]) & 0xFFFFFFFF, _whole(a[3]) & 0xFFFFFFFF))
    return x.clamp(0, 1) if a[4] != 0 else x


def _normal(x: Tensor, key: tuple[int, int]) -> Tensor:
    """Standard normal numbers like x [C, h, w], by Box and Muller: four channels from the four words of a pixel."""
    channels, pixels = len(x), x[0].numel()
    groups = -(-channels // 4)
    pixel = torch.arange(pixels, device=x.device).expand(groups, -1)
    group = torch.arange(groups, device=x.device)[:, None].expand(-1, pixels)
    zero = torch.zeros_like(pixel)
    words = torch.stack(philox4x32((pixel, group, zero, zero), key), 1)  # [groups, 4, pixels]
    u = ((words >> 8).to(x.dtype) + 0.5) * 2.0**-24
    radius, angle = (-2 * u[:, 0::2].log()).sqrt(), 2 * math.pi * u[:, 1::2]
    numbers = torch.stack([radius * angle.cos(), radius * angle.sin()], 2)  # [groups, 2, 2, pixels]
    return numbers.reshape(4 * groups, *x.shape[1:])[:channels]


def sobel(x: Tensor, a: Sequence[float], mean: Tensor) -> Tensor:
    """sqrt(gx^2 + gy^2 + 1e-6) of each channel, kernels of norm 1, border repeated (kornia.filters.sobel)."""
    smooth, difference = x.new_tensor([1, 2, 1]) / 8, x.new_tensor([-1, 0, 1])
    padded = F.pad(x[:, None], (1, 1, 1, 1), mode="replicate")
    gx = F.conv2d(padded, (smooth[:, None] * difference)[None, None])[:, 0]
    gy = F.conv2d(padded, (difference[:, None] * smooth)[None, None])[:, 0]
    return (gx**2 + gy**2 + 1e-6).sqrt()


_STEPS: dict[int, Callable[[Tensor, Sequence[float], Tensor], Tensor]] = {
    Code.BRIGHTNESS: brightness,
    Code.CONTRAST: contrast,
    Code.SATURATION: saturation,
    Code.HUE: hue,
    Code.GRAYSCALE: grayscale,
    Code.SOLARIZE: solarize,
    Code.BLUR: blur,
    Code.ROTATE: rotate,
    Code.CUTOUT: cutout,
    Code.NOISE: noise,
    Code.SOBEL: sobel,
}
