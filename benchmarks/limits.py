"""What this machine can do at best, measured in the same run: matrix product and copy.

The share that a row reports is the time that its work would take at these rates over the time it took. The work is
counted the same for every provider (``Family.work``). On the CPU a matrix product has two libraries behind it, whose
speeds can differ by a factor of two: ``torch.mm`` takes MKL (or OpenBLAS) for float32, while oneDNN serves bfloat16 and
the tensors that ``to_mkldnn`` makes. Both are measured, the better one is the limit. A hand-written kernel can still
exceed it: then the limit says something about the libraries, not about the kernel.

A copy has two forms on the CPU as well. What PyTorch writes passes through the caches, and each line of it is read
before it is overwritten; the C library's ``memcpy`` streams past them. The better one is the limit of whoever writes
results to memory of their own. Who writes them over its inputs has lines at hand that it read anyway, and is held
against an operation in place.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .cases import Work, precision
from .timing import Task, interleave

PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 32}


class Limits:
    """Measured ceilings of one device.

    Attributes:
        products: FLOP/s by dtype (as ``cases.DTYPES`` names it), then by the library or function that reached it.
        moves: bytes per second of going through memory, read and written bytes both counted: "in place", and ways to
            copy by the function that reached it.
    """

    IN_PLACE = "in place"

    def __init__(self, device: str, dtypes: Sequence[str], *, budget: float = 1.0) -> None:
        self.products: dict[str, dict[str, float]] = {}
        self.moves: dict[str, float] = {}
        self._measure(device, dtypes, budget)

    def _measure(self, device: str, dtypes: Sequence[str], budget: float) -> None:
        size = PRODUCT_SIZE[device]
        tasks: dict[str, Task] = {}
        for name in dict.fromkeys(dtypes):
            with precision(name) as dtype:
                a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            tasks[f"{name} torch.mm"] = Task(partial(_product, name, torch.mm, a, b))
            if device == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
                tasks[f"{name} oneDNN"] = Task(partial(_product, name, F.linear, a.to_mkldnn(), b.to_mkldnn()))
        source = torch.randint(0, 127, (COPY_BYTES[device],), dtype=torch.int8, device=device).view(torch.float32)
        target = torch.empty_like(source)
        moves = {"torch.copy_": Task(lambda _: target.copy_(source)), self.IN_PLACE: Task(lambda _: target.neg_())}
        with ThreadPoolExecutor(threads := torch.get_num_threads()) as pool:
            if device == "cpu":
                moves["memcpy"] = Task(lambda _: _memcpy(target, source, pool, threads))
            tasks |= moves
            for task in tasks.values():
                task.run(0)
            timings = interleave(tasks, device=device, rounds=5, budget=budget)
        for how in moves:
            self.moves[how] = 2 * COPY_BYTES[device] / timings.pop(how).median
        for label, timing in timings.items():
            name, how = label.split(" ", 1)
            self.products.setdefault(name, {})[how] = 2 * size**3 / timing.median

    @property
    def copy(self) -> float:
        """The best bytes per second of a copy."""
        return max(rate for how, rate in self.moves.items() if how != self.IN_PLACE)

    def product(self, dtype: str) -> float:
        """The best FLOP/s for a dtype."""
        return max(self.products[dtype].values())

    def share(self, work: Work, seconds: float, dtype: str, *, in_place: bool = False) -> float:
        """The part of ``seconds`` that the work would take at the limit that binds it."""
        return self.floor(work, dtype, in_place=in_place) / seconds

    def floor(self, work: Work, dtype: str, *, in_place: bool = False) -> float:
        """Seconds that the work takes at the limit that binds it.

        Args:
            work: what has to be done.
            dtype: of its products.
            in_place: the results take the inputs' place.
        """
        rate = max(self.copy, self.moves[self.IN_PLACE]) if in_place else self.copy
        return max(work.flops / self.product(dtype), work.bytes / rate)

    def to_json(self) -> dict[str, Any]:
        return {
            "product_flops_per_s": self.products,
            "copy_bytes_per_s": self.copy,
            "move_bytes_per_s": self.moves,
        }


def _product(dtype: str, function: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor, call: int) -> Tensor:
    with precision(dtype):
        return function(a, b)


def _memcpy(target: Tensor, source: Tensor, pool: ThreadPoolExecutor, threads: int) -> None:
    """A copy by the C library, a part in each thread; the interpreter's lock is released meanwhile."""
    size = source.nbytes
    part = -(-size // threads)
    starts = range(0, size, part)

    def copy(start: int) -> None:
        count = min(part, size - start)
        ctypes.memmove(target.data_ptr() + start, source.data_ptr() + start, count)

    for done in [pool.submit(copy, start) for start in starts]:
        done.result()
