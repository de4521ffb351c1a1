"""Time and extra memory against the size that varies, log-log, from results of ``fastssl bench --json``.

One column of panels per dtype, allocator and whatever else distinguishes rows; one line per provider, in the same
colour everywhere. A provider that ran out of memory, or was refused because it would, ends in a cross: that is the
memory cliff. Where an estimate of what it needs is known, a dashed line leads to it in the memory panel.
"""

from __future__ import annotations

import textwrap
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import FAMILIES, report
from .cases import TITLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart. Relatives share one and differ in their dashes.
VERMILION, BLUE, SKY, GREEN, PURPLE, ORANGE, GREY, BLACK = (
    "#D55E00", "#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#E69F00", "#555555", "#000000",
)  # fmt: skip
SOLID, DASHED, DOTTED = "-", (0, (5, 2)), (0, (1, 1.5))
STYLES: dict[str, tuple[str, Any]] = {
    "fastssl": (VERMILION, SOLID),
    "fastssl-inplace": (VERMILION, (0, (8, 1.5))),
    "fastssl-cpp": (VERMILION, DASHED),
    "fastssl-triton": (VERMILION, DOTTED),
    "fastssl-cuda": (VERMILION, (0, (3, 1, 1, 1))),
    "fastssl-chunked": (VERMILION, (0, (5, 2, 1, 2))),
    "fastssl-apart": (VERMILION, (0, (1, 3))),
    "fastssl-compiled": (VERMILION, (0, (3, 3))),
    "eager": (GREY, SOLID),
    "eager-lean": (GREY, DASHED),
    "eager-autocast": (GREY, DOTTED),
    "eager-collapsed": (GREY, (0, (5, 2, 1, 2))),
    "eager-log": (GREY, (0, (8, 1.5))),
    "compiled": (BLUE, SOLID),
    "compiled-autocast": (BLUE, DOTTED),
    "compiled-symmetric": (BLUE, DASHED),
    "compiled-lean": (SKY, DASHED),
    "compiled-collapsed": (SKY, SOLID),
    "compiled-step": (SKY, DOTTED),
    "compiled-log": (SKY, (0, (5, 2, 1, 2))),
    "chunked": (GREEN, SOLID),
    "chunked-compiled": (GREEN, DASHED),
    "checkpointed": (GREEN, DOTTED),
    "lightly": (PURPLE, SOLID),
    "lightly-workers": (PURPLE, DASHED),
    "lightly-compiled": (PURPLE, DOTTED),
    "pytorch-metric-learning": (ORANGE, SOLID),
    "open_clip": (PURPLE, (0, (5, 2, 1, 2))),
    "albumentations": (ORANGE, SOLID),
    "albumentations-workers": (ORANGE, DASHED),
    "albumentations-linear": (ORANGE, DOTTED),
    "albumentations-linear-workers": (ORANGE, (0, (5, 2, 1, 2))),
    "torchvision-pil": (BLACK, SOLID),
    "torchvision-pil-workers": (BLACK, DASHED),
    "torchvision-v2": (BLACK, DOTTED),
    "torchvision-v2-workers": (BLACK, (0, (5, 2, 1, 2))),
    "kornia": (GREEN, SOLID),
    "batched": (GREY, DASHED),
}
OUT_OF_MEMORY = "out of memory"  # the reason of a row that failed so

# Inches. Labels stand to the right of each panel, time above memory; columns beyond ACROSS start a new band below.
ACROSS = 2
LEFT, PANEL_WIDTH, LABEL_WIDTH = 0.85, 2.8, 1.55
HEADING, PANEL_HEIGHT, BETWEEN = 0.65, 2.6, 0.35
BAND_HEIGHT, BETWEEN_BANDS = 2 * PANEL_HEIGHT + BETWEEN, 0.75
LABEL_SIZE = 7.5  # points


