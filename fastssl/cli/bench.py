"""``fastssl bench``: time the operations against what people use, and refuse wrong results.

``fastssl bench`` lists the families, ``fastssl bench FAMILY --help`` a family's options.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..benchmarks.cases import Family

# glibc gives large blocks back to the system when they are freed and takes every page anew, which dominates large eager
# operations. "pooled" keeps them, as the allocators that some people preload do.
POOLED = {
    "MALLOC_MMAP_THRESHOLD_": "17179869184",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
DTYPES = ("float32", "bfloat16", "float16")
OK, FAILED, USAGE = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0; 1 when fastssl's own result is wrong or fails; 2 for a wrong command line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    from .. import benchmarks

    if not argv or argv[0] in ("-h", "--help"):
        print("usage: fastssl bench FAMILY [options]\n\nfamilies:")
        for name, summary in benchmarks.FAMILIES.items():
            print(f"  {name:12} {summary}")
        print("\n`fastssl bench FAMILY --help` shows a family's options.")
        return OK
    if argv[0] not in benchmarks.FAMILIES:
        known = ", ".join(benchmarks.FAMILIES)
        print(f"fastssl bench: the family must be one of {known}, got {argv[0]!r}", file=sys.stderr)
        return USAGE

    from ..benchmarks import cases

    family = cases.load(f"{benchmarks.__name__}.{argv[0]}")
    try:
        arguments = _parser(family).parse_args(argv[1:])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else USAGE
    if arguments.allocator is not None:
        environment = allocator_environment(arguments.allocator, dict(os.environ))
        if environment != dict(os.environ):  # glibc reads it when a process starts: start again
            sys.stdout.flush()
            code = "import sys; from fastssl.cli.bench import main; sys.exit(main(sys.argv[1:]))"
            os.execve(sys.executable, [sys.executable, "-c", code, *argv], environment)
    try:
        return run(family, arguments, command=shlex.join(["fastssl", "bench", *argv]))
    except ValueError as error:
        print(f"fastssl bench {family.name}: {error}", file=sys.stderr)
        return USAGE


def run(family: Family, arguments: argparse.Namespace, *, command: str) -> int:
    """Run a family with parsed options; see ``main`` for what it returns."""
    import torch

    from .. import environment
    from ..benchmarks import report
    from ..benchmarks.limits import Limits
    from ..benchmarks.runner import Options, run_case

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch sees no CUDA device")
    names = _provider_names(family, arguments.providers)
    problems = family.cases(arguments, device)
    options = Options(
        passes=("forward", "both") if arguments.which == "both" else (arguments.which,),
        rounds=arguments.rounds,
        budget=arguments.budget,
        memory=arguments.memory,
        seed=arguments.seed,
    )

    def progress(message: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{message[:110]}", end="", file=sys.stderr, flush=True)

    progress("measuring the machine's limits")
    limits = Limits(device, [case.dtype for case in problems])
    rows, disturbance = [], {}
    about = environment.record()
    progress("")
    print(_heading(about, device))
    print(report.limits_text(limits))
    print(f"limit: share of it, {family.work_model}\n", flush=True)
    for case in problems:
        here, disturbance[case.title] = run_case(family, case, names, options, limits, progress)
        rows += here
        progress("")
        print(f"{family.name} {case.title}")
        print(report.table(here, family.subject, options.passes), flush=True)
        if not all(row.refuses_zeros for row in here):
            print("Gradients of zeros would have passed here: this case says nothing about correctness.")
        print(flush=True)
        if arguments.json is not None:  # after each case: what was measured is kept if a later one ends the run
            document = report.document(
                family,
                rows,
                limits,
                command=command,
                options={name: value for name, value in vars(arguments).items() if name != "json"},
                environment=about,
                disturbance=disturbance,
            )
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    for sentence in report.beaten(rows, family.subject, options.passes):
        print(sentence)
    warning = report.disturbance_text(disturbance)
    if warning:
        print(warning)
    bad = [row for row in rows if row.provider == family.subject and row.status != "ok"]
    for row in bad:
        print(f"{row.case.title}: {family.subject} {row.status}: {row.reason}", file=sys.stderr)
    return FAILED if bad else OK


def allocator_environment(choice: str, environment: dict[str, str]) -> dict[str, str]:
    """The environment with glibc's allocator as it comes ("default") or keeping its pages ("pooled")."""
    kept = {name: value for name, value in environment.items() if not name.startswith("MALLOC_")}
    return kept | POOLED if choice == "pooled" else kept


def _parser(family: Family) -> argparse.ArgumentParser:
    optional = ", ".join(name for name in family.providers if name in family.optional)
    parser = argparse.ArgumentParser(
        prog=f"fastssl bench {family.name}",
        description=f"Providers: {', '.join(family.providers)}. Only when named: {optional or 'none'}.",
    )
    family.add_arguments(parser)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"])
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda when there is one")
    parser.add_argument(
        "--pass", dest="which", choices=("forward", "both"), default="both",
        help="the forward pass alone (no gradient wanted), or it and forward + backward",
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
        "--allocator", choices=("default", "pooled"),
        help="run with glibc's allocator as it comes, or one that keeps its pages; default: as the environment says",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write everything, every sample included")
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


def _heading(about: dict, device: str) -> str:
    versions, machine = about["versions"], about["machine"]
    commit = about["commit"]
    state = "" if commit is None else f" ({commit['commit'][:10]}{', changed' if commit['dirty'] else ''})"
    where = machine["cuda"]["name"] if device == "cuda" else f"{machine['cpu']}, {about['threads']['torch']} threads"
    allocator = " ".join(f"{name}={value}" for name, value in about["allocator"].items()) or "default"
    return (
        f"fastssl {versions['fastssl']}{state}, torch {versions['torch']}, triton {versions['triton']}\n"
        f"{where}; allocator: {allocator}"
    )
