"""The JSON document of a run, and tables of it: on a terminal, and in Markdown for pages that show results.

Everything here takes rows as they stand in the document (``Row.to_json``), so that a run that has just ended and a
file that was committed long ago print the same. Published tables are generated and not typed::

    python -m fastssl.benchmarks.report RESULT.json
    python -m fastssl.benchmarks.report --update README.md docs/performance.md

The first prints Markdown. The second writes it into pages, each table between the command that makes it and an end,
both HTML comments: ``<!-- python -m fastssl.benchmarks.report RESULT.json --show time -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import fits
from .cases import TITLES, Family

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

SCHEMA = 2
DISTURBED = 0.1  # share of the machine that others may take before the report says that times are not to be quoted
PIPE_WIDTH = 120  # columns where nothing says how many there are: no line of a table needs more
NAME_WIDTH = 17  # of a provider in the table; longer names are broken at a hyphen

ALLOCATORS = {
    "default": "glibc's default allocator",
    "pooled": "allocator that keeps pages",
    "environment": "allocator set by the environment",
    "": "",
}
DOCUMENT_KEYS = ("family", "subject", "command", "environment", "limits", "work_model", "rows")
ROW_KEYS = (
    "sizes", "dtype", "device", "provider", "allocator", "status", "reason", "note", "times", "share_of_limit",
    "peak_extra_bytes", "bytes_needed",
)  # fmt: skip

Document = Mapping[str, Any]
Row = Mapping[str, Any]  # as Row.to_json of the runner gives it


# --- Documents ------------------------------------------------------------------------------------------------------


def document(
    family: Family,
    rows: Sequence[Row],
    limits: Mapping[str, Any],
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
        "subject": family.subject,
        "command": command,
        "options": dict(options),
        "environment": dict(environment),
        "limits": dict(limits),
        "work_model": family.work_model,
        "rate_unit": None if family.rate is None else family.rate.unit,
        "others_share_of_cpu": dict(disturbance),
        "rows": list(rows),
    }


def text(document: Document) -> str:
    """The document as JSON, a line per field and samples side by side."""
    lines = json.dumps(document, indent=1, default=str)
    return re.sub(r'\[\s+([^][{}"]*?)\s+\]', lambda numbers: f"[{' '.join(numbers[1].split())}]", lines) + "\n"


def load(path: Path) -> dict[str, Any]:
    """A document that ``fastssl bench --json`` wrote.

    Raises:
        ValueError: naming the file and what it lacks.
    """
    try:
        loaded = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} must be what `fastssl bench --json` writes, got no JSON: {error}") from error
    try:
        check(loaded)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return loaded


def check(document: Any) -> None:
    """Refuse what is no document of this version, such as a result measured before rows said their allocator.

    Raises:
        ValueError: saying what is missing.
    """
    again = "measure again with `fastssl bench --json`"
    if not isinstance(document, Mapping) or "rows" not in document:
        raise ValueError(f"a result must be an object with 'rows'; {again}")
    if document.get("schema") != SCHEMA:
        raise ValueError(f"a result must be of schema {SCHEMA}, got {document.get('schema')!r}; {again}")
    missing = [key for key in DOCUMENT_KEYS if key not in document]
    if missing:
        raise ValueError(f"a result must have {', '.join(map(repr, missing))}; {again}")
    for number, row in enumerate(document["rows"]):
        missing = [key for key in ROW_KEYS if key not in row]
        if missing:
            raise ValueError(f"row {number} must have {', '.join(map(repr, missing))}; {again}")


def machine(environment: Mapping[str, Any], device: str) -> str:
    """The processor of ``environment.record()`` that computes on a device, in words."""
    about = environment["machine"]
    if device == "cuda":
        return str(about["cuda"]["name"])
    isa = environment["extension"].get("isa")
    threads = environment["threads"]["torch"]
    return ", ".join(filter(None, (about["cpu"], f"{threads} thread{'s' if threads != 1 else ''}", isa)))


def versions(environment: Mapping[str, Any]) -> str:
    """What ``environment.record()`` says is run: fastssl with its commit, torch, triton."""
    known, commit = environment["versions"], environment["commit"]
    state = "" if commit is None else f" ({commit['commit'][:10]}{', changed' if commit['dirty'] else ''})"
    names = [name for name in ("torch", "triton") if known.get(name)]
    return ", ".join([f"fastssl {known['fastssl']}{state}", *(f"{name} {known[name]}" for name in names)])


def group(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by the title of their table: one per case and allocator, in the order of the rows."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(title(row), []).append(row)
    return groups


def title(row: Row) -> str:
    """Sizes, dtype, device and allocator of a row."""
    case = f"{sizes_text(row['sizes'])} {row['dtype']} {row['device']}"
    return f"{case}, {ALLOCATORS[row['allocator']]}" if row["allocator"] else case


def sizes_text(sizes: Mapping[str, float]) -> str:
    return " ".join(f"{name}={value:g}" for name, value in sizes.items())


# --- Numbers and their units ----------------------------------------------------------------------------------------

TIME_UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
BYTE_UNITS = (("GB", 1e9), ("MB", 1e6))  # memory is measured to about a megabyte


def _unit(smallest: float, units: Sequence[tuple[str, float]]) -> tuple[str, float]:
    """The unit for a column: the largest in which the smallest value is half of one at least."""
    return next((unit for unit in units if smallest >= 0.5 * unit[1]), units[-1])


def _digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}" if value >= 0.001 else f"{value:.1g}"


def time_text(seconds: float) -> str:
    """A time with its unit: "12.5 ms"."""
    unit, size = next((unit for unit in TIME_UNITS if seconds >= unit[1]), TIME_UNITS[-1])
    return f"{_digits(seconds / size)} {unit}"


def bytes_text(count: float) -> str:
    """A size with its unit: "25.7 MB"."""
    unit, size = next((unit for unit in BYTE_UNITS if count >= unit[1]), BYTE_UNITS[-1])
    return f"{_digits(count / size)} {unit}"


def _ratio_text(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 99.5 else f"{ratio:.1f}x" if ratio >= 9.95 else f"{ratio:.2f}x"


def _spread(times: Mapping[str, float]) -> float:
    """Half of the interquartile range over the median."""
    return (times["q75_s"] - times["q25_s"]) / 2 / times["median_s"]


# --- On a terminal --------------------------------------------------------------------------------------------------


def console() -> Console:
    """Where tables go: the terminal at its width; plain text, wide enough for every number, in a pipe or a file."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def rate_text(rate: float) -> str:
    """A rate in three digits: "11 500", "0.250"."""
    if rate < 99.95:
        return _digits(rate)
    digits = max(0, len(f"{rate:.0f}") - 3)
    return f"{round(rate, -digits):,.0f}".replace(",", " ")


