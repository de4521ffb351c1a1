"""What a family of operations tells ``gpu.py``: a module ``gpu_<family>`` that holds ``GPU``, a ``GpuFamily``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from .cases import Case, Family
from .jobs import Job


@dataclass(frozen=True)
class Target:
    """Whose kernels are looked at.

    Attributes:
        device: "cuda", or "cpu" for a rehearsal.
        backend: of fastssl, as ``fastssl.backend`` takes it.
        small: small problems that need the same kernels: to compile them, and for a rehearsal.
    """

    device: str = "cuda"
    backend: str = "triton"
    small: bool = False

    @property
    def provider(self) -> str:
        """What ``fastssl bench`` calls the backend."""
        return f"fastssl-{self.backend}"


class Problem(Protocol):
    """Inputs, and what is right for them."""

    def solve(self) -> Sequence[Tensor]:
        """Run the kernels."""

    def judge(self, results: Sequence[Tensor]) -> Mapping[str, float]:
        """Error over what is allowed, by output; above 1, or no number, is wrong. Raises for other defects."""


@dataclass(frozen=True)
class Verification:
    """One problem that the kernels have to solve.

    Attributes:
        title: what is special about it.
        dtype: a name from ``cases.DTYPES``.
        build: makes the problem from a seed.
    """

    title: str
    dtype: str
    build: Callable[[int], Problem]


@dataclass(frozen=True)
class GpuFamily:
    """One family's part of the GPU benchmark.

    Attributes:
        family: of ``fastssl bench``: inputs, truth, work and providers.
        verifications: the same number, in the same order and needing the same kernels, for small targets and large.
        cases: what is timed, the most important first, since time may run out.
        baselines: the providers that fastssl is compared with in a case.
        compiled_sizes: a case's sizes made small, which need the same kernels; None: the family's ``tiny_sizes`` do.
        backends: that have kernels for a CUDA device, the one that is judged first.
        others: what else is measured; a result has "lines" for the report.
    """

    family: Family
    verifications: Callable[[Target], Sequence[Verification]]
    cases: Callable[[Target], Sequence[Case]]
    baselines: Callable[[Case], Sequence[str]]
    compiled_sizes: Callable[[Mapping[str, float]], dict[str, float]] | None = None
    backends: Callable[[], Sequence[str]] = lambda: ("triton",)
    others: Callable[[Target], Sequence[Job]] = lambda target: ()

    def targets(self, target: Target) -> list[Target]:
        """A target for each of the family's backends on a CUDA device; a rehearsal has the one that it is given."""
        if target.device != "cuda":
            return [target]
        return [replace(target, backend=backend) for backend in self.backends()]


def load(name: str) -> GpuFamily:
    """A family's part by its name."""
    found: Any = importlib.import_module(f"{__package__}.gpu_{name}")
    return found.GPU
