"""Tables of a report, as HTML and as Markdown, from the results that a command writes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from fastssl.evaluate.lines import LINES
from fastssl.report.drawing import plain

_NOTES = {
    "pixels": "the images themselves; larger ones averaged down to at most 32 x 32",
    "untrained": "the same network before training",
    "untrained_calibrated": "the same random weights, BatchNorm statistics from the images: the fair line to beat",
    "trained": "the encoder that this report is about",
    "supervised": "the same network trained with the labels: the upper line",
}
_METRICS = {
    "knn": "k-NN %",
    "linear": "linear probe %",
    "finetune": "fine-tuned %",
    "nmi": "k-means NMI",
    "ari": "k-means ARI",
    "matched": "k-means matched %",
}
_FEW_LABELS = re.compile(r"semi_([\d.]+)(_linear)?$")


def _head(name: str) -> str:
    """What a measure is called over its column; with % at its end where the number is shown in per cent."""
    if match := _FEW_LABELS.match(name):
        return f"{match[1]} % of labels, {'linear probe' if match[2] else 'fine-tuned'} %"
    return _METRICS.get(name, name)


class Table(NamedTuple):
    """A table.

    Attributes:
        heads: of the columns; the first is that of the lines' names.
        rows: texts, as many as heads each.
        notes: what each line is.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[tuple[str, str]] = ()

    def markdown(self) -> str:
        """As Markdown, numbers to the right."""
        ruler = ["---", *("---:" for _ in self.heads[1:])]
        lines = [[_cell(text) for text in row] for row in (self.heads, ruler, *self.rows)]
        notes = "".join(f"- {name}: {words}\n" for name, words in self.notes)
        return "\n".join(f"| {' | '.join(row)} |" for row in lines) + "\n" + (f"\n{notes}" if notes else "")

    def html(self) -> str:
        """As HTML; the largest number of each column is bold."""
        best = [_best([row[column] for row in self.rows]) for column in range(1, len(self.heads))]
        heads = "".join(f"<th>{escape(head)}</th>" for head in self.heads)
        body = ""
        for row in self.rows:
            numbers = "".join(
                f'<td class="number">{f"<b>{escape(text)}</b>" if text and text == top else escape(text)}</td>'
                for text, top in zip(row[1:], best, strict=True)
            )
            body += f"<tr><td>{escape(row[0])}</td>{numbers}</tr>\n"
        notes = "".join(f"<dt>{escape(name)}</dt><dd>{escape(words)}</dd>" for name, words in self.notes)
        table = f"<div><table><thead><tr>{heads}</tr></thead><tbody>\n{body}</tbody></table></div>\n"
        return table + (f'<dl class="notes">{notes}</dl>\n' if notes else "")


def _cell(text: str) -> str:
    return plain(text).replace("\\", "\\\\").replace("|", "\\|")


def _best(texts: Sequence[str]) -> str:
    numbers = [(float(text), text) for text in texts if _is_number(text)]
    return max(numbers)[1] if len(numbers) > 1 else ""


def _is_number(text: str) -> bool:
    try:
        return float(text) == float(text)
    except ValueError:
        return False


def accuracy_table(accuracy: Mapping[str, Mapping[str, Any]]) -> Table:
    """Of `fastssl fit`: k-NN and linear accuracy of each line, which are in [0, 1]."""
    return _table({(line, ""): values for line, values in accuracy.items()})


def lines_table(lines: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    """Of `fastssl eval`: all measures of each line, on the representation h and, where there is one, on z."""
    return _table({(line, space): values for line, spaces in lines.items() for space, values in spaces.items()})


def _table(lines: Mapping[tuple[str, str], Mapping[str, Any]]) -> Table:
    flat = {key: _flatten(values) for key, values in lines.items()}
    found = list(dict.fromkeys(name for values in flat.values() for name in values))
    names = [name for name in _METRICS if name in found] + [name for name in found if name not in _METRICS]
    calibrated = any(line == "untrained_calibrated" for line, _ in flat)
    several = len({space for _, space in flat}) > 1
    rows, notes = [], {}
    for (line, space), values in flat.items():
        title = LINES.get(line, line)
        if line in _NOTES:
            notes[title] = _NOTES[line]
            if line == "untrained" and calibrated:  # what tells it from the other one
                notes[title] += ", BatchNorm statistics still 0 and 1"
        where = f", {space}" if several and space else ""
        rows.append([title + where, *(_text(name, values.get(name)) for name in names)])
    return Table(["representation", *(_head(name) for name in names)], rows, list(notes.items()))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flatten(value, f"{prefix}{name} ")
        else:
            found[prefix + name] = value
    return found


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if _head(name).endswith("%"):
        return f"{100 * value:.1f}"
    return f"{value:.3f}" if name in _METRICS else f"{value:.4g}"
