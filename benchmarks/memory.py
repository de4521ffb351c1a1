"""Peak extra memory of one forward and backward pass.

On CUDA: the highest number of bytes in PyTorch's allocator during the pass (``torch.cuda.max_memory_allocated``) over
what was allocated before it. On the CPU nothing counts allocations of all libraries, so the pass runs in a fresh
process and the kernel's own record of its peak resident memory (VmHWM in /proc/self/status) is read:

1. the process loads the provider and runs it at tiny sizes, so that libraries, thread pools and autograd are in place;
2. the inputs are made, free memory goes back to the system (``malloc_trim``), and the resident size is the baseline;
3. the first pass at the full size runs, then a second one; peak - baseline is the result.

So the result counts what the pass needs beyond its inputs, the gradients of the inputs and the workspaces that a
library keeps included, in pages that were touched, exact to about a megabyte. A provider that compiles does so for the
exact size, which would drown the rest: it gets one full pass, and a ``malloc_trim``, before the baseline.

The peak cannot be taken back without privileges, and loading may have left it above the baseline. Pages are touched
until the resident size reaches the peak; from there every further page shows.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import subprocess
import sys
from typing import Any

import torch
from torch import Tensor

from .cases import Case, Family, Function, Unavailable, clear_gradients, load, outputs, ready, step

RESULT = "fastssl-memory "  # marks the line that carries the result among whatever libraries print
TIMEOUT_SECONDS = 600


def peak_extra_bytes(
    family: Family, provider: str, case: Case, function: Function | None = None, *, seed: int = 0
) -> int:
    """Peak memory of a forward and backward pass beyond its inputs, in bytes.

    Args:
        family: whose.
        provider: its name.
        case: the problem.
        function: what the provider built for it, so that it is not compiled twice; a fresh process builds its own.
        seed: of the inputs.

    Raises:
        Unavailable: saying why it cannot be measured here.
    """
    if case.device == "cuda":
        return _on_cuda(function or family.providers[provider].function(case), family.inputs(case, seed))
    if _status("VmHWM") is None:
        raise Unavailable("peak memory is read from Linux's /proc")
    request = {
        "family": family.module,
        "provider": provider,
        "case": case.to_json(),
        "threads": torch.get_num_threads(),
        "seed": seed,
    }
    command = [sys.executable, "-m", "fastssl.benchmarks.memory", json.dumps(request)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"took more than {TIMEOUT_SECONDS} s") from error
    for line in child.stdout.splitlines():
        if line.startswith(RESULT):
            return int(line.removeprefix(RESULT))
    last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
    raise Unavailable(f"the measuring process failed: {last}")


def available_bytes(device: str) -> float:
    """Memory that a provider may take; infinite where the system does not tell."""
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
    try:
        with open("/proc/meminfo") as lines:
            fields = dict(line.split(":") for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024.0
    except (OSError, KeyError):
        return float("inf")


def _on_cuda(function: Function, inputs: tuple[Tensor, ...]) -> int:
    outputs(function, inputs)  # compiles; cuBLAS takes its workspace
    ready(function, inputs)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(function, inputs)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    clear_gradients(inputs)
    return peak


def _status(field: str) -> int | None:
    """A size from /proc/self/status, in bytes."""
    try:
        with open("/proc/self/status") as lines:
            for line in lines:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _trim() -> None:
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)


def _child(request: dict[str, Any]) -> int:
    torch.set_num_threads(request["threads"])
    family = load(request["family"])
    provider = family.providers[request["provider"]]
    case = Case.from_json(request["case"])
    tiny = Case(family.tiny_sizes(case.sizes), case.dtype, case.device)
    outputs(provider.function(tiny), family.inputs(tiny, request["seed"]))
    function = provider.function(case)
    inputs = family.inputs(case, request["seed"])
    ready(function, inputs)  # copies of inputs that it may write over
    if provider.compiles:
        outputs(function, inputs)
    _trim()
    ballast = _raise_to_peak()
    baseline = _status("VmRSS")
    for _ in range(2):
        step(function, inputs)
        ready(function, inputs)
    peak = _status("VmHWM")
    assert baseline is not None and peak is not None
    ballast.close()
    return max(0, peak - baseline)


def _raise_to_peak() -> mmap.mmap:
    """Pages of our own that lift the resident size to the highest it ever was."""
    resident, peak = _status("VmRSS"), _status("VmHWM")
    assert resident is not None and peak is not None
    size = max(mmap.PAGESIZE, peak - resident)
    ballast = mmap.mmap(-1, size)
    for page in range(0, size, mmap.PAGESIZE):
        ballast[page] = 1
    return ballast


if __name__ == "__main__":
    print(f"\n{RESULT}{_child(json.loads(sys.argv[1]))}", flush=True)
