"""The numbers of a view, readable: what was drawn for each image, to inspect, change and give back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.augment.record import HEADER, STEP, Code, Geometry

_NUMBERS: dict[Code, tuple[str, ...]] = {  # of a step, in the order of the record
    Code.BRIGHTNESS: ("factor",),
    Code.CONTRAST: ("factor",),
    Code.SATURATION: ("factor",),
    Code.HUE: ("turns",),
    Code.GRAYSCALE: (),
    Code.SOLARIZE: ("threshold",),
    Code.BLUR: ("sigma", "kernel_size"),
    Code.ROTATE: ("degrees", "bilinear", "fill"),
    Code.CUTOUT: ("top", "left", "height", "width", "value"),
    Code.NOISE: ("sigma", "mean", "key0", "key1", "clip"),
    Code.SOBEL: (),
}
STEP_NAMES = tuple(code.name.lower() for code in _NUMBERS)


class Step(NamedTuple):
    """One step of one image: its name and its numbers."""

    name: str
    numbers: dict[str, float]


class ViewParameters:
    """What was drawn for one view of each of B images.

    The fields ``top``, ``left``, ``height``, ``width`` (the crop, in pixels of the image), ``horizontal_flip``,
    ``vertical_flip`` and ``quarter_turns`` are float32 [B] and share memory with ``records``: writing to them changes
    the view. ``parameters[3]`` and ``parameters[:8]`` share it too; printing one image's parameters says what happens
    to it.

    Args:
        records: float32 [B, 8 + 6 steps], see ``fastssl/ops/augment/record.py``.
    """

    def __init__(self, records: Tensor) -> None:
        self.records = records

    top = property(lambda self: self.records[:, Geometry.TOP])
    left = property(lambda self: self.records[:, Geometry.LEFT])
    height = property(lambda self: self.records[:, Geometry.HEIGHT])
    width = property(lambda self: self.records[:, Geometry.WIDTH])
    horizontal_flip = property(lambda self: self.records[:, Geometry.HORIZONTAL_FLIP])
    vertical_flip = property(lambda self: self.records[:, Geometry.VERTICAL_FLIP])
    quarter_turns = property(lambda self: self.records[:, Geometry.QUARTER_TURNS])

    @property
    def codes(self) -> Tensor:
        """Which step stands in each slot, int64 [B, steps]: numbers of :class:`fastssl.ops.augment.record.Code`."""
        return self.records[:, HEADER::STEP].long()

    def applied(self, name: str) -> Tensor:
        """Whether an image has the step, for instance "blur": bool [B].

        Raises:
            ValueError: if no step has that name.
        """
        return (self.codes == self._code(name)).any(1)

    def values(self, name: str, number: str) -> Tensor:
        """A number of a step, for instance of "blur" its "sigma": float32 [B], NaN for images without the step.

        Raises:
            ValueError: if no step has that name, or the step has no such number.
        """
        there = self.codes == self._code(name)
        numbers = self.records[:, HEADER + self._position(name, number) :: STEP]
        if not numbers.shape[1]:
            return self.records.new_full((len(self),), float("nan"))
        found, slot = there.max(1)
        return torch.where(found, numbers.gather(1, slot[:, None])[:, 0], float("nan"))

    def change(self, name: str, **numbers: float | Tensor) -> None:
        """Set numbers of a step, in place, in the images that have it: ``parameters.change("blur", sigma=1.0)``.

        Args:
            name: of the step.
            **numbers: a number for all images, or float32 [B].

        Raises:
            ValueError: if no step has that name, or the step has no such number.
        """
        there = self.codes == self._code(name)
        for number, value in numbers.items():
            column = self.records[:, HEADER + self._position(name, number) :: STEP]
            value = torch.as_tensor(value, dtype=torch.float32, device=column.device)
            column.copy_(torch.where(there, value[:, None] if value.ndim else value, column))

    def steps(self, image: int) -> list[Step]:
        """What happens to the colours and pixels of one image after the crop, in order.

        Raises:
            ValueError: if the record holds a code that no step has.
        """
        found = []
        for start in range(HEADER, self.records.shape[1], STEP):
            code, *numbers = self.records[image, start : start + STEP].tolist()
            if code != Code.NOTHING:
                step = Code(int(code))
                found.append(Step(step.name.lower(), dict(zip(_NUMBERS[step], numbers, strict=False))))
        return found

    def clone(self) -> ViewParameters:
        """A copy, to be changed."""
        return ViewParameters(self.records.clone())

    def to(self, device: torch.device | str) -> ViewParameters:
        """The same on a device."""
        return ViewParameters(self.records.to(device))

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[ViewParameters]:
        return (self[image] for image in range(len(self)))

    def __getitem__(self, images: int | slice | Tensor) -> ViewParameters:
        """Those of one image, or of some."""
        if isinstance(images, int):
            images = range(len(self))[images]
            images = slice(images, images + 1)
        return ViewParameters(self.records[images])

    def __repr__(self) -> str:
        if len(self) != 1:
            steps = (self.records.shape[1] - HEADER) // STEP
            return f"ViewParameters({len(self)} images, up to {steps} steps)"
        top, left, height, width, horizontal, vertical, turns, _ = (int(x) for x in self.records[0, :HEADER].tolist())
        parts = [f"crop {height} x {width} at ({top}, {left})"]
        parts += ["horizontal flip"] * bool(horizontal) + ["vertical flip"] * bool(vertical)
        parts += [f"turn by {90 * (turns & 3)} degrees"] * bool(turns & 3)
        for name, numbers in self.steps(0):
            parts.append(
                f"{name}({', '.join(f'{key} {value:.4g}' for key, value in numbers.items())})".removesuffix("()")
            )
        return f"ViewParameters({'; '.join(parts)})"

    @staticmethod
    def _code(name: str) -> int:
        if name not in STEP_NAMES:
            raise ValueError(f"ViewParameters: a step is one of {', '.join(STEP_NAMES)}, got {name!r}")
        return Code[name.upper()]

    @staticmethod
    def _position(name: str, number: str) -> int:
        """Of the number in its step's part of the record."""
        names = _NUMBERS[Code[name.upper()]]
        if number not in names:
            raise ValueError(f"ViewParameters: {name} has {', '.join(names) or 'no numbers'}, got {number!r}")
        return 1 + names.index(number)
