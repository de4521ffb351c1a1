"""What changes the colours and pixels of a view, in any order, and the normalisation at its end.

Definitions and arguments are torchvision's (v2, floating point images in [0, 1]); Sobel is kornia's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..ops import checks
from ..ops.augment.record import CROPS, Kind
from .arguments import Range, around, bounds, is_bilinear, probability
from .base import Transform
from .plan import Entry

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Strength = float | Range | None


class ColorJitter(Transform):
    """Brightness, contrast, saturation and hue changed by random amounts in a random order.

    Images of one channel keep what is called saturation and hue.

    Args:
        brightness: factor uniform in [max(0, 1 - brightness), 1 + brightness], or in the range given as a pair.
        contrast: likewise.
        saturation: likewise.
        hue: shift uniform in [-hue, hue], or in the range given, in turns; within [-0.5, 0.5].
        p: how often.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        brightness: Strength = 0,
        contrast: Strength = 0,
        saturation: Strength = 0,
        hue: Strength = 0,
        p: float = 1.0,
    ) -> None:
        super().__init__()
        self.brightness = around(self.label, "brightness", brightness, centre=1, least=0)
        self.contrast = around(self.label, "contrast", contrast, centre=1, least=0)
        self.saturation = around(self.label, "saturation", saturation, centre=1, least=0)
        self.hue = around(self.label, "hue", hue, centre=0, least=-0.5, most=0.5)
        self.p = probability(self.label, "p", p)

    def entries(self) -> list[Entry]:
        return [Entry(Kind.JITTER, self.p, (*self.brightness, *self.contrast, *self.saturation, *self.hue))]


class RandomGrayscale(Transform):
    """All channels set to 0.2989 red + 0.587 green + 0.114 blue.

    Args:
        p: how often.

    Raises:
        ValueError: if ``p`` is not in [0, 1].
    """

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        self.p = probability(self.label, "p", p)

    def entries(self) -> list[Entry]:
        return [Entry(Kind.GRAYSCALE, self.p)]


class GaussianBlur(Transform):
    """Gaussian blur, reflected at the border.

    Args:
        kernel_size: pixels over which it goes, odd; a pair of equal numbers is taken too.
        sigma: standard deviation in pixels: a number, or the range from which it is drawn uniformly.
        p: how often.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, kernel_size: int | Sequence[int], sigma: float | Range = (0.1, 2.0), p: float = 1.0) -> None:
        super().__init__()
        sides = set(kernel_size) if isinstance(kernel_size, Sequence) else {kernel_size}
        if len(sides) != 1:
            raise ValueError(f"{self.label}: kernel_size must be the same in both directions, got {kernel_size}")
        self.kernel_size = checks.check_count(self.label, "kernel_size", sides.pop(), minimum=1)
        if self.kernel_size % 2 == 0:
            raise ValueError(f"{self.label}: kernel_size must be odd, got {kernel_size}")
        pair = sigma if isinstance(sigma, Sequence) else (sigma, sigma)
        self.sigma = bounds(self.label, "sigma", pair, least=0, above=True)
        self.p = probability(self.label, "p", p)

    def entries(self) -> list[Entry]:
        return [Entry(Kind.BLUR, self.p, (*self.sigma, self.kernel_size))]


class RandomSolarize(Transform):
    """Values at and above a threshold inverted.

    Args:
        threshold: in [0, 1]; Pillow's 128 of 255 is 128 / 255.
        p: how often.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, threshold: float, p: float = 0.5) -> None:
        super().__init__()
        self.threshold = checks.check_range(self.label, "threshold", threshold, maximum=1)
        self.p = probability(self.label, "p", p)

    def entries(self) -> list[Entry]:
        return [Entry(Kind.SOLARIZE, self.p, (self.threshold,))]


