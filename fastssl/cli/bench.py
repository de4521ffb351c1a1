"""``fastssl bench``: time the operations against what people use, and refuse wrong results.

``fastssl bench`` lists the families, ``fastssl bench FAMILY --help`` a family's options; ``fastssl bench plot`` draws
results again that were written before.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..benchmarks.cases import Case, Family
    from ..benchmarks.limits import Limits
    from ..benchmarks.runner import Options, Row

# glibc gives large blocks back to the system when they are freed and takes every page anew, which dominates large eager
# operations. "pooled" keeps them, as the allocators that some people preload do.
POOLED = {
    "MALLOC_MMAP_THRESHOLD_": "17179869184",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
OK, FAILED, USAGE = 0, 1, 2

Measure = Callable[["Case"], "tuple[list[Row], float | None]"]  # a case -> what runner.run_case returns


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 1 when fastssl's own result is wrong or fails; 2 for a wrong command line; the status of a measuring process
        that ended early.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    from .. import benchmarks

    if not argv or argv[0] in ("-h", "--help"):
        print("usage: fastssl bench FAMILY [options]\n       fastssl bench plot RESULT.json ... --out FILE.png\n")
        print("families:")
        for name, summary in benchmarks.FAMILIES.items():
            print(f"  {name:12} {summary}")
        print("\n`fastssl bench FAMILY --help` shows a family's options.")
        return OK
    name = argv[0]
    if name not in (*benchmarks.FAMILIES, "plot"):
        known = ", ".join(benchmarks.FAMILIES)
        print(f"fastssl bench: the family must be one of {known}, got {name!r}", file=sys.stderr)
        return USAGE
    try:
        if name == "plot":
            return _plot(argv[1:])
        from ..benchmarks import cases

        family = cases.load(f"{benchmarks.__name__}.{name}")
        arguments = _parser(family).parse_args(argv[1:])
        return run(family, arguments, command=shlex.join(["fastssl", "bench", *argv]))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else USAGE
    except ValueError as error:
        print(f"fastssl bench {name}: {error}", file=sys.stderr)
        return USAGE


def run(family: Family, arguments: argparse.Namespace, *, command: str) -> int:
    """Run a family with parsed options; see ``main`` for what it returns."""
    _need("rich", *(["matplotlib"] if arguments.plot else []))
    import torch

    from .. import environment
    from ..benchmarks import report
    from ..benchmarks.cases import TITLES
    from ..benchmarks.limits import Limits
    from ..benchmarks.runner import Options
    from ..benchmarks.worker import WorkerDied, WorkerError

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch sees no CUDA device")
    if device == "cpu" and "tf32" in arguments.dtype:
        raise ValueError("--dtype tf32: only CUDA devices have it")
    names = _provider_names(family, arguments.providers)
    allocators = allocator_choices(arguments.allocator, device)
    problems = family.cases(arguments, device)
    options = Options(
        passes=[which for which in TITLES if which in arguments.passes],
        rounds=arguments.rounds,
        budget=arguments.budget,
        memory=arguments.memory,
        seed=arguments.seed,
    )

    _progress("measuring the machine's limits")
    limits = Limits(device, [case.dtype_name for case in problems])
    _progress("")
    about = environment.record()
    about["allocator"] = {name: _settings(name, about["allocator"]) for name in allocators}
    console = report.console()
    print(f"{report.versions(about)}\n{report.machine(about, device)}")
    print(report.limits_text(limits.to_json()))
    print(f"limit: share of it, {family.work_model}\n{report.legend(family.subject)}\n", flush=True)

    rows: list[Row] = []
    disturbance: dict[str, float | None] = {}

    def document() -> dict[str, Any]:
        return report.document(
            family,
            [row.to_json() for row in rows],
            limits.to_json(),
            command=command,
            options={name: value for name, value in vars(arguments).items() if name not in ("json", "plot")},
            environment=about,
            disturbance=disturbance,
        )

    try:
        with _measures(family, names, options, limits, allocators) as measures:
            for case in problems:
                for allocator, measure in measures.items():
                    here, disturbance[" ".join(filter(None, (case.title, allocator)))] = measure(case)
                    rows += here
                    _progress("")
                    unit = None if family.rate is None else family.rate.unit
                    console.print(report.table([row.to_json() for row in here], family.subject, options.passes, unit))
                    if not all(row.refuses_zeros for row in here):
                        print("Gradients of zeros would have passed here: this case says nothing about correctness.")
                    print(flush=True)
                    if arguments.json is not None:  # what was measured is kept if something later ends the run
                        _write(arguments.json, report.text(document()))
    except WorkerDied as error:
        print(f"fastssl bench {family.name}: {error}", file=sys.stderr)
        return error.status
    except WorkerError as error:
        print(f"fastssl bench {family.name}: a process that measures failed:\n{error}", file=sys.stderr)
        return FAILED
    for sentence in report.beaten([row.to_json() for row in rows], family.subject, options.passes):
        print(sentence)
    warning = report.disturbance_text(disturbance)
    if warning:
        print(warning)
    if arguments.plot is not None:
        from ..benchmarks import plot

        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        plot.draw([document()], arguments.plot)
    bad = [row for row in rows if row.provider == family.subject and row.status != "ok"]
    for row in bad:
        where = " ".join(filter(None, (row.case.title, row.allocator)))
        print(f"{where}: {family.subject} {row.status}: {row.reason}", file=sys.stderr)
    return FAILED if bad else OK


# --- Allocators -----------------------------------------------------------------------------------------------------


def allocator_choices(wanted: str | None, device: str) -> tuple[str, ...]:
    """The allocators to measure with, by the names that rows carry.

    Raises:
        ValueError: when there is nothing to choose: on CUDA, or without glibc.
    """
    if wanted == "environment" and device == "cpu":
        return ("environment",)
    glibc = sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc"
    if device != "cpu" or not glibc:
        if wanted not in (None, "environment"):
            raise ValueError(f"--allocator {wanted}: it is a choice between settings of glibc, on the CPU")
        return ("environment",) if device == "cpu" else ("",)
    return ("default", "pooled") if wanted in (None, "both") else (wanted,)


def allocator_environment(choice: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with glibc's allocator as it comes ("default") or keeping its pages ("pooled")."""
    kept = {
        name: value
        for name, value in environment.items()
        if not name.startswith("MALLOC_") and name not in ("GLIBC_TUNABLES", "LD_PRELOAD")
    }
    preloaded = environment.get("LD_PRELOAD", "").replace(":", " ").split()
    others = [library for library in preloaded if "malloc" not in Path(library).name]  # jemalloc, tcmalloc, mimalloc
    if others:
        kept["LD_PRELOAD"] = " ".join(others)
    return kept | POOLED if choice == "pooled" else kept


