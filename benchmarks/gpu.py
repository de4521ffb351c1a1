"""Everything that has to be known about the kernels on a CUDA machine, by one command of less than nine minutes::

    python benchmarks/gpu.py --out results        # from a checkout or from an installation
    python benchmarks/gpu.py --out results --sections verify ceilings --budget 120
    python benchmarks/gpu.py --out rehearsal --rehearse       # this file's logic, on a machine without a GPU

Sections, in order. Each is a list of jobs in processes of their own and ends with its time budget: what runs then is
stopped, what is left is reported as missing. Each writes ``DIR/<section>.json`` when it ends.

compile    every kernel that the other sections use, and the forms that ``torch.compile`` makes, in parallel
verify     every operation, dtype and mode against float64 on random inputs; twice, bit-equal; outputs and scratch are
           filled with NaN before each call
ceilings   what the machine can do: a large copy, a large product per dtype
timing     ``fastssl bench``'s measurement (its gate, interleaved times, peak memory) of fastssl against eager, compiled
           and chunked PyTorch; also written as ``DIR/<family>.json``, which ``fastssl bench plot`` draws

The last lines are a table. The exit status is 1 if anything failed: a kernel that does not compile, a verification that
is wrong or missing, a wrong result or a fastssl that does not run while timing. Cases that timing had no time for, the
least important ones, are listed but do not fail.

A family takes part with a module ``gpu_<family>.py`` (see ``gpu_family.GpuFamily``) and its name in ``FAMILIES``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any


def use_checkout() -> None:
    """Make ``fastssl`` and its sub-packages importable when this file runs from a checkout that is not installed."""
    if importlib.util.find_spec("fastssl") is not None and importlib.util.find_spec("fastssl.kernels") is not None:
        return
    root = Path(__file__).resolve().parent.parent
    sys.path.insert(0, str(root))
    for name in ("kernels", "benchmarks"):
        spec = importlib.util.spec_from_file_location(
            f"fastssl.{name}", root / name / "__init__.py", submodule_search_locations=[str(root / name)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)


use_checkout()

import torch  # noqa: E402
import torch._inductor.config as inductor  # noqa: E402
from torch import Tensor  # noqa: E402

from fastssl import environment  # noqa: E402
from fastssl.benchmarks import gpu_family, report, runner  # noqa: E402
from fastssl.benchmarks.cases import Case, outputs, precision, ready  # noqa: E402
from fastssl.benchmarks.gpu_family import Target  # noqa: E402
from fastssl.benchmarks.jobs import Deadline, Job, Outcome, Results, run_jobs  # noqa: E402
from fastssl.benchmarks.limits import Limits  # noqa: E402

FAMILIES = (
    "soft_target", "nt_xent", "sinkhorn_knopp", "koleo", "masking", "unshuffle", "patch_loss", "augment", "training",
    "mae", "clip", "siglip", "info_nce", "sup_con",
)  # fmt: skip
TOTAL_SECONDS = 520  # all sections together
# A case of few calls: the GPU is steady, and there are many cases. The backward pass alone says nothing: fastssl and
# the chunked forms have the gradient already when it starts.
OPTIONS = runner.Options(passes=("forward", "both", "step"), rounds=3, budget=0.25)
REHEARSAL_OPTIONS = replace(OPTIONS, budget=0.01, memory=False)

# ------------------------------------------------------------------------------------------------------- sections


@dataclass
class Setup:
    """What sections are made from."""

    target: Target
    families: Sequence[str] = FAMILIES
    limits: Limits | None = None  # known after "ceilings"

    @property
    def options(self) -> runner.Options:
        return OPTIONS if self.target.device == "cuda" else REHEARSAL_OPTIONS


@dataclass(frozen=True)
class Section:
    """A part of the run.

    Attributes:
        jobs: what it does.
        seconds: its time budget.
        parallel: as many processes as there are cores (less two), instead of one.
        limit: seconds for one job.
        complete: whether missing jobs fail.
    """

    jobs: Callable[[Setup], list[Job]]
    seconds: float
    parallel: bool = False
    limit: float = 60.0
    complete: bool = True


def compile_jobs(setup: Setup) -> list[Job]:
    small = replace(setup.target, small=True)
    jobs, baselines = [], []
    for name in setup.families:
        family = gpu_family.load(name)
        cases = family.cases(setup.target)
        smaller = family.compiled_sizes or family.family.tiny_sizes
        tiny = [Case(smaller(case.sizes), case.dtype, case.device, case.tf32) for case in cases]
        for case in {case.title: case for case in tiny}.values():  # kernels do not depend on the number of rows
            for target in family.targets(setup.target):
                where = "" if target == setup.target else f" {target.backend}"
                jobs.append(Job(f"{name} {case.title}{where}", compile_provider, (name, target.provider, case)))
        for number, one in enumerate(family.verifications(small)):
            jobs.append(Job(f"{name} {one.dtype} {one.title}", compile_verification, (name, small, number)))
        for case in cases:
            for baseline in family.baselines(case):
                if family.family.providers[baseline].compiles:
                    arguments = (name, baseline, case)
                    baselines.append(
                        Job(f"{name} {case.title} {baseline}", compile_provider, arguments, required=False)
                    )
    return jobs + baselines


def compile_provider(name: str, provider: str, case: Case) -> Results:
    # Workers keep all cores busy already. No part of the key under which later processes find what was compiled.
    inductor.compile_threads = 1
    family = gpu_family.load(name).family
    with precision(case.dtype_name):
        inputs = family.inputs(case, 0)
        function = family.providers[provider].function(case)
        outputs(function, inputs)
        with torch.no_grad():
            ready(function, inputs)
            function(*inputs)
    return {}


def compile_verification(name: str, target: Target, number: int) -> Results:
    one = gpu_family.load(name).verifications(target)[number]
    with precision(one.dtype):
        one.build(0).solve()
    return {}


def verify_jobs(setup: Setup) -> list[Job]:
    return [
        Job(f"{name} {one.dtype} {one.title}", verify, (name, setup.target, number))
        for name in setup.families
        for number, one in enumerate(gpu_family.load(name).verifications(setup.target))
    ]


def verify(name: str, target: Target, number: int) -> Results:
    """Solve a problem twice, with NaN where results will stand, and compare with the truth."""
    one = gpu_family.load(name).verifications(target)[number]
    with precision(one.dtype):
        problem = one.build(1000 + number)
        with poisoned_memory():
            first, second = problem.solve(), problem.solve()
        ratios = dict(problem.judge(first))
    problems = [f"{output}: {ratio:.3g} of what is allowed" for output, ratio in ratios.items() if not ratio <= 1]
    if not all(_same_bits(a, b) for a, b in zip(first, second, strict=True)):
        problems.append("two calls differ")
    return {"family": name, "dtype": one.dtype, "ratios": ratios, "problems": problems}


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal, NaN in the same places."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fills what ``torch.empty`` and ``torch.empty_like`` return with NaN inside the block."""
    before = torch.empty, torch.empty_like

    def poisoned(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def filled(*arguments: Any, **options: Any) -> Tensor:
            out = function(*arguments, **options)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        return filled

    torch.empty, torch.empty_like = (poisoned(function) for function in before)
    try:
        yield
    finally:
        torch.empty, torch.empty_like = before


def ceilings_jobs(setup: Setup) -> list[Job]:
    timed = [case for name in setup.families for case in gpu_family.load(name).cases(setup.target)]
    names = list(dict.fromkeys(case.dtype_name for case in timed))
    return [Job("products and copy", ceilings, (setup.target.device, names))]


def ceilings(device: str, names: Sequence[str]) -> Results:
    return {"limits": Limits(device, names)}


def timing_jobs(setup: Setup) -> list[Job]:
    """The families take turns, each with its most important case that is left: time may run out."""
    turns = zip_longest(*(_timing_jobs(name, setup) for name in setup.families))
    return [job for turn in turns for job in turn if job is not None]


def _timing_jobs(name: str, setup: Setup) -> list[Job]:
    family = gpu_family.load(name)
    timed = [
        Job(f"{name} {case.title}", time_case, (name, setup.target, case, setup.options, setup.limits))
        for case in family.cases(setup.target)
    ]
    return [*timed[:1], *family.others(setup.target), *timed[1:]]


def time_case(name: str, target: Target, case: Case, options: runner.Options, limits: Limits) -> Results:
    """``fastssl bench``'s measurement of one case."""
    here = gpu_family.load(name)
    options = replace(options, passes=[which for which in options.passes if which in here.family.passes])
    ours, *others = (one.provider for one in here.targets(target))
    rows, _ = runner.run_case(here.family, case, [ours, *others, *here.baselines(case)], options, limits)
    # A baseline may run out of memory or not compile; wrong it may not be, and fastssl has to run.
    bad = [row for row in rows if row.status == "wrong" or (row.provider == ours and row.status != "ok")]
    problems = [f"{row.provider} {row.status}: {row.reason}" for row in bad]
    if not all(row.refuses_zeros for row in rows):
        problems.append("gradients of zeros would have passed")
    floors = {which: limits.floor(here.family.work(case, which), case.dtype_name) for which in options.passes}
    rows_json = [row.to_json() for row in rows]
    return {
        "family": name,
        "provider": ours,
        "floor_s": floors,
        "rate_unit": None if here.family.rate is None else here.family.rate.unit,
        "rows": rows_json,
        "problems": problems,
    }


SECTIONS = {
    "compile": Section(compile_jobs, 150, parallel=True, limit=150),
    "verify": Section(verify_jobs, 100, limit=30),
    "ceilings": Section(ceilings_jobs, 30),
    "timing": Section(timing_jobs, 240, limit=90, complete=False),
}


# ---------------------------------------------------------------------------------------------------------- report


def failures(outcomes: Sequence[Outcome], complete: bool) -> int:
    """How many outcomes make the run fail."""
    bad = [one for one in outcomes if one.required and one.status != "ok" and (complete or one.status != "missing")]
    # Nothing at all is no success either.
    return len(bad) or int(not any(one.status == "ok" for one in outcomes))


def summary(name: str, seconds: float, outcomes: Sequence[Outcome], failed: int) -> str:
    """A section in a line."""
    counts = {status: sum(one.status == status for one in outcomes) for status in ("ok", "wrong", "failed", "missing")}
    words = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return f"{name:<9} {seconds:5.0f} s  {words}: {'FAILED' if failed else 'passed'}"


HEADER = (
    "op", "dtype", "sizes", "forward ms", "share", "both ms", "share", "floor", "eager", "compiled", "chunked", "gain",
    "peak MB",
)  # fmt: skip
LEGEND = (
    "forward: the loss without gradients; both: forward + backward, forward again where there is no gradient, or a\n"
    "whole training step;\n"
    "share: of the ceiling, of products or of a copy, that binds the work model; floor: what both take at it;\n"
    "eager, compiled, chunked: both, the fastest of these forms; gain: of fastssl over compiled; peak: extra memory of "
    "both"
)


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """The timed cases as aligned lines, and under them what else was found, and what has no time and why."""
    lines, remarks = [HEADER], []
    for outcome in outcomes:
        if "lines" in outcome.result:
            remarks += outcome.result["lines"]
            continue
        if "rows" not in outcome.result:
            remarks.append(f"{outcome.title}: {outcome.status}, {'; '.join(outcome.problems) or 'no time was left'}")
            continue
        rows, provider = outcome.result["rows"], outcome.result["provider"]
        ours = next(row for row in rows if row["provider"] == provider)
        last = next(which for which in ("step", "both", "forward") if which in outcome.result["floor_s"])
        others = {kind: _best(rows, kind, last) for kind in ("eager", "compiled", "chunked")}
        sizes = " ".join(f"{name}={value:g}" for name, value in ours["sizes"].items() if name != "temperature")
        cells = [outcome.result["family"], ours["dtype"], sizes]
        for which in ("forward", last):
            share = ours["share_of_limit"].get(which)
            cells += [_milliseconds(_median(ours, which)), "-" if share is None else f"{share:.0%}"]
        cells.append(_milliseconds(outcome.result["floor_s"].get(last)))
        cells += [_milliseconds(others[kind]) for kind in others]
        compiled, own = others["compiled"], _median(ours, last)
        cells.append("-" if compiled is None or own is None else f"{compiled / own:.1f}x")
        peak = ours["peak_extra_bytes"]
        cells.append("-" if peak is None else f"{peak / 1e6:.1f}")
        lines.append(tuple(cells))
        for row in rows:
            if row["status"] != "ok":
                remarks.append(f"{outcome.title}: {row['provider']} {row['status']}, {row['reason']}")
            if row["rate"] and row["status"] == "ok":
                rate = report.rate_text(row["rate"][last])
                remarks.append(f"{outcome.title}: {row['provider']} {rate} {outcome.result['rate_unit']}")
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    text = [
        "  ".join(cell.ljust(width) if column < 3 else cell.rjust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    return [text[0], "-" * len(text[0]), *text[1:], "", LEGEND, *remarks]


def _median(row: Mapping[str, Any], which: str) -> float | None:
    return row["times"][which]["median_s"] if which in row["times"] else None


def _best(rows: Sequence[Mapping[str, Any]], kind: str, which: str) -> float | None:
    """Seconds of a pass of the fastest provider of a kind: "eager" has an "eager-autocast" beside it."""
    times = [_median(row, which) for row in rows if row["provider"].split("-")[0] == kind]
    return min((seconds for seconds in times if seconds is not None), default=None)


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.3g}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"


def write(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(report.text(document))


# ------------------------------------------------------------------------------------------------------------ main


def run(setup: Setup, names: Sequence[str], out: Path, *, budget: float | None = None, command: str = "") -> int:
    """Run sections and write what they find.

    Args:
        setup: whose kernels, and of which families.
        names: of the sections, in order.
        out: folder for the JSON files.
        budget: seconds per section instead of each one's own.
        command: how this run was started.

    Returns:
        1 if anything failed, else 0.
    """
    out.mkdir(parents=True, exist_ok=True)
    total = Deadline(TOTAL_SECONDS)
    about = environment.record()
    lines, timed, failed = [], [], 0
    if "timing" in names and "ceilings" not in names and setup.limits is None:  # the shares need them
        names = ["ceilings", *names]
    for name in names:
        section = SECTIONS[name]
        deadline = Deadline(min(budget or section.seconds, total.left))
        start = time.monotonic()
        workers = max(1, min(14, (os.cpu_count() or 1) - 2)) if section.parallel else 1
        if name == "timing" and setup.limits is None:
            outcomes = [Outcome("all", True, problems=["without ceilings there are no shares"])]
        else:
            outcomes = run_jobs(section.jobs(setup), deadline, workers=workers, limit=section.limit)
        seconds = time.monotonic() - start
        for outcome in outcomes if name == "ceilings" else []:
            setup.limits = outcome.result.pop("limits", None)
            if setup.limits is not None:
                outcome.result |= setup.limits.to_json()
                print(report.limits_text(setup.limits.to_json()))
        bad = failures(outcomes, section.complete)
        failed += bad
        document = {"section": name, "command": command, "seconds": seconds, "failed": bad, "environment": about}
        write(out / f"{name}.json", {**document, "jobs": [outcome.to_json() for outcome in outcomes]})
        lines.append(summary(name, seconds, outcomes, bad))
        print(lines[-1], flush=True)
        if name == "timing" and setup.limits is not None:
            timed = table(outcomes)
            for family in setup.families:
                write(out / f"{family}.json", _bench_document(family, outcomes, setup, command, about))
    print("\n".join(["", *timed, "", *lines]))
    return 1 if failed else 0


def _bench_document(
    name: str, outcomes: Sequence[Outcome], setup: Setup, command: str, about: Mapping[str, Any]
) -> dict[str, Any]:
    """A family's rows as ``fastssl bench --json`` writes them."""
    assert setup.limits is not None
    rows = [row for one in outcomes if one.result.get("family") == name for row in one.result["rows"]]
    here = gpu_family.load(name)
    family = replace(here.family, subject=here.targets(setup.target)[0].provider)
    options = vars(setup.options)
    limits = setup.limits.to_json()
    return report.document(
        family, rows, limits, command=command, options=options, environment=about, disturbance={}
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder for the JSON files")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="per section instead of each one's own")
    parser.add_argument(
        "--rehearse", action="store_true",
        help="small problems, the chunked backend and the CPU: shows that this file works, says nothing about kernels",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    if arguments.budget is not None and not arguments.budget > 0:
        parser.error(f"--budget must be above 0, got {arguments.budget}")
    target = Target("cpu", "chunked", small=True) if arguments.rehearse else Target()
    if target.device == "cuda" and not torch.cuda.is_available():
        print("gpu.py: no CUDA device is visible to PyTorch; --rehearse runs without one", file=sys.stderr)
        return 2
    sections = [name for name in SECTIONS if name in arguments.sections]
    command = shlex.join(["python", *sys.argv]) if argv is None else shlex.join(["python", "benchmarks/gpu.py", *argv])
    return run(Setup(target), sections, arguments.out, budget=arguments.budget, command=command)


if __name__ == "__main__":
    sys.exit(main())
