"""The soft-target kernels, and DINO's loss made of them, on a GPU: what ``gpu.py`` verifies and times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastssl.ops import registry
from fastssl.ops.soft_target import reference

from . import soft_target
from .cases import DTYPES, Case
from .gpu_family import GpuFamily, Target, Verification
from .soft_target_problems import LAYOUTS, Problem, judge, solve

VERIFIED = ("float32", "bfloat16", "float16")


# --- Verification ---------------------------------------------------------------------------------------------------


def verifications(target: Target) -> list[Verification]:
    return [
        Verification(title, dtype, partial(build, target, dtype))
        for dtype in VERIFIED
        for title, build in (
            *_against_float64(target, dtype),
            ("NaN", _with_nan),
            ("the step is both operators", _step),
        )
    ]


def _module(target: Target) -> ModuleType:
    return registry.backend_module("fastssl.ops.soft_target", target.backend)


@dataclass
class Against:
    """A random problem, judged against float64. ``inplace``: gradients take the logits' place."""

    arguments: Mapping[str, Any]
    backend: ModuleType
    inplace: bool

    def solve(self) -> Sequence[Tensor]:
        return solve(Problem(**self.arguments), self.backend, inplace=self.inplace)

    def judge(self, results: Sequence[Tensor]) -> Mapping[str, float]:
        return judge(Problem(**self.arguments), results)


def _against(arguments: Mapping[str, Any], inplace: bool, target: Target, dtype: str, seed: int) -> Against:
    about = {**arguments, "dtype": DTYPES[dtype][0], "device": target.device, "seed": seed}
    return Against(about, _module(target), inplace)


def _against_float64(target: Target, dtype: str) -> list[tuple[str, Any]]:
    """Numbers of columns that fill the chunks and that do not; everything that may be given, and every layout.

    Small and large problems differ in the number of images only: that changes no kernel.
    """
    b = 3 if target.small else 45
    dino: dict[str, Any] = {"s": 10, "t": 2, "b": b}
    everything = {"potential": "per teacher", "row_potential": True, "weight": True}
    problems: list[dict[str, Any]] = [{**dino, "k": k} for k in (1, 1000, 3000, 4096)]
    problems += [{**dino, "k": 2056, "layout": layout} for layout in LAYOUTS]
    problems += [{**dino, "k": k, **everything} for k in (1000, 4096)]
    problems += [{**dino, "k": 3000, "teacher_dtype": torch.float32, "layout": "apart"}]
    if dtype == "float32":  # in 16 bits, logits that far from 0 are all equal
        problems += [{**dino, "k": 3000, "offset": offset} for offset in (1e4, -1e4)]
    problems += [{**dino, "k": 3000, "spread": 10.0}]
    problems += [{"s": 8, "t": t, "b": b, "k": 2048, "skip_same_view": t < 3} for t in (1, 3, 4, 5, 9)]
    problems += [{"s": 17, "t": 2, "b": b, "k": 2048, "layout": "apart"}]
    rows: dict[str, Any] = {"s": 1, "t": 1, "b": 9 if target.small else 3000, "skip_same_view": False}
    problems += [{**rows, "k": k, "weight": weight} for k in (1000, 8192) for weight in (False, True)]
    found = [(str(problem), partial(_against, problem, False)) for problem in problems]
    in_place: list[dict[str, Any]] = [{**dino, "k": 3000, "weight": True}, {**dino, "k": 4096, "layout": "apart"}]
    return found + [(f"in place {problem}", partial(_against, problem, True)) for problem in in_place]


@dataclass
class WithNan:
    """NaN in one logit of a student and in one of a teacher: in every number that contains them and in no other."""

    problem: Problem
    backend: ModuleType

    def solve(self) -> Sequence[Tensor]:
        return solve(self.problem, self.backend)

    def judge(self, results: Sequence[Tensor]) -> Mapping[str, float]:
        names = ("loss", "students' log-sums", "teachers' log-sums", "column sums", "gradient")
        pairs = zip(names, results, solve(self.problem, reference), strict=True)
        return {name: 0.0 if torch.equal(a.isnan(), b.isnan()) else float("inf") for name, a, b in pairs}


