"""The nearest-neighbour kernels, and KoLeo made of them, on a GPU: what ``gpu.py`` verifies and times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from fastssl.ops import registry
from fastssl.ops.neighbors import reference

from . import koleo
from .cases import DTYPES, Case
from .gpu_family import GpuFamily, Target, Verification


@dataclass
class Neighbors:
    """Nearest neighbours among vectors of small integers inside NaN: products are exact, and many are equal."""

    q: Tensor
    k: Tensor | None
    count: int
    backend: ModuleType

    def solve(self) -> Sequence[Tensor]:
        return (self._of(self.backend),)

    def judge(self, results: Sequence[Tensor]) -> Mapping[str, float]:
        wrong = (results[0] != self._of(reference)).any(1)
        return {"rows": 0.0 if not bool(wrong.any()) else float("inf")}

    def _of(self, backend: ModuleType) -> Tensor:
        rules = {"exclude_self": self.k is None, "row_offset": 0}
        return backend.nearest_neighbors(self.q, self.k, count=self.count, **rules)


def _neighbors(m: int, n: int | None, d: int, count: int, target: Target, dtype: str, seed: int) -> Neighbors:
    generator = torch.Generator().manual_seed(seed)

    def vectors(rows: int) -> Tensor:
        around = torch.full((rows + 2, d + 5), float("nan"), dtype=DTYPES[dtype][0], device=target.device)
        inside = around[1:-1, 2:-3]
        inside.copy_(torch.randint(-2, 3, (rows, d), generator=generator))
        return inside

    backend = registry.backend_module("fastssl.ops.neighbors", target.backend)
    return Neighbors(vectors(m), None if n is None else vectors(n), count, backend)


def verifications(target: Target) -> list[Verification]:
    m, n = (70, 90) if target.small else (1000, 5000)
    return [
        Verification(
            f"{m} rows, {columns or 'the same'} columns, D {d}, {count} neighbours",
            dtype,
            partial(_neighbors, m, columns, d, count, target, dtype),
        )
        for dtype in ("float32", "bfloat16", "float16", "tf32")
        if target.device == "cuda" or dtype != "tf32"
        for columns, d, count in ((None, 256, 1), (None, 50, 5), (n, 384, 1), (n, 384, 16), (n, 24, 40))
    ]


def cases(target: Target) -> list[Case]:
    if target.small:
        return [_case(32, 16, "float32", target.device)]
    wanted = [(64, 1024, "float32"), (1024, 384, "bfloat16"), (4096, 1024, "float32"), (16384, 1024, "bfloat16")]
    return [_case(n, d, dtype, target.device) for n, d, dtype in wanted]


def _case(n: int, d: int, dtype: str, device: str) -> Case:
    return Case.named({"N": n, "D": d}, dtype, device)


def baselines(case: Case) -> list[str]:
    return ["eager", "chunked", *(["compiled"] if case.device == "cuda" else [])]


GPU = GpuFamily(koleo.FAMILY, verifications, cases, baselines)