def legend(subject: str) -> str:
    """What the columns of ``table`` mean."""
    return (
        f"time: median, ± half the interquartile range; * the best of its column; x: time over {subject}'s; "
        "limit: share of the time that the machine's limit allows; extra: peak memory beyond the inputs, backward pass "
        "included"
    )


def table(rows: Sequence[Row], subject: str, passes: Sequence[str], rate_unit: str | None = None) -> RenderableType:
    """One case under one allocator for ``Console.print``.

    Args:
        rows: of that case and allocator, one per provider, as ``Row.to_json`` gives them.
        subject: the provider that the others are compared with.
        passes: names from ``cases.TITLES``, in the order of the columns.
        rate_unit: of the rates that rows have beside times; None: they have none.

    Returns:
        A grid of the providers that have times, under it what there is to say in words: who is faster than the
        subject, who has no times and why, and notes.
    """
    return _CaseTable(rows, subject, passes, rate_unit)


@dataclass(frozen=True)
class _CaseTable:
    rows: Sequence[Row]
    subject: str
    passes: Sequence[str]
    rate_unit: str | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.text import Text

        yield Text(title(self.rows[0]), style="bold")
        timed = [row for row in self.rows if row["status"] == "ok"]
        passes = [which for which in self.passes if any(which in row["times"] for row in timed)]
        if passes:
            grid = _grid(timed, self.subject, passes, self.rate_unit)
            if console.measure(grid, options=options.update(max_width=1000)).maximum <= options.max_width:
                yield grid
            else:  # a number that is cut off is worse than a longer page
                for which in passes:
                    yield _grid(timed, self.subject, [which], self.rate_unit)
                    yield ""
        remarks = _remarks(self.rows, self.subject, self.passes)
        if remarks.row_count:
            yield ""
            yield remarks


