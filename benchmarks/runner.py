"""Run a family's cases: verify every provider, time those that are right against each other, measure their memory."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import memory, verify
from .cases import (
    PASSES,
    Case,
    Expected,
    Family,
    Function,
    Unavailable,
    clear_gradients,
    outputs,
    precision,
    ready,
    step,
    values,
)
from .limits import Limits
from .timing import OtherLoad, Task, Timing, interleave

INPUT_SETS = 4  # calls take turns on so many inputs, so that none is measured on data it has just seen


@dataclass(frozen=True)
class Options:
    """What to measure and how long; ``allocator`` is what this process has, for the rows."""

    passes: Sequence[str] = tuple(PASSES)
    rounds: int = 7
    budget: float = 2.0
    memory: bool = True
    seed: int = 0
    allocator: str = ""


@dataclass
class Row:
    """One provider in one case.

    Attributes:
        status: "ok", "wrong" (refused: it has no times), "unavailable" or "failed".
        reason: why it is not ok.
        note: about the provider: backend, block size, or why its memory is not known.
        checks: comparison with float64, per output.
        timings: by pass; empty unless ok.
        share: of the machine's limit, by pass.
        rate: by pass, what the family counts besides time; empty where it counts nothing.
        parts: median seconds of the parts of what was timed; empty where the family knows none.
        memory: peak extra bytes of forward + backward; None where not measured.
        bytes_needed: the estimate of its peak memory before it ran; 0 where there is none.
        allocator: of the CPU's memory: "default", "pooled", or "environment" as the user set it; empty on CUDA.
        refuses_zeros: whether the gate would have refused a gradient of zeros in this case.
    """

    case: Case
    provider: str
    status: str = "ok"
    reason: str = ""
    note: str = ""
    checks: list[verify.Check] = field(default_factory=list)
    timings: dict[str, Timing] = field(default_factory=dict)
    share: dict[str, float] = field(default_factory=dict)
    rate: dict[str, float] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)
    memory: int | None = None
    bytes_needed: float = 0.0
    allocator: str = ""
    refuses_zeros: bool = True

    def to_json(self) -> dict[str, Any]:
        return {
            **self.case.to_json(),
            "provider": self.provider,
            "allocator": self.allocator,
            "status": self.status,
            "reason": self.reason,
            "note": self.note,
            "checks": [
                {
                    "output": check.name,
                    "error": _finite(check.error),
                    "allowed": check.allowed,
                    "error_over_allowed": _finite(check.ratio),
                }
                for check in self.checks
            ],
            "times": {name: timing.to_json() for name, timing in self.timings.items()},
            "share_of_limit": self.share,
            "rate": self.rate,
            "parts_s": self.parts,
            "peak_extra_bytes": self.memory,
            "bytes_needed": self.bytes_needed,
            "refuses_zeros": self.refuses_zeros,
        }


def _finite(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else None


def run_case(
    family: Family,
    case: Case,
    names: Sequence[str],
    options: Options,
    limits: Limits,
    progress: Callable[[str], None] = lambda message: None,
) -> tuple[list[Row], float | None]:
    """Measure providers in one case.

    Args:
        family: whose.
        case: the problem.
        names: of the providers.
        options: what to measure.
        limits: the machine's, for the shares.
        progress: gets a line now and then.

    Returns:
        A row per provider that makes sense in this dtype, and the share of the machine that other processes took while
        times were taken (None: unknown).
    """
    with precision(case.dtype_name):
        return _run_case(family, case, names, options, limits, progress)


def _run_case(
    family: Family,
    case: Case,
    names: Sequence[str],
    options: Options,
    limits: Limits,
    progress: Callable[[str], None],
) -> tuple[list[Row], float | None]:
    names = [name for name in names if case.dtype in (family.providers[name].dtypes or (case.dtype,))]
    if any(family.providers[name].compiles for name in names):
        # torch.compile gives up on a function after a few recompilations and then runs it eagerly: an unfair baseline.
        torch.compiler.reset()
    sets = [family.inputs(case, options.seed + number) for number in range(INPUT_SETS)]
    progress(f"{case.title}: float64 truth")
    expected = family.truth(case, sets[-1], options.seed)
    baseline_errors = errors_of_baseline(family, case, sets, expected)
    refuses_zeros = verify.would_refuse_zeros(expected, baseline_errors, case)

    rows, functions = [], {}
    for name in names:
        progress(f"{case.title}: verifying {name}")
        row = Row(case, name, allocator=options.allocator, refuses_zeros=refuses_zeros)
        function = prepare(family, row, sets, expected, baseline_errors, options)
        if function is not None:
            functions[name] = function
        rows.append(row)

    progress(f"{case.title}: timing {', '.join(functions)}")
    right = [row for row in rows if row.provider in functions]
    with OtherLoad() as others:
        for which in options.passes:
            tasks = {
                name: task(function, sets, which, family.providers[name].batches)
                for name, function in functions.items()
            }
            if family.parts is not None:
                for function in functions.values():
                    family.parts(function)  # forgets the calls before
            timings = interleave(tasks, device=case.device, rounds=options.rounds, budget=options.budget)
            for row in right:
                row.timings[which] = timings[row.provider]
                if family.parts is not None:
                    row.parts = family.parts(functions[row.provider])
                if family.rate is not None:
                    row.rate[which] = family.rate.count(case) / timings[row.provider].median
                row.share[which] = limits.share(
                    family.work(case, which),
                    timings[row.provider].median,
                    case.dtype_name,
                    in_place=which != "forward" and family.providers[row.provider].overwrites_inputs,
                )
    if options.memory:
        for row in right:
            if family.providers[row.provider].elsewhere:
                continue
            progress(f"{case.title}: memory of {row.provider}")
            try:
                function = functions[row.provider]
                row.memory = memory.peak_extra_bytes(family, row.provider, case, function, seed=options.seed)
            except Unavailable as error:
                row.note = ", ".join(filter(None, (row.note, f"memory: {error}")))
    return rows, others.share


def errors_of_baseline(
    family: Family, case: Case, sets: Sequence[tuple[Tensor, ...]], expected: Sequence[Expected]
) -> list[float]:
    """Errors of eager PyTorch at this precision; zeros (the stricter bound) where it cannot run."""
    provider = family.providers[family.baseline]
    if provider.bytes_needed(case) < memory.available_bytes(case.device):
        try:
            finish = partial(provider.finish, case, sets[-1])
            return verify.errors(outputs(provider.function(case), sets[-1], finish), expected)
        except torch.OutOfMemoryError:
            pass
    return [0.0] * len(expected)


def prepare(
    family: Family,
    row: Row,
    sets: Sequence[tuple[Tensor, ...]],
    expected: Sequence[Expected],
    baseline_errors: Sequence[float],
    options: Options,
) -> Function | None:
    """Build and verify a provider. Returns its function if its results are right; else the row says why not."""
    provider, case = family.providers[row.provider], row.case
    alone: list[Any] = []
    results: list[Any] = []
    needed, available = provider.bytes_needed(case), memory.available_bytes(case.device)
    row.bytes_needed = needed
    if needed > available:
        row.status = "unavailable"
        row.reason = f"needs about {needed / 1e9:.1f} GB, {available / 1e9:.1f} GB are available"
        return None
    try:
        function = provider.function(case)
        row.note = provider.note(case)
        if provider.gate is not None:
            row.checks = provider.gate(case, function, sets)
        else:
            outputs(function, sets[0])  # a result that is remembered from another input must not pass
            results = outputs(function, sets[-1], partial(provider.finish, case, sets[-1]))
            if "forward" in options.passes:
                with torch.no_grad():
                    for inputs in (sets[0], sets[-1]):
                        ready(function, inputs)
                        alone = values(provider.finish(case, inputs, function(*inputs)))
    except (Unavailable, ImportError) as error:
        row.status, row.reason = "unavailable", str(error)
        return None
    except torch.OutOfMemoryError:
        row.status, row.reason = "failed", "out of memory"
        return None
    except Exception as error:  # a baseline that does not compile, a kernel that does not launch: a row, not the end
        message = str(error).strip().splitlines() or [""]
        row.status, row.reason = "failed", f"{type(error).__name__}: {message[0][:200]}"
        return None
    finally:
        gc.collect()
    if provider.gate is None:
        row.checks = verify.check(results, expected, baseline_errors, case)
        if "forward" in options.passes:
            count = len(alone)
            row.checks += verify.check(alone, expected[:count], baseline_errors[:count], case)
    gradients = {want.name for want in expected if want.is_gradient}
    wrong: list[str] = []
    excused: list[str] = []
    for check in row.checks:
        if check.reason:
            slack = 1.0 if check.name in gradients else provider.slack
            (excused if check.ratio <= slack else wrong).append(check.reason)
    row.note = "; ".join(filter(None, (row.note, *dict.fromkeys(excused))))
    if wrong:
        row.status, row.reason = "wrong", "; ".join(dict.fromkeys(wrong))
        return None
    return function


def task(function: Function, sets: Sequence[tuple[Tensor, ...]], which: str, batches: int = 1) -> Task:
    """A pass of a verified function for ``timing``; its calls take turns on the sets of inputs.

    ``batches``: how many passes one call makes.
    """
    losses: list[Tensor] = []  # of the forward pass that stands before a backward pass, untimed

    def before(call: int) -> None:
        for inputs in sets:  # as in training, no gradient of an earlier step occupies memory
            clear_gradients(inputs)
        ready(function, sets[call % len(sets)])

    def forward(call: int) -> None:
        with torch.no_grad():
            function(*sets[call % len(sets)])

    def before_backward(call: int) -> None:
        before(call)
        losses.append(values(function(*sets[call % len(sets)]))[0])

    def backward(call: int) -> None:
        losses.pop().backward()

    def both(call: int) -> None:
        step(function, sets[call % len(sets)])

    return {
        "forward": Task(forward, before, batches),
        "backward": Task(backward, before_backward, batches),
        "both": Task(both, before, batches),
        "step": Task(both, before, batches),
    }[which]
