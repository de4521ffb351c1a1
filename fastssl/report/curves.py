"""What was logged during training, as small panels over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fastssl.report.logs import Series

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_ACROSS = 3
_SMOOTHED = 300  # points of a series beyond which its running mean is drawn over it


class _Panel(NamedTuple):
    title: str
    unit: str
    names: Sequence[str]
    factor: float = 1.0


# In this order; whatever else was logged follows, a panel each.
_PANELS = (
    _Panel("loss", "loss", ("loss",)),
    _Panel("accuracy on the test images", "%", ("knn", "probe"), 100),
    _Panel("loss of the online probe", "nats", ("probe_loss",)),
    _Panel("bound of mutual information", "nats", ("mi_bound",)),
    _Panel("entropy of the teacher", "nats", ("teacher_entropy", "assignment_entropy")),
    _Panel("spread of features (0: collapsed)", "standard deviation", ("z_std", "feature_std")),
    _Panel("effective rank of h", "dimensions", ("h_rank",)),
    _Panel("learning rate", "", ("lr",)),
    _Panel("weight decay", "", ("weight_decay",)),
    _Panel("momentum of the teacher", "", ("momentum", "teacher_momentum")),
    _Panel("throughput", "images/s", ("images/s",)),
)
_WORDS = {
    "knn": "k-NN",
    "probe": "online linear probe",
    "teacher_entropy": "of images",
    "assignment_entropy": "of their mean",
    "z_std": "z",
    "feature_std": "h",
}


def curves_figure(log: Mapping[str, Series]) -> Figure:
    """Panels of all quantities that were logged.

    Raises:
        ValueError: if nothing was.
    """
    panels = _panels(log)
    if not panels:
        raise ValueError("the log holds no values")
    across = min(_ACROSS, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(3.4 * across, 2.4 * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw(axes, panel, log)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    return figure


def _panels(log: Mapping[str, Series]) -> list[_Panel]:
    found, shown = [], set()
    for panel in _PANELS:
        # Lightning's LearningRateMonitor names the optimizer, and the group: lr-AdamW/pg1.
        names = [n for n in log if n in panel.names or (panel.names == ("lr",) and n.startswith("lr-"))]
        shown |= set(names)
        if names:
            found.append(panel._replace(names=sorted(names, key=lambda n: (*panel.names, n).index(n))))
    return found + [_Panel(name, "", (name,)) for name in log if name not in shown]


def _draw(axes: Axes, panel: _Panel, log: Mapping[str, Series]) -> None:
    for number, name in enumerate(panel.names):
        series, color = log[name], _COLORS[number % len(_COLORS)]
        value = series.value * panel.factor
        finite = np.isfinite(value)
        label = _WORDS.get(name, name)
        if not finite.all():
            label += f", {len(finite) - int(finite.sum())} not finite"
        value = np.where(finite, value, np.nan)  # a gap in the line
        many = len(value) > _SMOOTHED
        mark = "o" if len(value) < 30 else None
        axes.plot(
            series.step, value, color=color, linewidth=0.6 if many else 1.4, alpha=0.35 if many else 1, marker=mark,
            markersize=3, label=None if many else label,
        )  # fmt: skip
        if many:
            smooth = running_mean(Series(series.step, value))
            axes.plot(smooth.step, smooth.value, color=color, linewidth=1.6, label=label)
    axes.set_title(panel.title, size=9, loc="left")
    axes.set_ylabel(panel.unit, size=8)
    axes.set_xlabel("step", size=8)
    axes.tick_params(labelsize=7.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    labels = axes.get_legend_handles_labels()[1]
    if len(labels) > 1 or any("not finite" in label for label in labels):
        axes.legend(fontsize=7, frameon=False)


def running_mean(series: Series) -> Series:
    """Means over a window of a fiftieth of the series, where it fits; numbers that are not finite are left out."""
    width = max(2, len(series.value) // 50)
    finite = np.isfinite(series.value)
    sums = np.convolve(np.where(finite, series.value, 0.0), np.ones(width), "valid")
    counts = np.convolve(finite, np.ones(width), "valid")
    middle = series.step[(width - 1) // 2 :][: len(sums)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return Series(middle, sums / counts)
