"""torchvision's pipelines as fused views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .base import Transform
from .compose import Compose
from .geometry import RandomCrop, RandomHorizontalFlip, RandomResizedCrop, RandomVerticalFlip, Resize
from .plan import order_problems
from .steps import (
    ColorJitter,
    Cutout,
    GaussianBlur,
    GaussianNoise,
    Normalize,
    RandomApply,
    RandomGrayscale,
    RandomRotation,
    RandomSolarize,
)


def from_torchvision(pipeline: Any) -> Compose:
    """The view that a torchvision pipeline makes of an image, for whole batches.

    The same distribution of the same operations; two things differ. torchvision rounds to 8 bits after each step as
    long as images are uint8 or Pillow's (Pillow also has its own resize and jitter), here nothing is rounded. And the
    random numbers are others.

    Taken are, of ``torchvision.transforms`` and its ``v2``: Compose, RandomResizedCrop, Resize to (height, width),
    RandomCrop without padding, RandomHorizontalFlip, RandomVerticalFlip, ColorJitter, RandomGrayscale, Grayscale to
    three channels, GaussianBlur, RandomSolarize, RandomRotation, GaussianNoise, RandomErasing, RandomApply, Normalize,
    and the conversions ToImage, ToTensor, PILToTensor, ToDtype, ConvertImageDtype, ToPureTensor and Identity.

    Args:
        pipeline: a Compose, a single transform, or a list of them, for uint8 or Pillow images.

    Raises:
        ValueError: naming every step and option that has no counterpart.

    Example:
        >>> view = from_torchvision(v2.Compose([v2.RandomResizedCrop(224), v2.ToImage(),
        ...                                     v2.ToDtype(torch.float32, scale=True)]))
        >>> transform = MultiViewTransform([view, view])
    """
    reader = _Reader()
    reader.read(pipeline)
    steps = reader.finished()
    problems = reader.problems + order_problems(steps)
    if not steps and not problems:
        problems = ["there is no step that changes an image"]
    if problems:
        raise ValueError(f"from_torchvision: no counterpart, since {'; '.join(problems)}")
    return Compose(steps)


class _Reader:
    """Goes through a pipeline, step by step; remembers in which range values are, and what has no counterpart."""

    def __init__(self) -> None:
        self.steps: list[Transform] = []
        self.problems: list[str] = []
        self.largest = 255.0  # value of white, where a step's numbers are in the image's own range
        self.normalize: Normalize | None = None

    def finished(self) -> list[Transform]:
        return self.steps + [self.normalize] * (self.normalize is not None)  # type: ignore[list-item]

    def read(self, step: Any) -> None:
        if isinstance(step, (list, tuple, nn.Sequential)):
            for part in step:
                self.read(part)
            return
        name = type(step).__name__
        if name == "Compose" and _is_torchvisions(step):
            self.read(list(step.transforms))
            return
        reader = getattr(self, f"_{name}", None) if _is_torchvisions(step) else None
        if reader is None:
            self.problems.append(f"{name} is not among what is fused")
            return
        before = len(self.problems)
        try:
            made = reader(step)
        except (ValueError, TypeError) as error:  # an argument that only torchvision takes
            self.problems.append(str(error))
            return
        if made is None or len(self.problems) > before:
            return
        if self.normalize is not None and not isinstance(made, (Cutout, RandomHorizontalFlip, RandomVerticalFlip)):
            self.problems.append(f"{name} must stand before Normalize")
        self.steps.append(made)

    def _refuse(self, step: Any, why: str) -> None:
        self.problems.append(f"{type(step).__name__} {why}")

    def _resized(self, step: Any, make: Callable[..., Transform], size: Sequence[int], **options: Any) -> Transform:
        if step.antialias is False:
            self._refuse(step, "has antialias=False")
        mode = _interpolation(step)
        if mode not in ("bilinear", "bicubic"):
            self._refuse(step, f"has interpolation {mode}")
            return make(size, **options)
        return make(size, interpolation=mode, **options)

    # Where a view comes from

    def _RandomResizedCrop(self, step: Any) -> Transform:
        return self._resized(step, RandomResizedCrop, step.size, scale=tuple(step.scale), ratio=tuple(step.ratio))

    def _Resize(self, step: Any) -> Transform | None:
        size = step.size if isinstance(step.size, Sequence) else [step.size]
        if len(size) != 2:
            self._refuse(step, "has one number as its size, which keeps the aspect ratio (see CenterView)")
            return None
        return self._resized(step, Resize, size)

    def _CenterCrop(self, step: Any) -> None:
        self._refuse(step, "has no resize in it; CenterView(224, share=0.875) is Resize(256) and CenterCrop(224)")

    def _RandomCrop(self, step: Any) -> Transform:
        if step.padding is not None:
            self._refuse(step, f"has padding={step.padding}")
        if step.pad_if_needed:
            self._refuse(step, "has pad_if_needed=True")
        return RandomCrop(step.size)

    def _RandomHorizontalFlip(self, step: Any) -> Transform:
        return RandomHorizontalFlip(step.p)

    def _RandomVerticalFlip(self, step: Any) -> Transform:
        return RandomVerticalFlip(step.p)

    # Colours and pixels

    def _ColorJitter(self, step: Any) -> Transform:
        ranges: Any = (step.brightness, step.contrast, step.saturation, step.hue)
        brightness, contrast, saturation, hue = (None if pair is None else tuple(pair) for pair in ranges)
        return ColorJitter(brightness, contrast, saturation, hue)

    def _RandomGrayscale(self, step: Any) -> Transform:
        return RandomGrayscale(step.p)

    def _Grayscale(self, step: Any) -> Transform | None:
        if step.num_output_channels != 3:
            self._refuse(step, f"has num_output_channels={step.num_output_channels}")
            return None
        return RandomGrayscale(1.0)

    def _GaussianBlur(self, step: Any) -> Transform:
        return GaussianBlur(tuple(step.kernel_size), tuple(step.sigma))

    def _RandomSolarize(self, step: Any) -> Transform:
        return RandomSolarize(step.threshold / self.largest, step.p)

    def _RandomRotation(self, step: Any) -> Transform | None:
        fill = _one_number(step.fill)
        if step.expand:
            self._refuse(step, "has expand=True")
        if step.center is not None:
            self._refuse(step, f"has center={step.center}")
        mode = _interpolation(step)
        if mode not in ("nearest", "bilinear"):
            self._refuse(step, f"has interpolation {mode}")
            return None
        if fill is None:
            self._refuse(step, f"has fill={step.fill}, which is not one number")
            return None
        return RandomRotation(tuple(step.degrees), mode, fill / self.largest)

    def _GaussianNoise(self, step: Any) -> Transform:
        if self.largest == 255:
            # torchvision takes uint8 too, but rounds and wraps the noise.
            self._refuse(step, "stands before the conversion to float")
        return GaussianNoise(step.mean, step.sigma, step.clip)

    def _RandomErasing(self, step: Any) -> Transform | None:
        value = _one_number(step.value)
        scale, ratio = tuple(step.scale), tuple(step.ratio)
        if value is None:
            self._refuse(step, "has a value that is not one number")
            return None
        if self.normalize is None:
            return Cutout(step.p, scale, ratio, value / self.largest)
        if value == 0:
            return Cutout(step.p, scale, ratio, "mean")
        filled = {value * std + mean for mean, std in zip(self.normalize.mean, self.normalize.std, strict=True)}
        if len(filled) > 1:
            self._refuse(step, f"has value={value:g} after Normalize, which is another colour in each channel")
            return None
        return Cutout(step.p, scale, ratio, filled.pop())

    def _RandomApply(self, step: Any) -> Transform | None:
        inner = _Reader()
        inner.largest, inner.normalize = self.largest, self.normalize
        inner.read(list(step.transforms))
        self.problems += inner.problems
        if inner.largest != self.largest or inner.normalize is not self.normalize:
            self._refuse(step, "holds a conversion or Normalize")
        if inner.problems or not inner.steps:
            return None
        return RandomApply(inner.steps, step.p)

    # From uint8 to normalised numbers

    def _Normalize(self, step: Any) -> None:
        if self.largest == 255:
            self._refuse(step, "stands before the conversion to float")
        if self.normalize is not None:
            self._refuse(step, "stands twice")
        self.normalize = Normalize(step.mean, step.std)

    def _ToDtype(self, step: Any) -> None:
        dtype = step.dtype
        if isinstance(dtype, dict):
            named = {getattr(key, "__name__", key): value for key, value in dtype.items()}
            dtype = named.get("Image", named.get("Tensor", named.get("others")))
        self._convert(step, dtype, step.scale)

    def _ConvertImageDtype(self, step: Any) -> None:
        self._convert(step, step.dtype, True)

    def _ToTensor(self, step: Any) -> None:
        self._convert(step, torch.float32, True)

    def _convert(self, step: Any, dtype: torch.dtype | None, scale: bool) -> None:
        if dtype is None or (dtype == torch.uint8 and self.largest == 255):
            return
        if dtype != torch.float32 or (self.largest == 255 and not scale):
            self._refuse(step, f"has dtype={dtype} and scale={scale}: a view is scaled, its dtype is given in the call")
        self.largest = 1.0

    def _nothing(self, step: Any) -> None:
        pass

    _ToImage = _PILToTensor = _ToPureTensor = _Identity = _nothing


def _is_torchvisions(step: Any) -> bool:
    return type(step).__module__.startswith("torchvision.transforms")


def _interpolation(step: Any) -> str:
    """Its name, from torchvision's enumeration, a string, or Pillow's number."""
    mode = getattr(step.interpolation, "value", step.interpolation)
    return {0: "nearest", 2: "bilinear", 3: "bicubic"}.get(mode, str(mode))


def _one_number(value: Any) -> float | None:
    """The number that a fill or value is for all channels, None where it is something else."""
    if value is None or isinstance(value, (str, dict)):
        return None
    numbers = set(value) if isinstance(value, Sequence) else {value}
    return float(numbers.pop()) if len(numbers) == 1 else None
