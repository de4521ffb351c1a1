"""Records, programs and images for the tests of every backend of the augmentation operators."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl.ops.augment import reference
from fastssl.ops.augment.record import HEADER, STEP, Code, Kind, record_length

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What rounding in float32 may change in an image in [0, 1].
ROUNDING = 2e-5


def entry(kind: Kind, p: float = 1.0, *numbers: float, group: int) -> list[float]:
    """One entry of a program."""
    return [float(kind), p, float(group), *map(float, numbers), *[0.0] * (9 - len(numbers))]


def program(*rows: tuple[Kind, float, Sequence[float]]) -> list[float]:
    """A program of entries (kind, probability, numbers), each its own group."""
    return [number for e, (kind, p, numbers) in enumerate(rows) for number in entry(kind, p, *numbers, group=e)]


SIMCLR = program(
    (Kind.RESIZED_CROP, 1.0, (0.08, 1.0, 3 / 4, 4 / 3)),
    (Kind.HORIZONTAL_FLIP, 0.5, ()),
    (Kind.JITTER, 0.8, (0.2, 1.8, 0.2, 1.8, 0.2, 1.8, -0.2, 0.2)),
    (Kind.GRAYSCALE, 0.2, ()),
    (Kind.BLUR, 0.5, (0.1, 2.0, 5)),
)
EVERYTHING = program(
    (Kind.RESIZED_CROP, 1.0, (0.05, 1.0, 0.5, 2.0)),
    (Kind.HORIZONTAL_FLIP, 0.5, ()),
    (Kind.VERTICAL_FLIP, 0.5, ()),
    (Kind.QUARTER_TURN, 0.5, ()),
    (Kind.JITTER, 0.8, (0.2, 1.8, 0.2, 1.8, 0.2, 1.8, -0.5, 0.5)),
    (Kind.GRAYSCALE, 0.2, ()),
    (Kind.ROTATE, 0.3, (-30, 30, 1, 0.3)),
    (Kind.BLUR, 0.5, (0.1, 2.0, 7)),
    (Kind.CUTOUT, 0.5, (0.02, 0.3, 0.3, 3.3, -1)),
    (Kind.NOISE, 0.3, (0.01, 0.1, 1)),
    (Kind.SOBEL, 0.2, ()),
)


def record(
    *steps: tuple[float, ...],
    crop: tuple[float, float, float, float],
    flips: tuple[float, float] = (0, 0),
    turns: float = 0,
) -> Tensor:
    """A record, float32 [8 + 6 steps], of steps (code, a, b, ...)."""
    x = torch.zeros(record_length(len(steps)))
    x[:4], x[4:6], x[6] = torch.tensor(crop), torch.tensor(flips), turns
    for i, step in enumerate(steps):
        x[HEADER + STEP * i :][: len(step)] = torch.tensor(step, dtype=torch.float32)
    return x


def pictures(batch: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """uint8 [B, C, H, W]: smooth areas, noise, equal channels, saturated pixels. Hue has special cases there."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, channels, -(-height // 7), -(-width // 7), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    x = 0.8 * smooth + 0.2 * torch.rand(batch, channels, height, width, generator=generator)
    x[1::4] = x[1::4, :1]
    x[2::4] = x[2::4].round()
    x[3::4, :, : height // 2] = 0
    return (x * 255).round().byte()


# Steps by name, each with numbers that show whether it was done right.
STEPS: dict[str, list[tuple[float, ...]]] = {
    "nothing": [(Code.NOTHING, 3.0, 4.0)],
    "unknown": [(99.0, 3.0, 4.0)],
    "darker": [(Code.BRIGHTNESS, 0.4)],
    "brighter": [(Code.BRIGHTNESS, 1.7)],
    "less contrast": [(Code.CONTRAST, 0.3)],
    "more contrast": [(Code.CONTRAST, 1.8)],
    "less saturation": [(Code.SATURATION, 0.25)],
    "more saturation": [(Code.SATURATION, 1.8)],
    "hue": [(Code.HUE, 0.15)],
    "hue back": [(Code.HUE, -0.4)],
    "half a turn of hue": [(Code.HUE, 0.5)],
    "gray": [(Code.GRAYSCALE,)],
    "little blur": [(Code.BLUR, 0.1, 5)],
    "blur": [(Code.BLUR, 1.3, 7)],
    "wide blur": [(Code.BLUR, 3.0, 13)],
    "blur of even width": [(Code.BLUR, 1.0, 4)],
    "flat blur": [(Code.BLUR, 50.0, 9)],
    "blur wider than the view": [(Code.BLUR, 4.0, 99)],
    "rotate": [(Code.ROTATE, 17.0, 1, 0.0)],
    "rotate, filled": [(Code.ROTATE, -123.0, 1, 0.6)],
    "cutout": [(Code.CUTOUT, 3, 5, 8, 9, 0.25)],
    "cutout of the mean": [(Code.CUTOUT, 0, 2, 30, 4, -1)],
    "cutout beyond the border": [(Code.CUTOUT, -4, 9, 10, 1000, 0.5)],
    "noise": [(Code.NOISE, 0.1, 0.02, 12345, 16777215, 1)],
    "noise without clamp": [(Code.NOISE, 0.5, -0.1, 7, 8, 0)],
    "sobel": [(Code.SOBEL,)],
    "jitter": [(Code.HUE, 0.1), (Code.CONTRAST, 1.4), (Code.BRIGHTNESS, 0.7), (Code.SATURATION, 1.5)],
    "contrast twice": [(Code.CONTRAST, 1.4), (Code.BRIGHTNESS, 1.3), (Code.CONTRAST, 0.5), (Code.GRAYSCALE,)],
    "blur between colours": [(Code.SATURATION, 1.6), (Code.BLUR, 0.9, 5), (Code.CONTRAST, 1.5), (Code.HUE, 0.2)],
    "neighbourhoods in a row": [(Code.BLUR, 0.8, 3), (Code.ROTATE, 40, 1, 0.1), (Code.SOBEL,), (Code.BLUR, 2, 9)],
    "noise, blur, cutout": [
        (Code.NOISE, 0.1, 0, 1, 2, 1),
        (Code.BLUR, 1.0, 5),
        (Code.CUTOUT, 2, 2, 5, 5, 0.9),
        (Code.NOTHING,),
        (Code.BRIGHTNESS, 1.2),
    ],
}


def truth(images: Tensor | Sequence[Tensor], parameters: Sequence[Tensor], **options: object) -> list[Tensor]:
    """The views in float64."""
    images = [images] if isinstance(images, Tensor) else list(images)
    images = [image.cpu() for image in images]
    parameters = [each.cpu() for each in parameters]
    return reference.augment_views(images, parameters, dtype=torch.float64, **options)  # type: ignore[arg-type]


def options(
    sizes: Sequence[tuple[int, int]], channels: int = 3, bicubic: bool = False, mean=MEAN, std=STD
) -> dict[str, object]:
    """Keywords of the backends' ``augment_views`` but the dtype."""
    repeat = math.ceil(channels / len(mean))
    return {
        "heights": [h for h, _ in sizes],
        "widths": [w for _, w in sizes],
        "bicubic": [bicubic] * len(sizes),
        "passes": [-1] * len(sizes),
        "mean": (list(mean) * repeat)[:channels],
        "std": (list(std) * repeat)[:channels],
    }


def assert_same_view(actual: Tensor, expected: Tensor, std: Sequence[float], what: str = "", levels: float = 0) -> None:
    """Both normalised: equal up to rounding (and ``levels`` of 255) before normalisation, and expected is no constant.

    Args:
        actual: [B, C, h, w] of any float dtype; what its own rounding adds is allowed.
        expected: the same in float64.
    """
    assert actual.shape == expected.shape, what
    scale = torch.tensor(std, dtype=torch.float64)[:, None, None]
    error = (actual.double().cpu() - expected).abs()
    own = torch.finfo(actual.dtype).eps * expected.abs() if actual.dtype != torch.float32 else 0.0
    allowed = (ROUNDING + levels / 255) / scale + own
    assert (error <= allowed).all(), f"{what}: off by {(error * scale).max():.2e} before normalisation"