def _grid(rows: Sequence[Row], subject: str, passes: Sequence[str], rate_unit: str | None) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    padding = (0, 1 if len(passes) < 3 else 0, 0, 0)  # three passes fit in 100 columns
    grid = Table(box=box.SIMPLE_HEAD, padding=padding, show_edge=False)
    grid.add_column("provider", vertical="bottom", no_wrap=True)
    columns = []
    for which in passes:
        measured = [row for row in rows if which in row["times"]]
        times, shares = _time_cells(measured, subject, which), _share_cells(measured, which)
        columns.append(times)
        unit = _unit(min(row["times"][which]["median_s"] for row in measured), TIME_UNITS)[0]
        heading = "\n".join([*textwrap.wrap(TITLES[which], 10), unit])
        grid.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
        grid.add_column("x", justify="right", vertical="bottom", no_wrap=True)
        if rate_unit is not None:
            columns.append(_rate_cells(measured, which))
            grid.add_column(rate_unit, justify="right", vertical="bottom", no_wrap=True)
        if which in _SHARED_WORK:
            columns.append(shares)
            grid.add_column("limit ", justify="right", vertical="bottom", no_wrap=True)
    memory = {row["provider"]: row["peak_extra_bytes"] for row in rows if row["peak_extra_bytes"] is not None}
    if memory:
        columns.append(_memory_cells(memory))
        unit = _unit(min(memory.values()), BYTE_UNITS)[0]
        grid.add_column(f"extra\n{unit}", justify="right", vertical="bottom", no_wrap=True)
    for row in rows:
        name = row["provider"]
        cells = [cell for column in columns for cell in column(name)]
        label = Text("\n".join(textwrap.wrap(name, NAME_WIDTH)))
        grid.add_row(label, *cells, style="bold" if name == subject else None)
    return grid


# Alone, the backward pass is another job for each provider: some have their gradient ready after the forward pass.
_SHARED_WORK = ("forward", "both", "step")

Cells = Callable[[str], list[Any]]  # a provider -> its cells in one group of columns


def _time_cells(rows: Sequence[Row], subject: str, which: str) -> Cells:
    """Time with spread, and relation to the subject, in one pass."""
    from rich.text import Text

    times = {row["provider"]: row["times"][which] for row in rows}
    medians = {name: time["median_s"] for name, time in times.items()}
    fastest = min(medians.values())
    size = _unit(fastest, TIME_UNITS)[1]

    def cells(name: str) -> list[Any]:
        if name not in times:
            return ["", ""]
        best = medians[name] == fastest
        spread = f"±{_spread(times[name]):.0%}"
        time = Text(f"{'*' if best else ''}{_digits(medians[name] / size)} {spread:>4}", "green" if best else "")
        relation = Text("")
        if subject in medians and name != subject:
            ratio = medians[name] / medians[subject]
            relation = Text(_ratio_text(ratio), "bold red" if ratio < 1 else "")
        return [time, relation]

    return cells


def _share_cells(rows: Sequence[Row], which: str) -> Cells:
    from rich.text import Text

    shares = {row["provider"]: row["share_of_limit"][which] for row in rows}
    return lambda name: [Text(f"{shares[name]:.0%} ", "dim") if name in shares else ""]


def _rate_cells(rows: Sequence[Row], which: str) -> Cells:
    rates = {row["provider"]: row["rate"][which] for row in rows}
    return lambda name: [rate_text(rates[name]) if name in rates else ""]


def _memory_cells(memory: Mapping[str, float]) -> Cells:
    from rich.text import Text

    least = min(memory.values())
    size = _unit(least, BYTE_UNITS)[1]

    def cells(name: str) -> list[Any]:
        if name not in memory:
            return [""]
        best = memory[name] == least
        return [Text(f"{'*' if best else ''}{_digits(memory[name] / size)}", "green" if best else "")]

    return cells


STYLES = {
    "PARTS": "",
    "FASTER": "bold red",
    "WRONG": "bold red",
    "FAILED": "red",
    "UNAVAILABLE": "yellow",
    "NOTE": "dim",
}


