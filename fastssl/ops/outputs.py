"""Memory of large outputs on the CPU, kept between calls.

A gradient over tens of thousands of prototypes takes hundreds of megabytes, and the first write into fresh memory
takes longer than the kernel: the system clears each page as it is touched. PyTorch gives such memory back to the
system when a tensor dies and asks for it again in the next step. Here the memory of the last outputs is remembered, and
given out again once no tensor uses it any more. ``fastssl.release_workspaces()`` forgets it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from .cpp import kernels

SMALLEST = 4 << 20  # bytes; smaller memory is cheap to get
KEPT = 512 << 20  # bytes that are remembered at most

# Address -> the bytes there, oldest first. Taking one out is atomic, so that no two threads get the same.
_kept: dict[int, Tensor] = {}


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A contiguous tensor, its numbers undefined."""
    size = math.prod(shape) * dtype.itemsize
    if size < SMALLEST or torch.are_deterministic_algorithms_enabled():  # which fills new memory, where asked to
        return torch.empty(shape, dtype=dtype)
    memory = _take(size)
    if memory is None:
        memory = torch.empty(size, dtype=torch.uint8)
        kernels().prefer_huge_pages(memory.data_ptr(), size)
    # Not a view of `memory`: outputs that live at different times share no version counter.
    out = torch.empty(0, dtype=dtype)
    out.set_(memory.untyped_storage(), 0, tuple(shape))  # type: ignore[call-overload]
    _keep(memory)  # only now: before, it would look free to another thread
    return out


def release() -> int:
    """Forget the memory that no tensor uses; returns the bytes freed."""
    freed = 0
    for address in list(_kept):
        memory = _kept.pop(address, None)
        if memory is not None and _is_free(memory):
            freed += memory.nbytes
    return freed


def _take(size: int) -> Tensor | None:
    for address, memory in list(_kept.items()):
        if memory.nbytes == size:
            taken = _kept.pop(address, None)
            if taken is not None and _is_free(taken):
                return taken
            if taken is not None:
                _kept[address] = taken
    return None


def _keep(memory: Tensor) -> None:
    _kept[memory.data_ptr()] = memory
    while sum(each.nbytes for each in list(_kept.values())) > KEPT:
        _kept.pop(next(iter(_kept)), None)


def _is_free(memory: Tensor) -> bool:
    """Whether nothing but this tensor refers to its storage. Memory that processes share is never free."""
    return _references(memory) == _ALONE and not memory.untyped_storage().is_shared()


def _references(memory: Tensor) -> tuple[int, int]:
    """How many refer to a tensor's storage: in C++ and in Python, the names in here included."""
    storage = memory.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata), sys.getrefcount(storage)


_ALONE = _references(torch.empty(1))
