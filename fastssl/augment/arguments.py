"""Checks that the transforms share; each names the transform and the argument."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..ops import checks

Range = tuple[float, float]


def pixel_size(transform: str, size: Any) -> tuple[int, int]:
    """Height and width from one number or a pair, each at least 1."""
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) == 1:
        sides *= 2
    if len(sides) != 2:
        raise ValueError(f"{transform}: size must be one number or (height, width), got {size}")
    height, width = (checks.check_count(transform, "size", side, minimum=1) for side in sides)
    return height, width


def probability(transform: str, name: str, value: Any) -> float:
    """A number from 0 to 1."""
    return checks.check_range(transform, name, value, maximum=1)


def bounds(
    transform: str, name: str, value: Any, *, least: float, most: float = math.inf, above: bool = False
) -> Range:
    """A pair low <= high within [least, most], or (least, most] where ``above``; finite."""
    pair = tuple(value) if isinstance(value, Sequence) else None
    if pair is None or len(pair) != 2:
        raise ValueError(f"{transform}: {name} must be a pair (low, high), got {value!r}")
    low, high = (float(x) for x in pair)
    inside = (least < low if above else least <= low) and low <= high <= most and high < math.inf
    if not inside or low == -math.inf:
        opening = "(" if above or least == -math.inf else "["
        closing = ")" if most == math.inf else "]"
        must = f"increasing and within {opening}{least:g}, {most:g}{closing}"
        raise ValueError(f"{transform}: {name} must be {must}, got {value}")
    return low, high


def around(transform: str, name: str, value: Any, *, centre: float, least: float, most: float = math.inf) -> Range:
    """The range of a colour change: (low, high) itself, or for a strength s from centre - s to centre + s, and from
    ``least`` where that is lower."""
    if value is None:
        return centre, centre
    if isinstance(value, Sequence):
        return bounds(transform, name, value, least=least, most=most)
    strength = checks.check_range(transform, name, value, maximum=most)
    return max(least, centre - strength), centre + strength


def is_bicubic(transform: str, interpolation: Any) -> bool:
    """From "bilinear" or "bicubic", or torchvision's InterpolationMode of that value."""
    value = getattr(interpolation, "value", interpolation)
    checks.check_choice(transform, "interpolation", value, ("bilinear", "bicubic"))
    return value == "bicubic"


def is_bilinear(transform: str, interpolation: Any) -> bool:
    """From "nearest" or "bilinear", or torchvision's InterpolationMode of that value."""
    value = getattr(interpolation, "value", interpolation)
    checks.check_choice(transform, "interpolation", value, ("nearest", "bilinear"))
    return value == "bilinear"
