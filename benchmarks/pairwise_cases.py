"""Random problems for the pairwise primitive, and the error that a backend may make on them.

The bound is relative to eager PyTorch at the same precision (``reference.py`` run in the inputs' dtype)::

    error <= 2 x eager's error + 8 eps x the sum of the absolute values of the terms

Tests of a backend and the GPU benchmark's gate share it. Inputs lie inside NaN, so that a stray read shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.ops.pairwise import reference

EPS = torch.finfo(torch.float32).eps


@dataclass
class Case:
    """A problem for `pairwise_logsumexp` and its gradient; `weights` names the gradient's inputs that are given."""

    m: int = 54
    n: int | None = None  # None: the columns are the rows
    d: int = 24
    dtype: torch.dtype = torch.float32
    scale: float = 5.0
    logit_scale: float | None = None
    weights: tuple[str, ...] = ("row", "row_positive")
    row_step: int = 1  # of the gradient alone
    device: str = "cpu"
    seed: int = 17
    rules: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self.rules = {
            "normalize": True,
            "positives": "none",
            "exclude_self": False,
            "exclude_positives": False,
            "row_offset": 0,
            "col_offset": 0,
            **self.rules,
        }
        generator = torch.Generator().manual_seed(self.seed)
        self.q = inside_nan(torch.randn(self.m, self.d, generator=generator), self.dtype, self.device)
        self.k = None
        if self.n is not None:
            self.k = inside_nan(torch.randn(self.n, self.d, generator=generator), self.dtype, self.device)
        columns = self.n or self.m
        self.row_key = self.col_key = None
        if self.rules["positives"] == "key":
            self.row_key = torch.randint(0, 7, (self.m,), generator=generator).to(self.device)
            self.col_key = self.row_key
            if self.k is not None:
                self.col_key = torch.randint(0, 7, (columns,), generator=generator).to(self.device)
        self.vectors = {
            "row": torch.rand(self.m, generator=generator) / self.m,
            "row_positive": -torch.rand(self.m, generator=generator) / self.m,
            "col": torch.rand(columns, generator=generator) / columns,
            "col_positive": -torch.rand(columns, generator=generator) / columns,
        }
        self.vectors = {name: vector.to(self.device) for name, vector in self.vectors.items()}

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor | None]:
        s = None if self.logit_scale is None else torch.tensor(self.logit_scale, dtype=dtype, device=self.device)
        return self.q.to(dtype), None if self.k is None else self.k.to(dtype), s  # the same strides in the same dtype

    def keywords(self) -> dict[str, Any]:
        return {"scale": self.scale, "row_key": self.row_key, "col_key": self.col_key, **self.rules}

    def logsum(self, backend: ModuleType, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        q, k, s = self.tensors(dtype)
        return backend.pairwise_logsumexp(q, k, s, **self.keywords())

    def log_sums(self) -> tuple[Tensor, Tensor]:
        """Log-sums of rows and of columns in float64, from outside as the gradient takes them."""
        q, k, s = self.tensors(torch.float64)
        columns = q if k is None else k
        if self.row_step != 1:  # any finite number is a valid log-sum
            return q.new_full((q.shape[0],), 3.0), q.new_full((columns.shape[0],), 3.0)
        rules = self.keywords()
        swapped = {
            **rules,
            "row_key": self.col_key,
            "col_key": self.row_key,
            "row_offset": rules["col_offset"],
            "col_offset": rules["row_offset"],
        }
        of_rows, _ = reference.pairwise_logsumexp(q, k, s, **rules)
        of_columns, _ = reference.pairwise_logsumexp(columns, q, s, **swapped)
        return of_rows, of_columns

    def gradient(self, backend: ModuleType, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        q, k, s = self.tensors(dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        row_lse, col_lse = (v.to(wide) for v in self.log_sums())
        given = {name: self.vectors[name].to(wide) if name in self.weights else None for name in self.vectors}
        return backend.pairwise_logsumexp_grad(
            q, k, s,
            row_lse if "row" in self.weights else None, given["row"], given["row_positive"],
            col_lse if "col" in self.weights else None, given["col"], given["col_positive"],
            row_step=self.row_step, **self.keywords(),
        )  # fmt: skip

    def gradient_terms(self) -> tuple[Tensor, Tensor]:
        """Length of the sums of absolute values of the gradient's terms, [M, 1], and their sum for the scale, []."""
        q, k, logit_scale = self.tensors(torch.float64)
        s = self.scale * (1.0 if logit_scale is None else logit_scale)
        k = q if k is None else k
        norm = q.norm(dim=1, keepdim=True).clamp_min(1e-12) if self.rules["normalize"] else 1.0
        rows, columns = (F.normalize(t, dim=1) if self.rules["normalize"] else t for t in (q, k))
        c = rows @ columns.T
        row_lse, col_lse = self.log_sums()
        mutual = self.k is None and not {"col", "col_positive"} & set(self.weights)
        of_columns = (row_lse, *(self.vectors[name] for name in ("row", "row_positive")))
        if not mutual:
            of_columns = (col_lse, *(self.vectors[name] for name in ("col", "col_positive")))
        g = torch.zeros_like(c)
        if "row" in self.weights:
            g += self.vectors["row"][:, None] * (s * c - row_lse[:, None]).clamp_max(0).exp()
        if "col" in self.weights or (mutual and "row" in self.weights):
            g += of_columns[1][None, :] * (s * c - of_columns[0][None, :]).clamp_max(0).exp()
        g += self.vectors["row_positive"].abs()[:, None] / 8 + of_columns[2].abs()[None, :] / 8
        per_row = abs(s) * (g @ columns.abs()).norm(dim=1, keepdim=True)
        return per_row / norm, (g * c.abs()).sum()


@dataclass
class Verdict:
    """Largest error over bound of each output; above 1 is wrong."""

    log_sum: float
    positive: float
    gradient: float
    scale: float

    @property
    def worst(self) -> float:
        ratios = (self.log_sum, self.positive, self.gradient, self.scale)
        return float("inf") if any(r != r for r in ratios) else max(ratios)


Results = tuple[Tensor, Tensor, Tensor, Tensor]  # log-sums, positive logits, gradient of the rows and of the scale


def solve(case: Case, backend: ModuleType) -> Results:
    """What a backend makes of a problem, in its dtype."""
    return (*case.logsum(backend, case.dtype), *case.gradient(backend, case.dtype))


def verify(case: Case, backend: ModuleType) -> Verdict:
    """Errors of a backend over what they may be; see ``judge``."""
    return judge(case, solve(case, backend))


def judge(case: Case, results: Results) -> Verdict:
    """Errors of results over what they may be.

    Raises:
        AssertionError: for a wrong shape or dtype, or infinities elsewhere than in the truth.
    """
    truth, eager = (case.logsum(reference, dtype) for dtype in (torch.float64, case.dtype))
    forward = []
    for true, near, got in zip(truth, eager, results[:2], strict=True):
        assert got.dtype == torch.float32 and got.shape == true.shape
        finite = true.isfinite()
        assert torch.equal(got.isfinite(), finite), "not finite where the truth is, or the other way round"
        assert torch.equal(got[~finite].double(), true[~finite])
        terms = true[finite].abs() + case.scale * (case.logit_scale or 1.0)
        error, of_eager = ((t[finite] - true[finite]).abs() / terms for t in (got, near))
        forward.append(_ratio(error, of_eager, 8 * EPS))

    ours = results[2:]
    truth, eager = (case.gradient(reference, dtype) for dtype in (torch.float64, case.dtype))
    assert ours[0].dtype == case.dtype and ours[0].shape == case.q.shape and ours[0].is_contiguous()
    terms, scale_terms = case.gradient_terms()
    rounding = max(8 * EPS, torch.finfo(case.dtype).eps)  # the result is rounded to the inputs' dtype
    error, of_eager = ((t[0].double() - truth[0]).norm(dim=1, keepdim=True) / terms for t in (ours, eager))
    gradient = _ratio(error, of_eager, rounding)
    error, of_eager = ((t[1].double() - truth[1]).abs() / scale_terms for t in (ours, eager))
    return Verdict(forward[0], forward[1], gradient, _ratio(error, of_eager, rounding))


def _ratio(error: Tensor, of_eager: Tensor, rounding: float) -> float:
    if error.numel() == 0:
        return 0.0
    return (error.max() / (2 * of_eager.max() + rounding)).item()


def inside_nan(x: Tensor, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """The same values as a strided view with NaN around it."""
    around = torch.full((x.shape[0] + 4, x.shape[1] + 7), float("nan"), dtype=dtype, device=device)
    view = around[2:-2, 3:-4]
    view.copy_(x)
    return view
