"""The benchmark's cases for pytest-benchmark: compare with saved runs, make histograms, fail on what got slower.

From a checkout, with the ``bench`` extra installed::

    pytest benchmarks --benchmark-only -k "N512-D128 and float32 and both"
    pytest benchmarks --benchmark-only -k "N512-D128 and fastssl" --benchmark-autosave
    pytest benchmarks --benchmark-only -k "N512-D128 and fastssl" --benchmark-compare

Families, sizes, providers, and the gate in front of every time are those of ``fastssl bench``. That one measures
competitors in turns and is the one to quote; here each is measured alone. Every round takes the next of several inputs.
A plain ``pytest`` does not collect this file.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fastssl import benchmarks
from fastssl.benchmarks import cases, runner

pytest.importorskip("pytest_benchmark", reason='pytest-benchmark is not installed: pip install "fastssl[bench]"')

SECONDS, LEAST_ROUNDS, MOST_ROUNDS = 1.0, 5, 500  # of each: as many rounds as fit into the seconds
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [dtype for dtype in cases.DTYPES if dtype != "tf32" or DEVICE == "cuda"]


def _problems() -> Iterator[Any]:
    """Every family's default sizes in every dtype and pass."""
    for name in benchmarks.FAMILIES:
        family = cases.load(f"{benchmarks.__name__}.{name}")
        parser = argparse.ArgumentParser()
        family.add_arguments(parser)
        for case in family.cases(parser.parse_args([], argparse.Namespace(dtype=DTYPES)), DEVICE):
            sizes = "-".join(f"{size}{value:g}" for size, value in case.sizes.items())
            for provider, about in family.providers.items():
                if case.dtype in (about.dtypes or (case.dtype,)) and about.batches == 1:  # a round is one call
                    for which in family.passes:
                        label = f"{name}-{sizes}-{case.dtype_name}-{provider}-{which}"
                        yield pytest.param((family, case), provider, which, id=label)


@dataclass(frozen=True)
class Problem:
    """A case with what its providers are verified and timed on."""

    family: cases.Family
    case: cases.Case
    sets: Sequence[tuple[Tensor, ...]]
    expected: Sequence[cases.Expected]
    baseline_errors: Sequence[float]


@pytest.fixture(scope="module")
def problem(request: pytest.FixtureRequest) -> Iterator[Problem]:
    """Inputs and float64 truth, once for all providers of a case."""
    family, case = request.param
    with cases.precision(case.dtype_name):
        sets = [family.inputs(case, seed) for seed in range(runner.INPUT_SETS)]
        expected = family.truth(case, sets[-1], 0)
        yield Problem(family, case, sets, expected, runner.errors_of_baseline(family, case, sets, expected))


@pytest.mark.parametrize(("problem", "provider", "which"), list(_problems()), indirect=["problem"])
def test_speed(problem: Problem, provider: str, which: str, benchmark: Any) -> None:
    torch.compiler.reset()  # or torch.compile falls back to eager after a few sizes
    row = runner.Row(problem.case, provider)
    function = runner.prepare(
        problem.family, row, problem.sets, problem.expected, problem.baseline_errors, runner.Options(passes=[which])
    )
    if row.status == "unavailable":
        pytest.skip(row.reason)
    assert function is not None, f"{row.status}: {row.reason}"
    task = runner.task(function, problem.sets, which)
    calls = iter(range(10**9))

    def prepare() -> tuple[tuple[int], dict[str, Any]]:
        call = next(calls)
        task.prepare(call)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return (call,), {}

    def run(call: int) -> None:
        task.run(call)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    (call,), _ = prepare()
    start = time.perf_counter()
    run(call)
    rounds = int(SECONDS / (time.perf_counter() - start))
    benchmark.group = f"{problem.family.name} {problem.case.title} {cases.TITLES[which]}"
    benchmark.extra_info.update(problem.case.to_json(), provider=provider, which=which)
    benchmark.pedantic(run, setup=prepare, rounds=min(MOST_ROUNDS, max(LEAST_ROUNDS, rounds)))
