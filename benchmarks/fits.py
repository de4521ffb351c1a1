"""What `fastssl fit` reaches, from the results of its runs with several seeds:

    python -m fastssl.benchmarks.fits runs/seed0 runs/seed1 runs/seed2 --json benchmarks/results/fit_simclr.json

collects them with the machine that trained, and ``python -m fastssl.benchmarks.report`` makes the table: of one such
file all lines, of several a line for each.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastssl import environment

MEASURES = {"knn": "k-NN %", "linear": "linear probe %"}


def collect(folders: Sequence[Path], command: str) -> dict[str, Any]:
    """The results.json of each run, as they are, and what trained.

    Raises:
        ValueError: naming the folder that holds no finished run, or one of another training.
    """
    fits = []
    for folder in folders:
        try:
            fits.append(json.loads((folder / "results.json").read_text()))
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{folder} must be the folder of a finished run: {error}") from error
        if any(fits[-1][name] != fits[0][name] for name in ("method", "backbone", "epochs", "steps")):
            raise ValueError(f"{folder} must be a run like {folders[0]} with another seed")
    return {"command": command, "environment": environment.record(), "fits": fits}


def load(path: Path) -> dict[str, Any] | None:
    """A document that ``collect`` made; None if it is something else."""
    try:
        document = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return document if isinstance(document, dict) and "fits" in document else None


def markdown(document: Mapping[str, Any]) -> str:
    """Mean over the seeds of each line's accuracy, and each seed's."""
    from .report import machine, versions

    fits, about = document["fits"], document["environment"]
    seeds = ", ".join(str(fit["seed"]) for fit in fits)
    minutes = ", ".join(f"{fit['training_seconds'] / 60:.1f}" for fit in fits)
    lines = [
        f"{versions(about)}; {machine(about, 'cpu')}. `{document['command']}`, seeds {seeds}: {fits[0]['epochs']} "
        f"epochs, {minutes} minutes of training.",
        "",
        "| mean (each seed) | " + " | ".join(MEASURES.values()) + " |",
        "|---|" + "---|" * len(MEASURES),
    ]
    for line in fits[0]["accuracy"]:
        cells = []
        for measure in MEASURES:
            each = [100 * fit["accuracy"][line][measure] for fit in fits]
            best = max(statistics.mean(fit["accuracy"][name][measure] for fit in fits) for name in fits[0]["accuracy"])
            mean = statistics.mean(each)
            text = f"**{mean:.1f}**" if mean >= 100 * best - 1e-9 else f"{mean:.1f}"
            cells.append(f"{text} ({', '.join(f'{value:.1f}' for value in each)})")
        lines.append(f"| {line.replace('_', ', ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def comparison(documents: Sequence[Mapping[str, Any]]) -> str:
    """A line for each document: what its method adds to the untrained network, on the mean and at least."""
    from .report import machine, versions

    heads = (
        "command", "network", "epochs", "minutes", "k-NN %, untrained", "k-NN % (each seed)", "points, at least",
        "linear probe %",
    )  # fmt: skip
    about = [one["environment"] for one in documents]
    origins = dict.fromkeys(f"{versions(one)}; {machine(one, 'cpu')}." for one in about)
    lines = [*origins, "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for document in documents:
        fits = document["fits"]

        def each(line: str, measure: str, fits: Sequence[Any] = fits) -> list[float]:
            return [100 * fit["accuracy"][line][measure] for fit in fits]

        before, after, probe = each("untrained", "knn"), each("trained", "knn"), each("trained", "linear")
        minutes = statistics.median(fit["training_seconds"] / 60 for fit in fits)
        points = min(b - a for a, b in zip(before, after, strict=True))
        cells = [
            f"`{document['command']}`", fits[0]["backbone"], str(fits[0]["epochs"]), f"{minutes:.1f}",
            f"{statistics.mean(before):.1f}",
            f"**{statistics.mean(after):.1f}** ({', '.join(f'{value:.1f}' for value in after)})",
            f"{points:+.1f}", f"{statistics.mean(probe):.1f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fastssl.benchmarks.fits", description=__doc__.split(":")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of `fastssl fit`, one per seed")
    parser.add_argument("--command", required=True, help="that trained them, without the seed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="written instead of the table being printed")
    arguments = parser.parse_args(argv)
    try:
        document = collect(arguments.runs, arguments.command)
    except ValueError as error:
        parser.error(str(error))
    if arguments.json is None:
        print(markdown(document))
    else:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