def _with_nan(target: Target, dtype: str, seed: int) -> WithNan:
    # every student is paired with every teacher: a weight of 0 times NaN would be NaN in the reference
    problem = Problem(s=3, b=5, k=3000, dtype=DTYPES[dtype][0], device=target.device, seed=seed, skip_same_view=False)
    problem.student[0][2, 1, 2999] = float("nan")
    problem.teacher[0][1, 3, 1024] = float("nan")
    return WithNan(problem, _module(target))


@dataclass
class Step:
    """``soft_target_step`` gives the bits that its two parts give."""

    problem: Problem
    backend: ModuleType

    FACTOR = 0.25

    def solve(self) -> Sequence[Tensor]:
        inputs = self.problem.inputs()
        loss, column_sum, gradients = self.backend.soft_target_step(
            *inputs, factor=self.FACTOR, column_sum=True, **self.problem.rules
        )
        return loss, column_sum, *gradients

    def judge(self, results: Sequence[Tensor]) -> Mapping[str, float]:
        self.problem.d_loss.fill_(self.FACTOR)
        losses, _, _, column_sum, *gradients = solve(self.problem, self.backend)
        parts = {"loss": self.FACTOR * losses.sum(), "column sums": column_sum, "gradient": gradients[0]}
        return {
            name: 0.0 if torch.equal(got, part) else float("inf")
            for (name, part), got in zip(parts.items(), results, strict=True)
        }


def _step(target: Target, dtype: str, seed: int) -> Step:
    problem = Problem(b=5, k=2048, dtype=DTYPES[dtype][0], device=target.device, seed=seed)
    return Step(problem, _module(target))


# --- Timing ---------------------------------------------------------------------------------------------------------


def cases(target: Target) -> list[Case]:
    """The bars first: K = 65536, B = 64 to 256, bfloat16. Then the other dtypes, DINO's sizes large and small."""
    if target.small:
        return [_case(128, 2, 4, dtype, target.device) for dtype in ("float32", "bfloat16")]
    wanted = [(65536, b, 10, "bfloat16") for b in (64, 256, 128)]
    wanted += [(65536, b, 10, "float32") for b in (64, 256)]
    wanted += [(131072, 64, 10, "bfloat16"), (65536, 1024, 10, "bfloat16"), (8192, 64, 10, "bfloat16")]
    wanted += [(65536, 64, 10, "float16"), (3000, 256, 8, "bfloat16"), (65536, 256, 2, "bfloat16")]
    wanted += [(8192, 64, 10, "float32"), (65536, 16, 10, "bfloat16")]
    return [_case(k, b, s, dtype, target.device) for k, b, s, dtype in wanted]


def _case(k: int, b: int, s: int, dtype: str, device: str) -> Case:
    return Case.named({"K": k, "B": b, "S": s, "T": 2}, dtype, device)


def baselines(case: Case) -> list[str]:
    k, b = case.sizes["K"], case.sizes["B"]
    names = ["fastssl-inplace", "eager", "eager-collapsed", "chunked"]
    # Compiling takes long: where the bars are, and once in float32.
    if case.device == "cuda" and k == 65536 and b in ((64, 256) if case.dtype == torch.bfloat16 else (64,)):
        names += ["compiled", "compiled-lean", "compiled-collapsed", "compiled-step"]
    return names


def compiled_sizes(sizes: Mapping[str, float]) -> dict[str, float]:
    """The number of columns decides how the kernels compile, the number of images does not."""
    return {**sizes, "B": min(sizes["B"], 2)}


GPU = GpuFamily(soft_target.FAMILY, verifications, cases, baselines, compiled_sizes)
