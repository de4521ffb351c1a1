"""Where a view comes from: crops and resizes, of which a view has one, and flips and turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..ops import checks
from ..ops.augment.record import Kind
from .arguments import Range, bounds, is_bicubic, pixel_size, probability
from .base import Transform
from .plan import Entry

Size = int | Sequence[int]


class RandomResizedCrop(Transform):
    """A crop of random area and aspect ratio, resized: torchvision's, antialiased.

    Args:
        size: height and width of the view, or one number for both.
        scale: smallest and largest area of the crop, as a share of the image, in (0, 1].
        ratio: smallest and largest width : height of the crop.
        interpolation: "bilinear" or "bicubic"; the bicubic result is clamped to [0, 1], as that of uint8 images.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self, size: Size, scale: Range = (0.08, 1.0), ratio: Range = (3 / 4, 4 / 3), interpolation: Any = "bilinear"
    ) -> None:
        super().__init__()
        self.size = pixel_size(self.label, size)
        self.scale = bounds(self.label, "scale", scale, least=0, most=1, above=True)
        self.ratio = bounds(self.label, "ratio", ratio, least=0, above=True)
        self.bicubic = is_bicubic(self.label, interpolation)
        self.interpolation = "bicubic" if self.bicubic else "bilinear"

    def entries(self) -> list[Entry]:
        return [Entry(Kind.RESIZED_CROP, numbers=(*self.scale, *self.ratio))]


class Resize(Transform):
    """The whole image, resized to a fixed size: torchvision's ``Resize((height, width))``, antialiased.

    Args:
        size: height and width of the view; one number makes it square, the aspect ratio is not kept (torchvision keeps
            it with one number).
        interpolation: "bilinear" or "bicubic".

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, size: Size, interpolation: Any = "bilinear") -> None:
        super().__init__()
        self.size = pixel_size(self.label, size)
        self.bicubic = is_bicubic(self.label, interpolation)
        self.interpolation = "bicubic" if self.bicubic else "bilinear"

    def entries(self) -> list[Entry]:
        return [Entry(Kind.WHOLE)]


class CenterView(Transform):
    """The largest central box of the view's aspect ratio, or a share of it, resized.

    ``CenterView(224, share=0.875)`` stands for torchvision's Resize(256) followed by CenterCrop(224), in one
    resampling; the box is rounded to whole pixels of the image.

    Args:
        size: height and width of the view, or one number for both.
        share: of the side of the largest box, in (0, 1].
        interpolation: "bilinear" or "bicubic".

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, size: Size, share: float = 1.0, interpolation: Any = "bilinear") -> None:
        super().__init__()
        self.size = pixel_size(self.label, size)
        self.share = checks.check_positive_number(self.label, "share", share)
        if self.share > 1:
            raise ValueError(f"{self.label}: share must be in (0, 1], got {share}")
        self.bicubic = is_bicubic(self.label, interpolation)
        self.interpolation = "bicubic" if self.bicubic else "bilinear"

    def entries(self) -> list[Entry]:
        return [Entry(Kind.CENTER, numbers=(self.share,))]


class RandomCrop(Transform):
    """A crop of fixed size at a random place, not resized; of a smaller image the whole side is taken and enlarged.

    Args:
        size: height and width of the crop, or one number for both.

    Raises:
        ValueError: if ``size`` is below 1.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = pixel_size(self.label, size)

    def entries(self) -> list[Entry]:
        return [Entry(Kind.CROP)]


class _Turn(Transform):
    kind: Kind

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = probability(self.label, "p", p)

    def entries(self) -> list[Entry]:
        return [Entry(self.kind, self.p)]


class RandomHorizontalFlip(_Turn):
    """Left and right exchanged.

    Args:
        p: how often.

    Raises:
        ValueError: if ``p`` is not in [0, 1].
    """

    kind = Kind.HORIZONTAL_FLIP


class RandomVerticalFlip(_Turn):
    """Top and bottom exchanged.

    Args:
        p: how often.

    Raises:
        ValueError: if ``p`` is not in [0, 1].
    """

    kind = Kind.VERTICAL_FLIP


class RandomQuarterTurn(_Turn):
    """A square view turned by 90, 180 or 270 degrees, each as often: no pixel is interpolated.

    Args:
        p: how often.

    Raises:
        ValueError: if ``p`` is not in [0, 1].
    """

    kind = Kind.QUARTER_TURN
