"""The Sinkhorn-Knopp kernels on a GPU: what ``gpu.py`` verifies and times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from fastssl.ops import registry
from fastssl.ops.sinkhorn import reference

from . import sinkhorn_knopp
from .cases import DTYPES, Case
from .gpu_family import GpuFamily, Target, Verification

EPS = torch.finfo(torch.float32).eps


@dataclass
class LogSums:
    """``potential_logsumexp`` of random logits inside NaN, judged against float64."""

    logits: Tensor
    potential: Tensor | None
    dim: int
    backend: ModuleType

    SCALE = 20.0

    def solve(self) -> Sequence[Tensor]:
        return (self.backend.potential_logsumexp(self.logits, self.potential, scale=self.SCALE, dim=self.dim),)

    def judge(self, results: Sequence[Tensor]) -> Mapping[str, float]:
        truth, eager = (
            reference.potential_logsumexp(
                self.logits.to(dtype),
                None if self.potential is None else self.potential.to(dtype),
                scale=self.SCALE,
                dim=self.dim,
            )
            for dtype in (torch.float64, torch.float32)
        )
        terms = truth.abs() + self.SCALE * self.logits.double().abs().amax(self.dim)
        allowed = 2 * (eager - truth).abs().max() + 8 * EPS * terms
        return {"log-sums": float(((results[0] - truth).abs() / allowed).max())}


def _log_sums(
    rows: int, columns: int, dim: int, given: bool, offset: float, target: Target, dtype: str, seed: int
) -> LogSums:
    generator = torch.Generator().manual_seed(seed)
    around = torch.full((rows + 2, columns + 5), float("nan"), dtype=DTYPES[dtype][0], device=target.device)
    logits = around[1:-1, 2:-3]
    logits.copy_(torch.randn(rows, columns, generator=generator) + offset)
    potential = 5 * torch.randn((rows, columns)[dim], generator=generator).to(target.device) if given else None
    return LogSums(logits, potential, dim, registry.backend_module("fastssl.ops.sinkhorn", target.backend))


def verifications(target: Target) -> list[Verification]:
    rows = 5 if target.small else 333
    return [
        Verification(
            f"{rows} x {columns}, dim {dim}, {'with' if given else 'without'} potentials, logits around {offset:g}",
            dtype,
            partial(_log_sums, rows, columns, dim, given, offset, target, dtype),
        )
        for dtype in ("float32", "bfloat16", "float16")
        for columns, given, offset in ((3000, True, 0.0), (4096, True, 0.0), (4096, False, 1e4), (1, True, 0.0))
        for dim in (0, 1)
    ]


def cases(target: Target) -> list[Case]:
    if target.small:
        return [_case(64, 8, "float32", target.device)]
    wanted = [(131072, 128, "bfloat16"), (65536, 128, "float32"), (3000, 512, "bfloat16"), (131072, 2048, "bfloat16")]
    return [_case(k, b, dtype, target.device) for k, b, dtype in wanted]


def _case(k: int, b: int, dtype: str, device: str) -> Case:
    return Case.named({"K": k, "B": b, "temperature": 0.05}, dtype, device)


def baselines(case: Case) -> list[str]:
    return ["eager", "eager-log", *(["compiled", "compiled-log"] if case.device == "cuda" else [])]


GPU = GpuFamily(sinkhorn_knopp.FAMILY, verifications, cases, baselines)