def _remarks(rows: Sequence[Row], subject: str, passes: Sequence[str]) -> Table:
    """What does not fit between numbers, in full."""
    from rich.table import Table
    from rich.text import Text

    lines: list[tuple[str, str, str]] = [
        ("PARTS", row["provider"], ", ".join(f"{part} {time_text(s)}" for part, s in row["parts_s"].items()))
        for row in rows
        if row.get("parts_s")
    ]
    for name, ratios in _faster(rows, subject, passes).items():
        lines.append(("FASTER", name, ", ".join(f"{TITLES[which]} {ratio:.2f}x" for which, ratio in ratios.items())))
    lines += [(row["status"].upper(), row["provider"], row["reason"]) for row in rows if row["status"] != "ok"]
    lines += [("NOTE", row["provider"], row["note"]) for row in rows if row["note"]]
    remarks = Table.grid(padding=(0, 2, 0, 0))
    for column in ("what", "provider", "text"):
        remarks.add_column(column, no_wrap=column == "what", overflow="fold")
    for what, name, text in lines:
        remarks.add_row(what, Text(name), Text(text), style=STYLES[what])
    return remarks


# A provider may have its gradient ready after the forward pass: a backward pass alone does not make it faster.
COMPARED = ("forward", "both", "step")


def _faster(rows: Sequence[Row], subject: str, passes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Per provider that beats the subject in some pass: by which factor in which.

    The subject's other forms, such as its other backends, beat nobody.
    """
    own: Mapping[str, Any] = next(
        (row["times"] for row in rows if row["provider"] == subject and row["status"] == "ok"), {}
    )
    faster: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["provider"].startswith(f"{subject}-"):
            continue
        for which in passes:
            if which in COMPARED and which in own and which in row["times"]:
                ratio = own[which]["median_s"] / row["times"][which]["median_s"]
                if ratio > 1:
                    faster.setdefault(row["provider"], {})[which] = ratio
    return faster


def beaten(rows: Sequence[Row], subject: str, passes: Sequence[str]) -> list[str]:
    """A sentence for each case, allocator and pass in which a baseline is faster than the subject."""
    sentences = []
    for heading, here in group(rows).items():
        faster = _faster(here, subject, passes).items()
        for which in passes:
            ratio, name = max(((ratios.get(which, 0.0), name) for name, ratios in faster), default=(0.0, ""))
            if ratio > 1:
                sentences.append(f"{heading}, {TITLES[which]}: {name} is {ratio:.2f}x as fast as {subject}")
    return sentences


def limits_text(limits: Mapping[str, Any]) -> str:
    """The machine's ceilings (``Limits.to_json``) in a few lines."""
    lines = [
        f"matrix product {dtype}: " + ", ".join(f"{rate / 1e9:.0f} GFLOP/s {how}" for how, rate in by.items())
        for dtype, by in limits["product_flops_per_s"].items()
    ]
    moves = limits.get("move_bytes_per_s", {"": limits["copy_bytes_per_s"]})  # documents of before have one copy
    rates = ", ".join(f"{rate / 1e9:.1f} GB/s {how}".rstrip() for how, rate in moves.items())
    return "\n".join([*lines, f"copy: {rates}, read and written bytes counted"])


def disturbance_text(disturbance: Mapping[str, float | None]) -> str:
    """A warning when other processes used the machine while times were taken, else an empty string."""
    known = [share for share in disturbance.values() if share is not None]
    if not known or max(known) < DISTURBED:
        return ""
    return f"Other processes used up to {max(known):.0%} of the CPU meanwhile: these times are not to be quoted."


# --- Markdown -------------------------------------------------------------------------------------------------------

SHOWN = ("source", "time", "rate", "parts", "share", "memory", "missing")
PROGRAM = "python -m fastssl.benchmarks.report"
PLACE = re.compile(rf"(<!-- {re.escape(PROGRAM)} (?P<arguments>[^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown(
    document: Document,
    *,
    passes: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    providers: Sequence[str] | None = None,
    allocators: Sequence[str] | None = None,
    shown: Sequence[str] = SHOWN,
) -> str:
    """Tables of a result: a line per dtype and size, a column per provider.

    Args:
        document: of one run.
        passes: names from ``cases.TITLES``; None for those that were measured.
        dtypes: the lines; None for all.
        providers: the columns; None for all with a result.
        allocators: of the tables; None for all that were measured.
        shown: of "source" (versions, machine, command), "time" (median, and how many times the subject's), "rate"
            (where the family counts something), "parts" (where a pass has such), "share" (of the time that the
            machine's limit allows), "memory" (peak, beyond the inputs) and "missing" (who has no result, and why).

    Raises:
        ValueError: naming what the document lacks.
    """
    check(document)
    subject, about, rows = document["subject"], document["environment"], document["rows"]
    fullest = max(group(rows).values(), key=len, default=[])  # not every provider makes sense in every dtype
    known = list(dict.fromkeys(row["provider"] for row in (*fullest, *rows)))
    measured = [which for which in TITLES if any(which in row["times"] for row in rows)]
    for what, wanted, have in (
        ("passes", passes, measured),
        ("dtypes", dtypes, list(dict.fromkeys(row["dtype"] for row in rows))),
        ("providers", providers, known),
        ("allocators", allocators, list(dict.fromkeys(row["allocator"] for row in rows))),
        ("shown", shown, SHOWN),
    ):
        unknown = [name for name in wanted or () if name not in have]
        if unknown:
            raise ValueError(f"{what} must be among {', '.join(have)}, got {', '.join(unknown)}")
    rows = [row for row in rows if row["provider"] in (providers or known)]
    rows = [row for row in rows if dtypes is None or row["dtype"] in dtypes]
    rows = [row for row in rows if allocators is None or row["allocator"] in allocators]
    order = providers or known

    parts = []
    if "source" in shown:
        devices = dict.fromkeys(row["device"] for row in rows)
        where = "; ".join([versions(about), *(machine(about, device) for device in devices)])
        parts.append(f"{where}. `{document['command']}`")
    for device, allocator in dict.fromkeys((row["device"], row["allocator"]) for row in rows):
        here = [row for row in rows if (row["device"], row["allocator"]) == (device, allocator)]
        setting = f", {ALLOCATORS[allocator]}" if allocator else ""
        for which in passes or measured:
            if "time" in shown:
                parts.append(_markdown_table(f"{TITLES[which]}{setting}", here, order, _times_line(subject, which)))
            unit = document.get("rate_unit")
            if "rate" in shown and unit:
                parts.append(_markdown_table(f"{TITLES[which]}, {unit}{setting}", here, order, _rates_line(which)))
            if "share" in shown:
                heading = f"{TITLES[which]}, share of the limit{setting}"
                parts.append(_markdown_table(heading, here, order, _shares_line(which)))
        parts_of_one: Mapping[str, float] = next((row["parts_s"] for row in here if row.get("parts_s")), {})
        if "parts" in shown and parts_of_one:
            parts.append(_markdown_table(f"{' + '.join(parts_of_one)}{setting}", here, order, _parts_line))
        if "memory" in shown and any(row["peak_extra_bytes"] is not None for row in here):
            parts.append(_markdown_table(f"extra memory{setting}", here, order, _memory_line))
    if "missing" in shown:
        reasons = dict.fromkeys((row["provider"], row["reason"]) for row in rows if row["status"] != "ok")
        parts += [f"{name}: {reason}" for name, reason in reasons]
    return "\n\n".join(parts) + "\n"


def _has_result(row: Row, provider: str) -> bool:
    return row["provider"] == provider and row["status"] == "ok"


Line = Callable[[Mapping[str, Row], Sequence[str]], list[str]]  # rows of one case by provider, columns -> cells


def _markdown_table(heading: str, rows: Sequence[Row], order: Sequence[str], line: Line) -> str:
    order = [name for name in order if any(_has_result(row, name) for row in rows)]
    lines = [f"| {heading} | {' | '.join(order)} |", f"|---|{'---|' * len(order)}"]
    first, *others = rows[0]["sizes"]
    varying = [first, *(name for name in others if len({row["sizes"].get(name) for row in rows}) > 1)]
    for case in group(rows).values():
        sizes = "".join(f", {name} = {case[0]['sizes'][name]:g}" for name in varying)
        ok = {row["provider"]: row for row in case if row["status"] == "ok"}
        lines.append(f"| {case[0]['dtype']}{sizes} | {' | '.join(line(ok, order))} |")
    return "\n".join(lines)


def _bold(text: str, best: bool) -> str:
    return f"**{text}**" if best else text


def _times_line(subject: str, which: str) -> Line:
    def line(case: Mapping[str, Row], order: Sequence[str]) -> list[str]:
        medians = {name: row["times"][which]["median_s"] for name, row in case.items() if which in row["times"]}
        cells = []
        for name in order:
            if name not in medians:
                cells.append("-")
                continue
            text = _bold(time_text(medians[name]), medians[name] == min(medians.values()))
            if subject in medians and name != subject:
                text += f" ({_ratio_text(medians[name] / medians[subject])})"
            cells.append(text)
        return cells

    return line


def _rates_line(which: str) -> Line:
    def line(case: Mapping[str, Row], order: Sequence[str]) -> list[str]:
        rates = {name: row["rate"][which] for name, row in case.items() if which in row["rate"]}
        return [_bold(rate_text(rates[n]), rates[n] == max(rates.values())) if n in rates else "-" for n in order]

    return line


def _shares_line(which: str) -> Line:
    def line(case: Mapping[str, Row], order: Sequence[str]) -> list[str]:
        shares = {name: row["share_of_limit"].get(which) for name, row in case.items()}
        return ["-" if shares.get(name) is None else f"{shares[name]:.0%}" for name in order]

    return line


def _parts_line(case: Mapping[str, Row], order: Sequence[str]) -> list[str]:
    parts = {name: row["parts_s"].values() for name, row in case.items() if row.get("parts_s")}
    return [" + ".join(time_text(seconds) for seconds in parts[name]) if name in parts else "-" for name in order]


def _memory_line(case: Mapping[str, Row], order: Sequence[str]) -> list[str]:
    peaks = {name: row["peak_extra_bytes"] for name, row in case.items() if row["peak_extra_bytes"] is not None}
    return [
        _bold(bytes_text(peaks[name]), peaks[name] == min(peaks.values())) if name in peaks else "-" for name in order
    ]


def update(page: str) -> str:
    """A page with its tables made anew by the commands that stand before them.

    Raises:
        ValueError: naming what a command lacks.
    """

    def fresh(place: re.Match[str]) -> str:
        arguments = _parser().parse_args(shlex.split(place["arguments"]))
        return f"{place[1]}\n{_render(arguments)}\n{place[3]}"

    return PLACE.sub(fresh, page)


def merged(documents: Sequence[Document]) -> list[Document]:
    """Runs of the same family, versions and machine as one document, so that their rows share tables."""
    groups: dict[tuple[str, ...], list[Document]] = {}
    for one in documents:
        about = one["environment"]
        machines = dict.fromkeys(machine(about, row["device"]) for row in one["rows"])
        groups.setdefault((one["family"], one["subject"], versions(about), *machines), []).append(one)
    return [
        {
            **group[0],
            "command": "`, `".join(one["command"] for one in group),  # it is shown between backquotes
            "rows": [row for one in group for row in one["rows"]],
        }
        for group in groups.values()
    ]


def _render(arguments: argparse.Namespace) -> str:
    trained = [fits.load(path) for path in arguments.results]
    if all(trained):
        documents = [document for document in trained if document]
        return fits.markdown(documents[0]) if len(documents) == 1 else fits.comparison(documents)
    return "\n".join(
        markdown(
            document,
            passes=arguments.passes,
            dtypes=arguments.dtype,
            providers=arguments.providers,
            allocators=arguments.allocator,
            shown=arguments.show,
        )
        for document in merged([load(path) for path in arguments.results])
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Results of `fastssl bench --json` as Markdown tables.")
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULT.json")
    parser.add_argument("--pass", dest="passes", nargs="+", choices=TITLES, help="default: all that were measured")
    parser.add_argument("--dtype", nargs="+", metavar="DTYPE", help="lines; default: all")
    parser.add_argument("--providers", nargs="+", metavar="NAME", help="columns; default: all with a result")
    parser.add_argument("--allocator", nargs="+", metavar="NAME", help="default: all that were measured")
    parser.add_argument("--show", nargs="+", choices=SHOWN, default=SHOWN)
    parser.add_argument(
        "--update", nargs="+", type=Path, metavar="PAGE.md",
        help="instead of printing: write the tables of these pages anew; paths of results in them count from here",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print results as Markdown, or write them into pages. Returns 0, or 2 for what cannot be read."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if bool(arguments.results) == bool(arguments.update):
        parser.error("either results to print or --update with pages is needed")
    try:
        if arguments.results:
            print(_render(arguments), end="")
        for path in arguments.update or ():
            path.write_text(update(path.read_text()))
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
