"""The log of a run: metrics.csv, and the parts that earlier pieces of a resumed run left, as one."""

from __future__ import annotations

import csv
import math
import re
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


class Log(NamedTuple):
    """What a run has logged.

    Attributes:
        series: by name, each with at least one value.
        resumed: steps where the run was continued.
    """

    series: dict[str, Series]
    resumed: list[int]


def read_log(folder: Path) -> Log:
    """Read metrics-1.csv, metrics-2.csv, ... and metrics.csv of a run's folder; empty where there are none.

    A part that was killed after its last checkpoint has steps that the next part makes again: the next part's count.
    Cells that are empty or no numbers, and a line that was cut off, are left out.
    """
    values: dict[str, dict[int, float]] = {}
    resumed: list[int] = []
    for number, path in enumerate(_parts(folder)):
        rows = _read(path)
        if not rows:
            continue
        first = min(step for step, _ in rows)
        if number and values:
            resumed.append(first)
            for series in values.values():
                for step in [step for step in series if step >= first]:
                    del series[step]
        for step, row in rows:
            for name, value in row.items():
                values.setdefault(name, {})[step] = value
    found = {}
    for name, series in values.items():
        steps = sorted(series)
        if steps:
            found[name] = Series(np.array(steps), np.array([series[step] for step in steps]))
    return Log(found, resumed)


def _parts(folder: Path) -> list[Path]:
    numbered = [(int(match[1]), path) for path in folder.glob("metrics-*.csv") if (match := _NUMBER.match(path.name))]
    last = folder / "metrics.csv"
    return [path for _, path in sorted(numbered)] + ([last] if last.is_file() else [])


_NUMBER = re.compile(r"metrics-(\d+)\.csv$")


def _read(path: Path) -> list[tuple[int, dict[str, float]]]:
    """Step and numbers of each line that has a step."""
    rows = []
    with open(path, newline="", errors="replace") as file:
        for row in csv.DictReader(file):
            step = _number(row.pop("step", None))
            row.pop("epoch", None)
            if step is None or not math.isfinite(step):
                continue
            numbers = {name: _number(cell) for name, cell in row.items() if name is not None}
            rows.append((int(step), {name: number for name, number in numbers.items() if number is not None}))
    return rows


def _number(cell: object) -> float | None:
    try:
        return float(cell)  # type: ignore[arg-type]  # a list where a line is too long
    except (TypeError, ValueError):
        return None
