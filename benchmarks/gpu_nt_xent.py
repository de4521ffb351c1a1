"""The pairwise kernels, and NT-Xent made of them, on a GPU: what ``gpu.py`` verifies and times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastssl.ops import registry
from fastssl.ops.pairwise import reference

from . import nt_xent, pairwise_cases, verify
from .cases import DTYPES, Case
from .gpu_family import GpuFamily, Target, Verification

NT_XENT = {"positives": "pair", "exclude_self": True}
DIMENSIONS = (128, 256, 512)
LARGEST_COMPILED, LARGEST_CHUNKED = 16384, 65536  # images: beyond, a baseline takes more time than it tells


# --- Verification ---------------------------------------------------------------------------------------------------


def verifications(target: Target) -> list[Verification]:
    return [
        Verification(title, dtype, partial(build, target, dtype))
        for dtype in DTYPES
        if target.device == "cuda" or dtype != "tf32"
        for title, build in (*_against_float64(target), *_fused(dtype), *_special_values(target))
    ]


def _module(target: Target) -> ModuleType:
    return registry.backend_module("fastssl.ops.pairwise", target.backend)


@dataclass
class Pairwise:
    """A random problem, judged against float64."""

    case: pairwise_cases.Case
    backend: ModuleType

    def solve(self) -> Sequence[Tensor]:
        return pairwise_cases.solve(self.case, self.backend)

    def judge(self, results: Sequence[Tensor]) -> Mapping[str, float]:
        log_sum, positive, gradient, scale = results
        return vars(pairwise_cases.judge(self.case, (log_sum, positive, gradient, scale)))


def _pairwise(arguments: Mapping[str, Any], target: Target, dtype: str, seed: int) -> Pairwise:
    case = pairwise_cases.Case(dtype=DTYPES[dtype][0], device=target.device, seed=seed, **arguments)
    return Pairwise(case, _module(target))


def _against_float64(target: Target) -> list[tuple[str, Any]]:
    square, m, n = (64, 70, 90) if target.small else (2222, 1111, 1500)
    both_sides = ("row", "row_positive", "col", "col_positive")
    problems: list[dict[str, Any]] = [
        {"m": square, "d": d, "scale": 10.0, "rules": NT_XENT} for d in (24, 128, 256, 512, 800)
    ]
    for d in (128, 512):
        problems.append({"m": square, "d": d, "logit_scale": 2.0, "rules": NT_XENT})
        rectangle = {"m": m, "n": n, "d": d}
        for positives in ("none", "diagonal", "pair", "key"):
            rules = {"positives": positives, "row_offset": 13, "col_offset": 4}
            problems.append({**rectangle, "weights": both_sides, "rules": rules})
        rules = {"positives": "diagonal", "exclude_positives": True}
        problems.append({**rectangle, "weights": both_sides, "logit_scale": 1.5, "rules": rules})
        problems.append({**rectangle, "weights": ("row",), "rules": {"normalize": False}, "scale": 0.5})
        problems.append({**rectangle, "weights": ("col", "col_positive"), "rules": {"positives": "key"}})
    return [(str(problem), partial(_pairwise, problem)) for problem in problems]


@dataclass
class Fused:
    """``nt_xent``: the loss, and its gradients for both views and for a learnable scale, from one call."""

    case: Case
    inputs: tuple[Tensor, Tensor]
    backend: str

    LOGIT_SCALE = 2.0  # times the operator's own scale: the inverse temperature

    def solve(self) -> Sequence[Tensor]:
        arguments = self._arguments(self.case.dtype)
        operator = partial(torch.ops.fastssl.nt_xent, backend=self.backend)
        return (
            *operator(*arguments, **self._rules, gradient=True),
            operator(*arguments, **self._rules, gradient=False)[0],
        )

    def judge(self, results: Sequence[Tensor]) -> Mapping[str, float]:
        loss, dz0, dz1, d_scale, alone = results
        expected = nt_xent.truth(self.case, self.inputs, 0)
        eager, true = (
            reference.nt_xent(*self._arguments(dtype), **self._rules, gradient=True)
            for dtype in (self.case.dtype, torch.float64)
        )
        # Terms of the scale's derivative: means of cosines, those of the softmax and those of the positives.
        sums = {
            "loss": (loss, eager[0], expected[0].value, expected[0].terms),
            "loss without gradients": (alone, eager[0], expected[0].value, expected[0].terms),
            "gradient of the scale": (d_scale, eager[3], true[3], torch.tensor(2.0)),
        }
        # What rounding the rows does averages out in them.
        rounding = max(8 * torch.finfo(torch.float32).eps, self.case.eps / 8)
        ratios = {
            name: float((got - right).abs() / (2 * (near - right).abs() + rounding * terms))
            for name, (got, near, right, terms) in sums.items()
        }
        gradients = verify.check((dz0, dz1), expected[1:], verify.errors(eager[1:3], expected[1:]), self.case)
        return ratios | {check.name: check.ratio for check in gradients}

    @property
    def _rules(self) -> dict[str, Any]:
        n, temperature = self.case.sizes["N"], self.case.sizes["temperature"]
        return {"scale": 1 / temperature / self.LOGIT_SCALE, "normalize": True, "weight": 0.5 / n}

    def _arguments(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        z0, z1 = (view.to(dtype) for view in self.inputs)
        return z0, z1, torch.tensor(self.LOGIT_SCALE, dtype=dtype, device=z0.device)


def _fused_problem(d: int, target: Target, dtype: str, seed: int) -> Fused:
    case = _case(35 if target.small else 1111, d, dtype, target.device)
    z0, z1 = (pairwise_cases.inside_nan(view.detach(), case.dtype, case.device) for view in nt_xent.inputs(case, seed))
    return Fused(case, (z0, z1), target.backend)


def _fused(dtype: str) -> list[tuple[str, Any]]:
    if dtype == "float16":  # whose gradients take the two pairwise operators, after the loss scaler
        return []
    return [(f"nt_xent, d {d}", partial(_fused_problem, d)) for d in (24, 128, 256, 512, 800)]


@dataclass
class NanRow:
    """One row is NaN: it reaches every log-sum, the positives of its pair, and the whole gradient."""

    case: pairwise_cases.Case
    backend: ModuleType

    def solve(self) -> Sequence[Tensor]:
        lse, positive = self.case.logsum(self.backend, self.case.dtype)
        return lse, positive, self.case.gradient(self.backend, self.case.dtype)[0]

    def judge(self, results: Sequence[Tensor]) -> Mapping[str, float]:
        lse, positive, gradient = results
        right = {
            "log_sum": bool(lse.isnan().all()),
            "positive": positive.isnan().nonzero().flatten().tolist() == [8, 9],
            "gradient": bool(gradient.isnan().all()),
        }
        return {name: 0.0 if ok else math.inf for name, ok in right.items()}


@dataclass
class HugeLogits:
    """All logits are the same huge number: log-sums stay finite and exact."""

    sign: float
    target: Target
    dtype: torch.dtype

    def solve(self) -> Sequence[Tensor]:
        k = torch.full((300, 128), self.sign * 10.0, device=self.target.device, dtype=self.dtype)
        q = torch.full((200, 128), 8.0, device=self.target.device, dtype=self.dtype)
        rules: dict[str, Any] = dict.fromkeys(("row_key", "col_key"))
        rules |= dict.fromkeys(("row_offset", "col_offset"), 0)
        rules |= dict.fromkeys(("normalize", "exclude_self", "exclude_positives"), False)
        lse, _ = _module(self.target).pairwise_logsumexp(q, k, None, scale=1.0, positives="none", **rules)
        return (lse,)

    def judge(self, results: Sequence[Tensor]) -> Mapping[str, float]:
        error = (results[0] - (self.sign * 10240 + math.log(300))).abs().max()
        return {"log_sum": float(error) / 0.05}


def _nan_row(d: int, logit_scale: float | None, target: Target, dtype: str, seed: int) -> NanRow:
    case = pairwise_cases.Case(
        m=64 if target.small else 600, d=d, dtype=DTYPES[dtype][0], device=target.device, logit_scale=logit_scale,
        rules=NT_XENT, seed=seed,
    )  # fmt: skip
    case.q[9] = float("nan")
    return NanRow(case, _module(target))


def _huge_logits(sign: float, target: Target, dtype: str, seed: int) -> HugeLogits:
    return HugeLogits(sign, target, DTYPES[dtype][0])


def _special_values(target: Target) -> list[tuple[str, Any]]:
    special: list[tuple[str, Any]] = [
        (f"a NaN row, d {d}, logit_scale {logit_scale}", partial(_nan_row, d, logit_scale))
        for d in (128, 512)
        for logit_scale in (None, 1.0)
    ]
    return special + [(f"logits of {sign * 10240:.0f}", partial(_huge_logits, sign)) for sign in (1.0, -1.0)]


# --- Timing ---------------------------------------------------------------------------------------------------------


def cases(target: Target) -> list[Case]:
    """The bars first (16 bits at N = 16384, and the size that eager cannot take), then what is most used."""
    if target.small:
        return [_case(64, 16, dtype, target.device) for dtype in ("float32", "bfloat16")]
    wanted = [(16384, d, "bfloat16") for d in DIMENSIONS]
    wanted += [(16384, 128, dtype) for dtype in DTYPES]
    wanted += [(262144, 128, dtype) for dtype in ("bfloat16", "tf32", "float16")]
    for d in DIMENSIONS:
        wanted += [(n, d, dtype) for n in (4096, 1024, 16384, 65536) for dtype in ("bfloat16", "tf32")]
    for d in DIMENSIONS:
        wanted += [(n, d, dtype) for n in (4096, 1024, 16384, 65536) for dtype in ("float16", "float32")]
    wanted += [(262144, 512, "bfloat16")]
    return [_case(n, d, dtype, target.device) for n, d, dtype in dict.fromkeys(wanted)]


def _case(n: int, d: int, dtype: str, device: str) -> Case:
    return Case.named({"N": n, "D": d, "temperature": 0.1}, dtype, device)


def baselines(case: Case) -> list[str]:
    n, d = case.sizes["N"], case.sizes["D"]
    low = case.dtype in nt_xent.LOW_PRECISION
    names = ["eager", *(["eager-autocast"] if low else [])]
    # Each compilation takes long: the most used dtype at every dimension, the others at one. Autocast is left out: with
    # inputs of 16 bits it changes nothing that the compiler does not do anyway.
    compiles = case.device == "cuda" and (d == 128 or case.dtype == torch.bfloat16)
    if compiles and n <= LARGEST_COMPILED:
        names += ["compiled", "compiled-symmetric"]
    if n < LARGEST_CHUNKED or (n == LARGEST_CHUNKED and d == 128):
        names += ["chunked", *(["chunked-compiled"] if compiles else [])]
    return names


GPU = GpuFamily(nt_xent.FAMILY, verifications, cases, baselines)
