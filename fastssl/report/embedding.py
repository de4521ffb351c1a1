"""A map of features in two dimensions, a point per image in the colour of its class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from fastssl.report.drawing import plain

_NAMED = 24  # classes up to which there is a legend
_UNKNOWN = "#9a9a9a"


def embedding_figure(points: np.ndarray, label: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    """Draw a map.

    Args:
        points: float [N, 2].
        label: int [N], -1 where it is unknown.
        class_names: by label.
        title: over it, with the method's name.

    Raises:
        ValueError: if the shapes do not fit, or no point is finite.
    """
    points, label = np.asarray(points), np.asarray(label)
    if points.shape != (len(label), 2):
        raise ValueError(f"points must be [{len(label)}, 2] for as many labels, got {points.shape}")
    finite = np.isfinite(points).all(1)
    if not finite.any():
        raise ValueError("no point of the map is finite")
    points, label = points[finite], label[finite]
    figure = Figure(figsize=(7.6, 5.4), layout="constrained")
    axes = figure.subplots()
    classes = np.unique(label[label >= 0])
    colors = _colors(len(classes))
    size = float(np.clip(8000 / len(points), 6, 40))
    if (unknown := label < 0).any():
        axes.scatter(
            points[unknown, 0], points[unknown, 1], s=size, c=_UNKNOWN, linewidths=0, alpha=0.7, label="no label"
        )
    for number, name in enumerate(classes):
        words = plain(class_names[name]) if name < len(class_names) else str(name)
        x, y = points[label == name].T
        axes.scatter(x, y, s=size, color=colors[number], linewidths=0, alpha=0.8, label=words[:28])
    axes.set_title(title, size=10, loc="left")
    axes.set_xlabel("first dimension (no unit)", size=8)
    axes.set_ylabel("second dimension (no unit)", size=8)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if 0 < len(classes) <= _NAMED:
        legend = axes.legend(
            loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7.5, frameon=False, markerscale=(40 / size) ** 0.5,
            handletextpad=0.2,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)  # a name may hold dollars
        for handle in legend.legend_handles:
            handle.set_alpha(1)  # type: ignore[union-attr]  # one per entry
    elif len(classes):
        axes.text(1, 1.01, f"{len(classes)} classes", size=8, ha="right", transform=axes.transAxes, color="#444444")
    return figure


def _colors(count: int) -> np.ndarray:
    """RGBA [count, 4], as different as so many can be."""
    if count <= 10:
        return np.asarray(colormaps["tab10"](np.arange(count)))
    if count <= _NAMED:
        return np.concatenate([colormaps["tab20"](np.arange(20)), colormaps["tab20b"]([0, 4, 8, 12])])[:count]
    return np.asarray(colormaps["turbo"](np.linspace(0.02, 0.98, count)))