def _settings(allocator: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of ``environment.allocator()`` that a choice leaves in place."""
    if allocator not in ("default", "pooled"):
        return dict(environment)
    return allocator_environment(allocator, environment)


@contextlib.contextmanager
def _measures(
    family: Family, names: Sequence[str], options: Options, limits: Limits, allocators: Sequence[str]
) -> Iterator[dict[str, Measure]]:
    """How to measure a case, by allocator: here, or in a process of its own, as glibc reads its settings at start."""
    import torch

    from ..benchmarks.worker import Worker

    threads = torch.get_num_threads()
    with contextlib.ExitStack() as stack:

        def measure_with(allocator: str) -> Measure:
            own = dataclasses.replace(options, allocator=allocator)
            if allocator not in ("default", "pooled"):
                return lambda case: _measure(family, threads, case, names, own, limits)
            worker = stack.enter_context(Worker(allocator_environment(allocator, os.environ)))
            return lambda case: worker.call(_measure, family.module, threads, case, names, own, limits)

        yield {allocator: measure_with(allocator) for allocator in allocators}


def _measure(
    family: Family | str, threads: int, case: Case, names: Sequence[str], options: Options, limits: Limits
) -> tuple[list[Row], float | None]:
    """``runner.run_case``; in a worker the family is known by its module."""
    import torch

    from ..benchmarks.cases import load
    from ..benchmarks.runner import run_case

    torch.set_num_threads(threads)
    found = load(family) if isinstance(family, str) else family
    return run_case(found, case, names, options, limits, _progress)


# --- Command line ---------------------------------------------------------------------------------------------------


def _plot(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="fastssl bench plot", description="Draw time and memory against the size, from results of --json."
    )
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT.json")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    arguments = parser.parse_args(argv)
    _need("matplotlib")
    from ..benchmarks import plot, report

    documents = [report.load(path) for path in arguments.results]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    plot.draw(documents, arguments.out)
    return OK


def _need(*packages: str) -> None:
    """Say before anything is measured what the result could not be shown without."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ValueError(f'{package} is needed and not installed: pip install "fastssl[bench]"')


def _progress(message: str) -> None:
    """Show what happens now on one line of the terminal; an empty message clears it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{message[:110]}", end="", file=sys.stderr, flush=True)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _parser(family: Family) -> argparse.ArgumentParser:
    from ..benchmarks.cases import DTYPES

    optional = ", ".join(name for name in family.providers if name in family.optional)
    parser = argparse.ArgumentParser(
        prog=f"fastssl bench {family.name}",
        description=f"Providers: {', '.join(family.providers)}. Only when named: {optional or 'none'}.",
    )
    family.add_arguments(parser)
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=list(DTYPES),
        default=["float32"],
        help="tf32: float32 with tf32 products, on CUDA",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda when there is one")
    parser.add_argument(
        "--pass", dest="passes", nargs="+", choices=list(family.passes), default=list(family.passes),
        help="forward: no gradient wanted; backward: loss.backward() alone; both: forward + backward, the one to "
        "compare, since a provider may compute its gradient in the forward pass already; step: a training step. "
        "Default: all",
    )  # fmt: skip
    parser.add_argument("--providers", nargs="+", metavar="NAME", help="default: all that are not optional")
    parser.add_argument("--threads", type=_positive(int), help="CPU threads; default: PyTorch's")
    parser.add_argument("--rounds", type=_positive(int), default=7, help="turns of each provider")
    parser.add_argument(
        "--budget", type=_positive(float), default=2.0, metavar="SECONDS",
        help="timed seconds per provider, case and pass, about",
    )  # fmt: skip
    parser.add_argument(
        "--memory", action=argparse.BooleanOptionalAction, default=True,
        help="measure peak memory (on the CPU in a fresh process per row)",
    )  # fmt: skip
    parser.add_argument(
        "--allocator", choices=("both", "default", "pooled", "environment"),
        help="of the CPU's memory: glibc's as it comes, one that keeps its pages, both (each in a process of its own; "
        "what is done where there is glibc), or as the environment says",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write everything, every sample included")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw time and memory against the size")
    return parser


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


def _provider_names(family: Family, wanted: Sequence[str] | None) -> list[str]:
    if wanted is None:
        return [name for name in family.providers if name not in family.optional]
    for name in wanted:
        if name not in family.providers:
            raise ValueError(f"--providers: must be among {', '.join(family.providers)}, got {name!r}")
    return list(dict.fromkeys(wanted))
