"""Jobs in processes of their own that keep to a time budget, and what became of each."""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from .worker import Worker, WorkerDied, WorkerError

Results = dict[str, Any]


class Deadline:
    """A time budget: seconds from now."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


@dataclass(frozen=True)
class Job:
    """A call in a worker process.

    Attributes:
        title: for people.
        function: defined at module level; returns a dictionary, in which "problems" lists what is wrong.
        arguments: of the function.
        required: whether the section fails when this job raises or is missing.
    """

    title: str
    function: Callable[..., Results]
    arguments: tuple[Any, ...]
    required: bool = True


@dataclass
class Outcome:
    """What became of a job: "ok", "wrong" (it has problems), "failed" (it raised, died or took too long), "missing"."""

    title: str
    required: bool
    status: str = "missing"
    problems: list[str] = field(default_factory=list)
    result: Results = field(default_factory=dict)

    def to_json(self) -> Results:
        about = {"title": self.title, "required": self.required, "status": self.status, "problems": self.problems}
        return {**about, **self.result}


def run_jobs(
    jobs: Sequence[Job],
    deadline: Deadline,
    *,
    workers: int = 1,
    limit: float = 60.0,
    say: Callable[[str], None] = print,
) -> list[Outcome]:
    """Run jobs until they are done or the time is up.

    Args:
        jobs: in the order in which they start.
        deadline: of all; a job that runs then is stopped and counts as missing.
        workers: processes that work at the same time. One that crashed or took too long is replaced.
        limit: seconds that one job may take, so that a kernel that hangs costs no more than that.
        say: gets a line for every job that is not ok.
    """
    todo = deque(enumerate(jobs))
    done = [Outcome(job.title, job.required) for job in jobs]

    def serve() -> None:
        worker = None
        try:
            while todo and deadline.left > 0:
                try:
                    number, job = todo.popleft()
                except IndexError:  # another thread took it
                    break
                worker = worker or Worker()
                healthy = _run(worker, job, done[number], deadline, limit)
                if done[number].status != "ok":
                    say(f"{done[number].status.upper()} {job.title}: {'; '.join(done[number].problems)}"[:2000])
                if not healthy:
                    worker.kill()
                    worker = None
        finally:
            if worker is not None:
                worker.close()

    with ThreadPoolExecutor(workers) as pool:
        for served in [pool.submit(serve) for _ in range(min(workers, len(jobs)))]:
            served.result()
    return done


def _run(worker: Worker, job: Job, outcome: Outcome, deadline: Deadline, limit: float) -> bool:
    """Fill in a job's outcome. Returns whether the worker can take another job."""
    try:
        outcome.result = worker.call(_in_worker, job, timeout=min(limit, deadline.left))
    except TimeoutError as error:
        outcome.status = "missing" if deadline.left <= 0 else "failed"
        outcome.problems = ["cut off at the end of the section" if deadline.left <= 0 else str(error)]
        return False
    except WorkerDied as error:
        outcome.status, outcome.problems = "failed", [str(error)]
        return False
    except WorkerError as error:
        outcome.status, outcome.problems = "failed", [str(error).strip().splitlines()[-1]]
        outcome.result = {"traceback": str(error)}
        return "CUDA" not in str(error)  # after some errors a process can do nothing more on the device
    outcome.problems = outcome.result.pop("problems", [])
    outcome.status = "wrong" if outcome.problems else "ok"
    return not outcome.result.pop("device_lost", False)


def _in_worker(job: Job) -> Results:
    result = job.function(*job.arguments)
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:  # left by a provider that failed
            result.setdefault("problems", []).append(str(error).splitlines()[0])
            result["device_lost"] = True
        else:
            gc.collect()
            torch.cuda.empty_cache()  # what one worker keeps, the others on the same device lack
    return result
