"""Interleaved timing with spread.

Competitors take turns: every round calls each of them for a while, and the order moves on by one from round to round,
so that a slow minute of the machine hits all of them alike. The first call of a turn is not counted (it refills caches
after another competitor). The median of all calls is the result, the quartiles are its spread.

CPU calls are timed one by one with the clock. CUDA calls are timed on the device by events around each call, launched
back to back, so that a call's time includes waiting for its launches where they are the bottleneck.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

MAX_CALLS_PER_TURN = 50
MIN_ROUNDS = 3
# Calls under a millisecond get this many samples at least, whatever the budget: their medians are the unsteady ones.
SAMPLES_OF_SHORT_CALLS = 200
SHORT_CALL = 1e-3


@dataclass(frozen=True)
class Task:
    """What is timed. Both functions get the number of the call, so that they can take fresh inputs from a set.

    Attributes:
        run: timed; what it returns is dropped inside the timed region, because freeing is part of the work.
        prepare: called before each ``run``, not timed.
        batches: how many times the work one ``run`` does; a sample is its time over this.
    """

    run: Callable[[int], object]
    prepare: Callable[[int], object] = lambda call: None
    batches: int = 1


@dataclass
class Timing:
    """Seconds of every call of one task."""

    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def quantile(self, q: float) -> float:
        """The sample below which about a fraction ``q`` of the calls lies."""
        ordered = sorted(self.samples)
        return ordered[round(q * (len(ordered) - 1))]

    def to_json(self) -> dict[str, Any]:
        return {
            "median_s": self.median,
            "q25_s": self.quantile(0.25),
            "q75_s": self.quantile(0.75),
            "min_s": min(self.samples),
            "samples_s": [float(f"{sample:.4g}") for sample in self.samples],
        }


def interleave(
    tasks: Mapping[str, Task], *, device: str = "cpu", rounds: int = 7, budget: float = 2.0
) -> dict[str, Timing]:
    """Time the tasks against each other.

    Args:
        tasks: by name. Each must have run before: compilation and first-call work are not for here.
        device: where they compute, "cpu" or "cuda".
        rounds: turns that each task gets; a task that is over its budget leaves after ``MIN_ROUNDS``.
        budget: seconds of timed calls per task, about; every turn makes at least one call. No less than a short call
            needs for its samples.

    Returns:
        The timings by name, in the order of ``tasks``.
    """
    turn = _cuda_turn if torch.device(device).type == "cuda" else _cpu_turn
    budget = max(budget, SAMPLES_OF_SHORT_CALLS * SHORT_CALL)
    most = max(MAX_CALLS_PER_TURN, math.ceil(SAMPLES_OF_SHORT_CALLS / rounds))
    timings = {name: Timing() for name in tasks}
    calls = dict.fromkeys(tasks, 0)
    names = list(tasks)
    for number in range(rounds):
        first = number % len(names) if names else 0
        for name in names[first:] + names[:first]:
            timing = timings[name]
            if number >= MIN_ROUNDS and sum(timing.samples) * tasks[name].batches >= budget:
                continue
            timing.samples += turn(tasks[name], calls[name], budget / rounds, most)
            calls[name] += 1 + most
    return timings


def _cpu_turn(task: Task, call: int, seconds: float, most: int) -> list[float]:
    task.prepare(call)
    task.run(call)
    samples: list[float] = []
    while not samples or (sum(samples) * task.batches < seconds and len(samples) < most):
        call += 1
        task.prepare(call)
        start = time.perf_counter()
        task.run(call)
        samples.append((time.perf_counter() - start) / task.batches)
    return samples


def _cuda_turn(task: Task, call: int, seconds: float, most: int) -> list[float]:
    task.prepare(call)
    torch.cuda.synchronize()
    start = time.perf_counter()
    task.run(call)
    torch.cuda.synchronize()
    once = time.perf_counter() - start
    count = max(1, min(most, int(seconds / max(once, 1e-6))))
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
    for begin, end in events:
        call += 1
        task.prepare(call)
        begin.record()
        task.run(call)
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) * 1e-3 / task.batches for begin, end in events]


class OtherLoad:
    """How much of the machine other processes used while a ``with`` block ran (Linux).

    Attributes:
        share: fraction of all cores, 0 to 1; None where the system does not tell.
    """

    share: float | None = None

    def __enter__(self) -> OtherLoad:
        self._before = _cpu_seconds()
        return self

    def __exit__(self, *exception: object) -> None:
        after = _cpu_seconds()
        if self._before is None or after is None:
            return
        busy, own, total = (b - a for a, b in zip(self._before, after, strict=True))
        self.share = min(1.0, max(0.0, (busy - own) / total)) if total > 0 else None


def _cpu_seconds() -> tuple[float, float, float] | None:
    """Seconds that all cores were busy, that this process and its children were, and that all cores had."""
    try:
        with open("/proc/stat") as stat:
            fields = [int(field) for field in stat.readline().split()[1:9]]
    except OSError:
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    idle = fields[3] + fields[4]
    own = sum(os.times()[:4]) + sum(_ticks(child.pid) for child in multiprocessing.active_children()) / ticks
    return (sum(fields) - idle) / ticks, own, sum(fields) / ticks


def _ticks(process: int | None) -> int:
    """That a process which lives was busy; ``os.times`` counts children from their end."""
    try:
        with open(f"/proc/{process}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])
