"""How the numbers of a view are laid out: what the operators, all their backends and their users agree on.

A view is a geometry (crop, flips, quarter turns: one resampling) and a list of steps in any order. Its numbers for one
image are a record of float32, in which whole numbers are exact up to 2^24:

    top, left, height, width, horizontal flip, vertical flip, quarter turns, 0, then (code, a, b, c, d, e) per step

A program is the distribution from which records are drawn: entries of ``ENTRY`` numbers (kind, probability, group,
a0 ... a8). An entry is applied where the first number that entry ``group`` draws is below the probability: entries that
share a group are applied together. Entry 0 is the crop. `csrc/augment/record.h` holds the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

HEADER = 8  # numbers before the steps
STEP = 6  # numbers per step
ENTRY = 12  # numbers per entry of a program
BLOCKS = 8  # of Philox that each entry may draw from: 32 words
TRIES = 10  # draws of a crop's size before it falls back to the centre, as in torchvision


class Geometry(IntEnum):
    """Positions in the header of a record."""

    TOP = 0
    LEFT = 1
    HEIGHT = 2
    WIDTH = 3
    HORIZONTAL_FLIP = 4
    VERTICAL_FLIP = 5
    QUARTER_TURNS = 6


class Code(IntEnum):
    """What a step does."""

    NOTHING = 0
    BRIGHTNESS = 1
    CONTRAST = 2
    SATURATION = 3
    HUE = 4
    GRAYSCALE = 5
    SOLARIZE = 6
    BLUR = 7
    ROTATE = 8
    CUTOUT = 9
    NOISE = 10
    SOBEL = 11


# A step that needs more of the view than the pixel it is at, so that what comes before must be finished.
NEIGHBOURHOODS = (Code.BLUR, Code.ROTATE, Code.SOBEL)
BARRIERS = (Code.CONTRAST, *NEIGHBOURHOODS)
# Steps that mix the channels: for images of one or three.
COLOR_CODES = (Code.CONTRAST, Code.SATURATION, Code.HUE, Code.GRAYSCALE)


class Kind(IntEnum):
    """What an entry of a program draws."""

    RESIZED_CROP = 0
    WHOLE = 1
    CENTER = 2
    CROP = 3
    HORIZONTAL_FLIP = 10
    VERTICAL_FLIP = 11
    QUARTER_TURN = 12
    JITTER = 20
    GRAYSCALE = 21
    SOLARIZE = 22
    BLUR = 23
    ROTATE = 24
    CUTOUT = 25
    NOISE = 26
    SOBEL = 27


CROPS = (Kind.RESIZED_CROP, Kind.WHOLE, Kind.CENTER, Kind.CROP)
_SLOTS = {Kind.JITTER: 4}


def slots_of(kind: int) -> int:
    """How many steps an entry of this kind takes up in a record."""
    return _SLOTS.get(Kind(kind), 0 if kind < Kind.JITTER else 1)


def entries(program: Sequence[float]) -> list[tuple[Kind, float, int, tuple[float, ...]]]:
    """Kind, probability, group and the nine numbers of each entry of a program."""
    rows = [program[start : start + ENTRY] for start in range(0, len(program), ENTRY)]
    return [(Kind(int(row[0])), float(row[1]), int(row[2]), tuple(row[3:])) for row in rows]


def steps_of(program: Sequence[float]) -> int:
    """How many steps the records of a program have."""
    return sum(slots_of(int(kind)) for kind in program[::ENTRY])


def record_length(steps: int) -> int:
    """How many numbers a record with so many steps has."""
    return HEADER + STEP * steps
