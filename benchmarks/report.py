"""The table on the terminal and the JSON document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .cases import PASSES, Family
from .limits import Limits
from .runner import Row

SCHEMA = 1
DISTURBED = 0.1  # share of the machine that others may take before the report says that times are not to be quoted


def document(
    family: Family,
    rows: Sequence[Row],
    limits: Limits,
    *,
    command: str,
    options: Mapping[str, Any],
    environment: Mapping[str, Any],
    disturbance: Mapping[str, float | None],
) -> dict[str, Any]:
    """Everything that was measured, with what is needed to measure it again."""
    return {
        "schema": SCHEMA,
        "family": family.name,
        "command": command,
        "options": dict(options),
        "environment": dict(environment),
        "limits": limits.to_json(),
        "work_model": family.work_model,
        "others_share_of_cpu": dict(disturbance),
        "rows": [row.to_json() for row in rows],
    }


def table(rows: Sequence[Row], subject: str, passes: Sequence[str]) -> str:
    """One case as aligned text: times with their quartiles, relation to the subject, share of the limit, memory."""
    subject_row = next((row for row in rows if row.provider == subject and row.status == "ok"), None)
    header = ["provider"]
    for which in passes:
        header += [f"{PASSES[which]} ms", "quartiles", f"/ {subject}", "limit"]
    header += ["extra MB", "note"]
    lines = [header]
    for row in rows:
        cells = [row.provider]
        for which in passes:
            cells += _time_cells(row, subject_row, which)
        cells.append("" if row.memory is None else f"{row.memory / 1e6:.1f}")
        cells.append(_note(row, subject_row))
        lines.append(cells)
    return _aligned(lines)


def _note(row: Row, subject: Row | None) -> str:
    if row.status != "ok":
        return f"{row.status.upper()}: {row.reason}"
    faster = subject is not None and any(
        timing.median < subject.timings[which].median for which, timing in row.timings.items()
    )
    return ", ".join(filter(None, (row.note, f"FASTER than {subject.provider}" if subject and faster else "")))


def _time_cells(row: Row, subject: Row | None, which: str) -> list[str]:
    if which not in row.timings:
        return ["-", "", "", ""]
    timing = row.timings[which]
    median = timing.median
    relation = "" if subject is None else f"{median / subject.timings[which].median:.2f}x"
    spread = f"{_milliseconds(timing.quantile(0.25))}-{_milliseconds(timing.quantile(0.75))}"
    return [_milliseconds(median), spread, relation, f"{row.share[which]:.0%}"]


def _milliseconds(seconds: float) -> str:
    """Three significant digits."""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns of equal width: words to the left, numbers to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    last = len(widths) - 1
    out = []
    for line in lines:
        cells = [
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        out.append("  ".join(cells).rstrip())
    return "\n".join([out[0], "-" * max(map(len, out)), *out[1:]])


def beaten(rows: Sequence[Row], subject: str, passes: Sequence[str]) -> list[str]:
    """A sentence for each case and pass in which a baseline is faster than the subject."""
    sentences = []
    for row in rows:
        if row.provider != subject or row.status != "ok":
            continue
        rivals = [r for r in rows if r.case == row.case and r.status == "ok" and not r.provider.startswith(subject)]
        for which in passes:
            best = min(rivals, key=lambda rival: rival.timings[which].median, default=None)
            if best is not None and best.timings[which].median < row.timings[which].median:
                ratio = row.timings[which].median / best.timings[which].median
                sentences.append(
                    f"{row.case.title}, {PASSES[which]}: {best.provider} is {ratio:.2f}x as fast as {subject}"
                )
    return sentences


def limits_text(limits: Limits) -> str:
    """The machine's ceilings in a few lines."""
    lines = [
        f"matrix product {dtype}: " + ", ".join(f"{rate / 1e9:.0f} GFLOP/s {how}" for how, rate in by.items())
        for dtype, by in limits.products.items()
    ]
    return "\n".join([*lines, f"copy: {limits.copy / 1e9:.1f} GB/s, read and write"])


def disturbance_text(disturbance: Mapping[str, float | None]) -> str:
    """A warning when other processes used the machine while times were taken, else an empty string."""
    known = [share for share in disturbance.values() if share is not None]
    if not known or max(known) < DISTURBED:
        return ""
    return f"Other processes used up to {max(known):.0%} of the CPU meanwhile: these times are not to be quoted."
