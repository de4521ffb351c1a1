"""Losses as users call them, on a GPU: what those made of the pairwise kernels have `gpu.py` verify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from . import pairwise_cases, verify
from .cases import DTYPES, Case, Family, outputs
from .gpu_family import Target, Verification


@dataclass
class WholeLoss:
    """Loss and gradients, and the loss alone, of rows inside NaN; the family's own truth judges."""

    family: Family
    case: Case
    inputs: Sequence[Tensor]
    provider: str

    def solve(self) -> Sequence[Tensor]:
        function = self.family.providers[self.provider].build(self.case)
        results = [torch.tensor(float("nan")) if x is None else x for x in outputs(function, self.inputs)]
        with torch.no_grad():
            return *results, function(*self.inputs)

    def judge(self, results: Sequence[Tensor]) -> Mapping[str, float]:
        expected = self.family.truth(self.case, tuple(self.inputs), 0)
        eager = outputs(self.family.providers["eager-lean"].build(self.case), self.inputs)
        errors = verify.errors(eager, expected)
        *with_gradients, alone = results
        checks = verify.check(with_gradients, expected, errors, self.case)
        without = verify.check([alone], expected[:1], errors[:1], self.case)
        return {check.name: check.ratio for check in checks} | {"loss alone": without[0].ratio}


def verifications(
    family: Family, small: Mapping[str, float], large: Mapping[str, float], target: Target
) -> list[Verification]:
    """The family at one size and several dimensions, in every dtype."""
    sizes = small if target.small else large
    return [
        Verification(f"d {d}", dtype, partial(_build, family, {**sizes, "D": d}, target, dtype))
        for dtype in DTYPES
        if target.device == "cuda" or dtype != "tf32"
        for d in (24, 128, 256, 512, 800)
    ]


def _build(family: Family, sizes: Mapping[str, float], target: Target, dtype: str, seed: int) -> WholeLoss:
    case = Case.named(sizes, dtype, target.device)
    inputs = [
        pairwise_cases.inside_nan(x.detach(), x.dtype, target.device).requires_grad_(x.requires_grad)
        if x.ndim == 2
        else x
        for x in family.inputs(case, seed)
    ]
    return WholeLoss(family, case, inputs, target.provider)


def baselines(case: Case) -> list[str]:
    return ["eager", "chunked", *(["compiled", "compiled-lean"] if case.device == "cuda" else [])]