class RandomRotation(Transform):
    """A rotation about the centre, counter-clockwise; the view keeps its size.

    Args:
        degrees: a number d for [-d, d], or the range, from which the angle is drawn uniformly.
        interpolation: "nearest" or "bilinear".
        fill: value in [0, 1] of what comes from outside.
        p: how often.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self, degrees: float | Range, interpolation: Any = "nearest", fill: float = 0.0, p: float = 1.0
    ) -> None:
        super().__init__()
        if not isinstance(degrees, Sequence):
            most = checks.check_range(self.label, "degrees", degrees)
            degrees = (-most, most)
        self.degrees = bounds(self.label, "degrees", degrees, least=-float("inf"))
        self.interpolation = "bilinear" if is_bilinear(self.label, interpolation) else "nearest"
        self.fill = checks.check_range(self.label, "fill", fill, maximum=1)
        self.p = probability(self.label, "p", p)

    def entries(self) -> list[Entry]:
        return [Entry(Kind.ROTATE, self.p, (*self.degrees, float(self.interpolation == "bilinear"), self.fill))]


class Cutout(Transform):
    """A random box erased: torchvision's RandomErasing, before the normalisation.

    Args:
        p: how often.
        scale: smallest and largest area of the box as a share of the view, in [0, 1].
        ratio: smallest and largest height : width of the box.
        value: what it is filled with, in [0, 1]; "mean" takes the mean of the normalisation, which makes 0 of it: what
            RandomErasing does after Normalize.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self, p: float = 0.5, scale: Range = (0.02, 0.33), ratio: Range = (0.3, 3.3), value: float | str = "mean"
    ) -> None:
        super().__init__()
        self.p = probability(self.label, "p", p)
        self.scale = bounds(self.label, "scale", scale, least=0, most=1)
        self.ratio = bounds(self.label, "ratio", ratio, least=0, above=True)
        if isinstance(value, str):
            checks.check_choice(self.label, "value", value, ("mean",))
            self.value: float | str = value
        else:
            self.value = checks.check_range(self.label, "value", value, maximum=1)

    def entries(self) -> list[Entry]:
        value = -1.0 if isinstance(self.value, str) else self.value
        return [Entry(Kind.CUTOUT, self.p, (*self.scale, *self.ratio, value))]


class GaussianNoise(Transform):
    """Independent Gaussian noise added to every value.

    Args:
        mean: of the noise.
        sigma: its standard deviation.
        clip: whether to clamp to [0, 1] afterwards.
        p: how often.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, mean: float = 0.0, sigma: float = 0.1, clip: bool = True, p: float = 1.0) -> None:
        super().__init__()
        self.mean = bounds(self.label, "mean", (mean, mean), least=-float("inf"))[0]
        self.sigma = checks.check_range(self.label, "sigma", sigma)
        self.clip = bool(clip)
        self.p = probability(self.label, "p", p)

    def entries(self) -> list[Entry]:
        return [Entry(Kind.NOISE, self.p, (self.mean, self.sigma, float(self.clip)))]


class Sobel(Transform):
    """The magnitude of the gradient in each channel: sqrt(gx^2 + gy^2 + 1e-6), kernels of norm 1.

    Args:
        p: how often.

    Raises:
        ValueError: if ``p`` is not in [0, 1].
    """

    def __init__(self, p: float = 1.0) -> None:
        super().__init__()
        self.p = probability(self.label, "p", p)

    def entries(self) -> list[Entry]:
        return [Entry(Kind.SOBEL, self.p)]


class Normalize(Transform):
    """(x - mean) / std per channel, at the end of a view.

    Images of one channel take the means of both over the given channels; one number is taken for all channels.

    Args:
        mean: per channel, for values in [0, 1].
        std: per channel, above 0.

    Raises:
        ValueError: if the lengths differ or a standard deviation is not above 0.
    """

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        if not self.mean or len(mean) != len(std) or not all(0 < value < float("inf") for value in self.std):
            raise ValueError(f"{self.label}: std must be positive, one for each mean {mean}, got {std}")
        self.statistics = (self.mean, self.std)


class RandomApply(Transform):
    """Some steps or flips applied together, or none of them.

    Args:
        transforms: the steps, in order. Of those that are themselves random, none may be (their p is in (0, 1)) where
            there is a second one: all of them hang on one draw.
        p: how often.

    Raises:
        ValueError: if ``p`` is not in [0, 1], or the transforms cannot be applied together.
    """

    def __init__(self, transforms: Sequence[Transform], p: float = 0.5) -> None:
        super().__init__()
        self.p = probability(self.label, "p", p)
        self.transforms = list(transforms)
        if not self.transforms:
            raise ValueError(f"{self.label}: transforms must hold at least one transform, got none")
        for transform in self.transforms:
            if not isinstance(transform, Transform):
                raise TypeError(f"{self.label}: transforms must be those of fastssl.augment, got {transform!r}")
            if transform.statistics is not None or any(entry.kind in CROPS for entry in transform.entries()):
                raise ValueError(f"{self.label}: transforms must be steps and flips, got {transform.label}")
        random = [t.label for t in self.transforms if any(0 < entry.p < 1 for entry in t.entries())]
        if 0 < self.p < 1 and len(random) > 1:
            raise ValueError(
                f"{self.label}: transforms may hold one that is random itself, since all hang on one draw, "
                f"got {', '.join(random)}"
            )

    def entries(self) -> list[Entry]:
        together: list[Entry] = []
        for transform in self.transforms:
            first = len(together)
            for number, entry in enumerate(transform.entries()):
                group = first + (number if entry.group is None else entry.group)
                together.append(entry._replace(group=group))
        if self.p == 1:
            return together
        return [entry._replace(p=entry.p * self.p, group=0) for entry in together]

    def extra_repr(self) -> str:
        return f"p={self.p}, transforms={self.transforms}"