def draw(documents: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the plot of one or more results of the same family as PNG.

    Raises:
        ValueError: where a document is incomplete or there is nothing to draw.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure(documents).savefig(path, format="png", dpi=200)


def figure(documents: Sequence[Mapping[str, Any]]) -> Figure:
    """The plot as a matplotlib figure; see ``draw``."""
    from matplotlib.figure import Figure

    for document in documents:
        report.check(document)
    families = {document["family"] for document in documents}
    if len(families) != 1:
        raise ValueError(f"results must be of one family, got {', '.join(sorted(families)) or 'none'}")
    columns = _columns(documents)
    if not columns:
        raise ValueError("results must have a provider with times, got none")

    across = min(len(columns), ACROSS)
    bands = -(-len(columns) // across)
    width = LEFT + across * (PANEL_WIDTH + LABEL_WIDTH)
    caption = [line for text in _caption(documents) for line in textwrap.wrap(text, int(width * 20))]
    bottom = 0.55 + 0.13 * len(caption)
    height = HEADING + bands * BAND_HEIGHT + (bands - 1) * BETWEEN_BANDS + bottom
    drawing = Figure(figsize=(width, height))
    drawing.text(0.1 / width, 1 - 0.12 / height, _heading(documents), va="top", size=11, weight="bold")
    drawing.text(0.1 / width, 0.06 / height, "\n".join(caption), va="bottom", size=6.5, color="#444444")
    time_panels, memory_panels = [], []
    for number, column in enumerate(columns):
        band, place = divmod(number, across)
        left = LEFT + place * (PANEL_WIDTH + LABEL_WIDTH)
        low = bottom + (bands - 1 - band) * (BAND_HEIGHT + BETWEEN_BANDS)
        size = (PANEL_WIDTH / width, PANEL_HEIGHT / height)
        upper = drawing.add_axes((left / width, (low + PANEL_HEIGHT + BETWEEN) / height, *size))
        lower = drawing.add_axes((left / width, low / height, *size))
        _time_panel(upper, column)
        _memory_panel(lower, column)
        upper.set_title(column.title, size=9, loc="left")
        if place == 0:
            upper.set_ylabel(f"{TITLES[column.which]}, time", size=8.5)
            lower.set_ylabel("extra memory", size=8.5)
        time_panels.append(upper)
        memory_panels.append(lower)
    _finish(time_panels, report.TIME_UNITS)
    _finish(memory_panels, report.BYTE_UNITS)
    return drawing


# --- What is drawn --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """The rows of one pair of panels.

    Attributes:
        title: what distinguishes them from the other columns.
        subject: the provider that is drawn thick.
        which: the pass whose time is drawn.
        axis: the size that varies along x.
        rows: all of them.
        capacity: bytes of memory of the machine; None where unknown.
    """

    title: str
    subject: str
    which: str
    axis: str
    rows: Sequence[Mapping[str, Any]]
    capacity: float | None

    def lines(self) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
        """Rows by provider, from small to large; the subject last, on top of the others."""
        names = list(dict.fromkeys(row["provider"] for row in self.rows))
        for name in sorted(names, key=lambda name: name == self.subject):
            yield name, sorted((r for r in self.rows if r["provider"] == name), key=self.x)

    def x(self, row: Mapping[str, Any]) -> float:
        return float(row["sizes"][self.axis])


def _columns(documents: Sequence[Mapping[str, Any]]) -> list[Column]:
    """One per dtype, allocator, device and sizes other than the axis, in the order of the rows."""
    rows = [(document, row) for document in documents for row in document["rows"]]
    measured = [which for which in reversed(TITLES) if any(which in row["times"] for _, row in rows)]
    if not measured:
        return []
    axis = _axis([row for _, row in rows])
    parts: dict[tuple[str, ...], tuple[Mapping[str, Any], list[Mapping[str, Any]]]] = {}
    for document, row in rows:
        fixed = " ".join(f"{name}={value:g}" for name, value in row["sizes"].items() if name != axis)
        where = report.machine(document["environment"], row["device"])
        key: tuple[str, ...] = (row["dtype"], report.ALLOCATORS[row["allocator"]], where, fixed)
        parts.setdefault(key, (document, []))[1].append(row)
    varying = [number for number in range(4) if len({key[number] for key in parts}) > 1]
    columns = []
    for key, (document, here) in parts.items():
        about = document["environment"]["machine"]
        memory = (about["cuda"] or {}).get("memory_bytes") if here[0]["device"] == "cuda" else about["memory_bytes"]
        # The dtype and the allocator change every number: they are always said.
        words = [part for number, part in enumerate(key) if part and (number < 2 or number in varying)]
        columns.append(Column(", ".join(words), document["subject"], measured[0], axis, here, memory))
    return columns


def _axis(rows: Sequence[Mapping[str, Any]]) -> str:
    """The first size that varies; a family names the one that grows first."""
    names = list(rows[0]["sizes"])
    return next((name for name in names if len({row["sizes"][name] for row in rows}) > 1), names[0])


def _heading(documents: Sequence[Mapping[str, Any]]) -> str:
    family = documents[0]["family"]
    return FAMILIES.get(family, family)


def _caption(documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was run where, a paragraph per document, and how to read the plot."""
    lines = []
    axis = _axis([row for document in documents for row in document["rows"]])
    for document in documents:
        fixed = [
            f"{name} = {', '.join(f'{value:g}' for value in dict.fromkeys(r['sizes'][name] for r in document['rows']))}"
            for name in document["rows"][0]["sizes"]
            if name != axis
        ]
        about = document["environment"]
        machines = [report.machine(about, device) for device in dict.fromkeys(r["device"] for r in document["rows"])]
        lines.append("; ".join([*fixed, *machines, report.versions(about)]) + ".")
        lines.append(document["command"])
    lines.append(
        "Medians with quartiles; memory is the peak beyond the inputs, backward pass included. A cross ends the line "
        "of what ran out of memory or needs more than there is; dashed: its estimated need."
    )
    return list(dict.fromkeys(lines))


def _refused(row: Mapping[str, Any]) -> bool:
    """Whether memory kept the row from being measured, given that the provider ran at a smaller size."""
    return (row["status"] == "unavailable" and row["bytes_needed"] > 0) or (
        row["status"] == "failed" and OUT_OF_MEMORY in row["reason"].lower()
    )


def style(provider: str) -> tuple[str, Any]:
    """Colour and dashes of a provider; for one that is not listed they follow from its name."""
    if provider in STYLES:
        return STYLES[provider]
    number = zlib.crc32(provider.encode())
    return (SKY, ORANGE, PURPLE, GREEN)[number % 4], (SOLID, DASHED, DOTTED)[number // 4 % 3]


# --- Panels ---------------------------------------------------------------------------------------------------------


def _time_panel(axes: Axes, column: Column) -> None:
    for name, rows in column.lines():
        timed = [row for row in rows if column.which in row["times"]]
        if not timed:
            continue
        times = [row["times"][column.which] for row in timed]
        xs, medians = [column.x(row) for row in timed], [time["median_s"] for time in times]
        _line(axes, column, name, xs, medians)
        spread = [
            [time["median_s"] - time["q25_s"] for time in times],
            [time["q75_s"] - time["median_s"] for time in times],
        ]
        axes.errorbar(xs, medians, spread, fmt="none", ecolor=style(name)[0], elinewidth=0.9, capsize=1.8, capthick=0.9)
        if any(_refused(row) and column.x(row) > xs[-1] for row in rows):
            _cross(axes, name, xs[-1], medians[-1])
    _frame(axes, column)


def _memory_panel(axes: Axes, column: Column) -> None:
    refused_any = False
    for name, rows in column.lines():
        known = [row for row in rows if row["peak_extra_bytes"]]
        if not known:
            continue
        xs, peaks = [column.x(row) for row in known], [float(row["peak_extra_bytes"]) for row in known]
        _line(axes, column, name, xs, peaks)
        refused = [row for row in rows if _refused(row) and column.x(row) > xs[-1]]
        refused_any |= bool(refused)
        estimated = [row for row in refused if row["bytes_needed"]]
        if refused and not estimated:
            _cross(axes, name, xs[-1], peaks[-1])
        if estimated:
            to_x, to_y = [column.x(row) for row in estimated], [float(row["bytes_needed"]) for row in estimated]
            axes.plot(
                xs[-1:] + to_x, peaks[-1:] + to_y, color=style(name)[0], linestyle=(0, (2, 2)), linewidth=0.9,
                label=name, gid="estimate",
            )  # fmt: skip
            for x, y in zip(to_x, to_y, strict=True):
                _cross(axes, name, x, y)
    if refused_any and column.capacity:
        axes.axhline(column.capacity, color="#999999", linewidth=0.8, zorder=0.5, gid="capacity")
        axes.text(
            0.02, column.capacity, f"memory of the machine: {report.bytes_text(column.capacity)}", size=6.5,
            color="#777777", va="bottom", transform=axes.get_yaxis_transform(),
        )  # fmt: skip
    if not axes.get_lines():
        axes.text(0.5, 0.5, "not measured", size=8.5, color="#777777", ha="center", transform=axes.transAxes)
    _frame(axes, column)
    axes.set_xlabel(column.axis, size=8.5)


def _line(axes: Axes, column: Column, name: str, xs: Sequence[float], ys: Sequence[float]) -> None:
    color, dashes = style(name)
    own = name == column.subject
    axes.plot(
        xs, ys, color=color, linestyle=dashes, linewidth=2.6 if own else 1.2, marker="o",
        markersize=4.5 if own else 2.6, label=name, gid="line", zorder=3 if own else 2,
    )  # fmt: skip


def _cross(axes: Axes, name: str, x: float, y: float) -> None:
    axes.plot(
        [x], [y], color=style(name)[0], marker="X", markersize=7, markeredgecolor="white", markeredgewidth=0.6,
        linestyle="none", label=name, gid="cliff", zorder=4,
    )  # fmt: skip


def _frame(axes: Axes, column: Column) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    xs = sorted({column.x(row) for row in column.rows})
    axes.set_xlim(xs[0] / 1.15, xs[-1] * 1.15)
    axes.set_xticks(xs, [f"{x:g}" for x in xs], size=7.5)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _finish(panels: Sequence[Axes], units: Sequence[tuple[str, float]]) -> None:
    """The same limits for panels that are compared, ticks at powers of ten in words (10 ms, 1 GB), and the labels."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    def words(value: float, _: int) -> str:
        unit, size = next((unit for unit in units if value >= unit[1] * 0.999), units[-1])
        return f"{value / size:g} {unit}"

    limits = [panel.get_ylim() for panel in panels if panel.get_lines()]
    for panel in panels:
        if limits:
            panel.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        panel.yaxis.set_major_locator(LogLocator(numticks=20))
        panel.yaxis.set_major_formatter(FuncFormatter(words))
        panel.tick_params(axis="y", labelsize=7.5)
        _label_ends(panel)


def _label_ends(axes: Axes) -> None:
    """Each line's name to the right of the panel at the height of its end, moved apart where names would overlap."""
    from math import log10

    import numpy as np

    low, high = (log10(limit) for limit in axes.get_ylim())
    step = LABEL_SIZE * 1.25 / 72 / PANEL_HEIGHT  # of the panel's height
    last = {line.get_label(): line for line in axes.get_lines() if line.get_gid() in ("line", "estimate")}
    ends = []
    for line in last.values():  # a line's estimate goes on where the line ended
        x, y = np.asarray(line.get_xydata())[-1]
        ends.append((x, (log10(y) - low) / (high - low), line))
    ends.sort(key=lambda end: end[1])
    heights = _apart([height for _, height, _ in ends], step)
    for (x, height, line), placed in zip(ends, heights, strict=True):
        color = line.get_color()
        axes.annotate(
            str(line.get_label()), xy=(x, 10 ** (low + height * (high - low))), xytext=(1.06, placed),
            textcoords="axes fraction", size=LABEL_SIZE, color=color, va="center", annotation_clip=False,
            weight="bold" if line.get_linewidth() > 2 else "normal",
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "alpha": 0.6, "shrinkA": 1, "shrinkB": 3},
        )  # fmt: skip


def _apart(heights: Sequence[float], step: float) -> list[float]:
    """Ascending heights, moved as a group where they are closer than a step, each group around its own middle."""
    groups: list[list[float]] = []  # of heights that stand shoulder to shoulder
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _top(groups[-2], step) + step > _bottom(groups[-1], step):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_bottom(group, step) + step * number for group in groups for number in range(len(group))]


def _bottom(group: Sequence[float], step: float) -> float:
    return sum(group) / len(group) - step * (len(group) - 1) / 2


def _top(group: Sequence[float], step: float) -> float:
    return sum(group) / len(group) + step * (len(group) - 1) / 2
