"""Which implementation serves an operation: chosen by the machine, or forced by the user.

==========  =====================================================================================
reference   plain PyTorch that stores every matrix: documentation and truth, for tests and benchmarks
chunked     plain PyTorch in blocks of rows, O(N D) memory: serves where no kernel can
cpp         C++ kernels on the CPU
triton      Triton kernels on CUDA devices (on CPU tensors under Triton's interpreter)
cuda        CUDA C++ kernels on CUDA devices, for operations that gain by them
==========  =====================================================================================

Without a forced choice each operation takes the first of ``PREFERENCE[device]`` that can serve the call.
"""

from __future__ import annotations

import os
from types import TracebackType

BACKENDS = ("reference", "chunked", "cpp", "triton", "cuda")
PREFERENCE = {"cpu": ("cpp", "chunked"), "cuda": ("cuda", "triton", "chunked")}
ELSEWHERE = ("chunked",)  # any other device
ENVIRONMENT_VARIABLE = "FASTSSL_BACKEND"


def _checked(name: str | None, where: str) -> str:
    if name is not None and name not in BACKENDS:
        raise ValueError(f"{where}: the backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name or ""


_forced = _checked(os.environ.get(ENVIRONMENT_VARIABLE) or None, ENVIRONMENT_VARIABLE)


def forced() -> str:
    """The backend that the user forced, or an empty string."""
    return _forced


class backend:
    """Force the backend of every operation, for the process or for a ``with`` block.

    The choice is global to the process and is saved with the graph: a backward pass takes the backend of its forward
    pass. ``FASTSSL_BACKEND=name`` in the environment does the same from outside.

    Args:
        name: "reference", "chunked", "cpp", "triton" or "cuda"; None leaves the choice to each operation.

    Raises:
        ValueError: for any other name. An operation raises RuntimeError when the forced backend cannot serve it.

    Example:
        >>> with fastssl.backend("chunked"):
        ...     loss = fastssl.functional.nt_xent(z0, z1, 0.1)
    """

    def __init__(self, name: str | None) -> None:
        global _forced
        self._previous = _forced
        self._name = _forced = _checked(name, "backend")

    def __enter__(self) -> backend:
        global _forced
        _forced = self._name
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _forced
        _forced = self._previous
