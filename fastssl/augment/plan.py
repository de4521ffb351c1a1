"""From a list of transforms to what the operators take: the program of one view, and what a launch has to know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..ops.augment.record import BARRIERS, COLOR_CODES, CROPS, ENTRY, Code, Kind

if TYPE_CHECKING:
    from .base import Transform

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation per channel

_TURNS = (Kind.HORIZONTAL_FLIP, Kind.VERTICAL_FLIP, Kind.QUARTER_TURN)
_CODES = {
    Kind.GRAYSCALE: Code.GRAYSCALE,
    Kind.SOLARIZE: Code.SOLARIZE,
    Kind.BLUR: Code.BLUR,
    Kind.ROTATE: Code.ROTATE,
    Kind.CUTOUT: Code.CUTOUT,
    Kind.NOISE: Code.NOISE,
    Kind.SOBEL: Code.SOBEL,
}
_NEUTRAL = {Code.BRIGHTNESS: 1.0, Code.CONTRAST: 1.0, Code.SATURATION: 1.0, Code.HUE: 0.0}


class Entry(NamedTuple):
    """What a transform contributes to a program.

    Attributes:
        kind: what is drawn.
        p: how often it is applied.
        numbers: the distribution, at most nine.
        group: the entry, counted within the transform, whose draw decides whether this one is applied. None: its own.
    """

    kind: Kind
    p: float = 1.0
    numbers: tuple[float, ...] = ()
    group: int | None = None

    def codes(self) -> list[Code]:
        """The steps that it can put into a record."""
        if not self.p or self.kind < Kind.JITTER:
            return []
        if self.kind != Kind.JITTER:
            return [_CODES[self.kind]]
        ranges = zip(_NEUTRAL.items(), self.numbers[::2], self.numbers[1::2], strict=True)
        return [code for (code, neutral), low, high in ranges if not low == high == neutral]


class ViewPlan(NamedTuple):
    """One view, as the operators take it.

    Attributes:
        size: height and width, None: those of the images.
        bicubic: whether it is resized so.
        program: see ``fastssl/ops/augment/record.py``.
        passes: most contrast and neighbourhood steps that an image can have.
        statistics: of the normalisation; None: there is none.
        mixes_channels: the transforms that need images of one or three channels.
        turns: whether it needs a square view.
        kernel_size: of the widest blur, 1 without.
    """

    size: tuple[int, int] | None
    bicubic: bool
    program: tuple[float, ...]
    passes: int
    statistics: Statistics | None
    mixes_channels: tuple[str, ...]
    turns: bool
    kernel_size: int

    def check_size(self, name: str, size: tuple[int, int]) -> None:
        """Refuse a size for which a step is not defined."""
        if self.turns and size[0] != size[1]:
            raise ValueError(f"{name}: RandomQuarterTurn needs a square view, got {size[0]} x {size[1]}")
        if self.kernel_size >= 2 * min(size):
            raise ValueError(
                f"{name}: GaussianBlur's kernel_size must be below twice the shorter side of the view, "
                f"got {self.kernel_size} for {size[0]} x {size[1]}"
            )


def plan_view(name: str, transforms: Sequence[Transform]) -> ViewPlan:
    """Lay the transforms of one view out.

    Args:
        name: of what is built, for messages.
        transforms: in the order in which they are applied.

    Raises:
        ValueError: if one fused view cannot keep that order, naming all places.
    """
    problems = order_problems(transforms)
    if problems:
        raise ValueError(f"{name}: {'; '.join(problems)}")
    crop = next((t for t in transforms if any(e.kind in CROPS for e in t.entries())), None)
    others = [t for t in transforms if t is not crop]
    entries = [*(crop.entries() if crop is not None else [Entry(Kind.WHOLE)])]
    for transform in others:
        first = len(entries)
        for number, entry in enumerate(transform.entries()):
            entries.append(entry._replace(group=first + (number if entry.group is None else entry.group)))
    program: list[float] = []
    for number, entry in enumerate(entries):
        row = [float(entry.kind), entry.p, float(number if entry.group is None else entry.group), *entry.numbers]
        program += row + [0.0] * (ENTRY - len(row))
    plan = ViewPlan(
        size=None if crop is None else crop.size,
        bicubic=crop is not None and crop.bicubic,
        program=tuple(program),
        passes=sum(code in BARRIERS for entry in entries for code in entry.codes()),
        statistics=next((t.statistics for t in transforms if t.statistics is not None), None),
        mixes_channels=tuple(t.label for t in others if any(c in COLOR_CODES for e in t.entries() for c in e.codes())),
        turns=any(entry.kind == Kind.QUARTER_TURN and entry.p > 0 for entry in entries),
        kernel_size=max([1, *(int(entry.numbers[2]) for entry in entries if Code.BLUR in entry.codes())]),
    )
    if plan.size is not None:
        plan.check_size(name, plan.size)
    return plan


def order_problems(transforms: Iterable[Transform]) -> list[str]:
    """What one fused view cannot do in the given order: crop once and first, each flip once, normalise last.

    Flips and quarter turns are made right after the crop, wherever they stand: with colours, blur, Sobel and noise they
    commute, and crops and boxes are as often here as there. Only a rotation to one side turns into one to the other.
    """
    problems: list[str] = []
    before: list[str] = []  # steps
    crop = normalized = one_sided = None
    turned: set[Kind] = set()
    for transform in transforms:
        label = transform.label
        entries = transform.entries()
        if normalized is not None and not all(e.kind in _TURNS for e in entries):
            problems.append(f"{label} must stand before {normalized}")
        if transform.statistics is not None:
            if normalized is not None:
                problems.append(f"{label} must stand once, it follows {normalized}")
            normalized = label
        for entry in entries:
            if entry.kind in CROPS:
                if crop is not None:
                    problems.append(f"{label} must be the only crop or resize, it follows {crop}")
                if before:
                    problems.append(f"{label} must stand before {', '.join(before)}: colours change after the crop")
                crop = label
            elif entry.kind in _TURNS:
                if entry.kind in turned:
                    problems.append(f"{label} must stand once")
                if one_sided is not None and entry.kind != Kind.QUARTER_TURN:
                    problems.append(f"{label} must stand before {one_sided}, whose degrees are not symmetric about 0")
                turned.add(entry.kind)
            else:
                before.append(label)
                if Code.ROTATE in entry.codes() and entry.numbers[0] != -entry.numbers[1]:
                    one_sided = label
    return list(dict.fromkeys(problems))
