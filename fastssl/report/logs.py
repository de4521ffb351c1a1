"""The log of a run as numbers over steps."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Series(NamedTuple):
    """One logged quantity.

    Attributes:
        step: int64 [N], ascending.
        value: float64 [N].
    """

    step: np.ndarray
    value: np.ndarray


def read_log(folder: Path) -> dict[str, Series]:
    """What metrics.csv in a run's folder holds, by name; empty where there is none.

    Cells that are empty or no numbers are left out, and so is a line that was cut off. Of several values of a step the
    last one counts.
    """
    path = folder / "metrics.csv"
    values: dict[str, dict[int, float]] = {}
    if path.is_file():
        with open(path, newline="", errors="replace") as file:
            for row in csv.DictReader(file):
                step = _number(row.pop("step", None))
                row.pop("epoch", None)
                if step is None or not math.isfinite(step):
                    continue
                for name, cell in row.items():
                    if name is not None and (number := _number(cell)) is not None:
                        values.setdefault(name, {})[int(step)] = number
    found = {}
    for name, series in values.items():
        steps = sorted(series)
        found[name] = Series(np.array(steps), np.array([series[step] for step in steps]))
    return found


def _number(cell: object) -> float | None:
    try:
        return float(cell)  # type: ignore[arg-type]  # a list where a line is too long
    except (TypeError, ValueError):
        return None
