"""Random problems for the soft-target operators, and the error that a backend may make on them.

The bound is relative to eager PyTorch at the same precision (``reference.py`` run in the inputs' dtype)::

    error <= 2 x eager's largest error + 8 eps x the sum of the absolute values of the terms + the result's own rounding

with float32's eps, in which everything is added up. Tests of the Triton kernels and the GPU benchmark's gate share it.
Inputs lie inside NaN, so that a stray read shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastssl.ops.soft_target import reference

EPS = torch.finfo(torch.float32).eps
LAYOUTS = ("stack", "chunks", "apart", "uneven", "transposed")


@dataclass
class Problem:
    """A problem for ``soft_target_cross_entropy`` and its gradient.

    Attributes:
        s, t, b, k: students, teachers, images, prototypes.
        dtype: of the students.
        teacher_dtype: of the teachers; None: the same.
        potential: column potentials: None, "shared" [K] or "per teacher" [T, K].
        row_potential: whether row potentials are given; probabilities then do not sum to 1.
        weight: whether weights are given, zeros among them; the logits of those images are NaN, for they are not read.
        layout: where views lie (``LAYOUTS``): in one stack, a list of one tensor's chunks, tensors of their own,
            stacks with different strides, or with the columns apart.
        spread: standard deviation of the logits.
        offset: a number added to all of the students' logits, which changes neither loss nor gradient.
    """

    s: int = 4
    t: int = 2
    b: int = 3
    k: int = 100
    dtype: torch.dtype = torch.float32
    teacher_dtype: torch.dtype | None = None
    potential: str | None = "shared"
    row_potential: bool = False
    weight: bool = False
    skip_same_view: bool = True
    layout: str = "stack"
    spread: float = 0.3
    offset: float = 0.0
    device: str = "cpu"
    seed: int = 5

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.rules: dict[str, Any] = {
            "student_scale": 10.0,
            "teacher_scale": 25.0,
            "skip_same_view": self.skip_same_view,
        }
        weight = torch.rand(self.b, generator=generator)
        weight[::3] = 0.0
        self.left_out = (weight == 0) & self.weight
        student, teacher = (self.spread * normal(views, self.b, self.k) for views in (self.s, self.t))
        student += self.offset
        for logits in (student, teacher):
            logits[:, self.left_out] = float("nan")
        shape = {None: (0,), "shared": (self.k,), "per teacher": (self.t, self.k)}[self.potential]
        potential = 2 * normal(*shape)
        self.student = placed(student, self.layout, self.dtype, self.device)
        self.teacher = placed(teacher, self.layout, self.teacher_dtype or self.dtype, self.device)
        self.potential_tensor = None if self.potential is None else potential.to(self.device)
        self.row_tensor = None
        if self.row_potential:  # near the log-sums, so that masses are near 1
            scaled = 25.0 * teacher - (0.0 if self.potential is None else potential.view(-1, 1, self.k))
            self.row_tensor = (scaled.logsumexp(2) + 0.3 * normal(self.t, self.b)).to(self.device)
        self.weight_tensor = weight.to(self.device) if self.weight else None
        self.d_loss = (0.5 + torch.rand(self.b, generator=generator)).to(self.device)

    def inputs(self, wide: bool = False) -> tuple[Any, ...]:
        """The operators' first five arguments; ``wide``: in float64, and with numbers where nothing is read."""
        others = self.potential_tensor, self.row_tensor, self.weight_tensor
        if not wide:
            return (self.student, self.teacher, *others)
        student, teacher = ([stack.double().nan_to_num(0.0) for stack in x] for x in (self.student, self.teacher))
        return (student, teacher, *(None if x is None else x.double().nan_to_num(0.0) for x in others))


Results = list[Tensor]  # loss, students' log-sums, teachers' log-sums, column sums, a gradient for every stack


def solve(problem: Problem, backend: ModuleType, *, inplace: bool = False) -> Results:
    """What a backend makes of a problem; gradients from its own log-sums. ``inplace`` overwrites the students."""
    inputs = problem.inputs()
    loss, student_lse, teacher_lse, column_sum = backend.soft_target_cross_entropy(
        *inputs, column_sum=True, **problem.rules
    )
    gradients = backend.soft_target_cross_entropy_grad(
        *inputs, student_lse, teacher_lse, problem.d_loss, inplace=inplace, **problem.rules
    )
    return [loss, student_lse, teacher_lse, column_sum, *gradients]


def judge(problem: Problem, results: Sequence[Tensor], inputs: tuple[Any, ...] | None = None) -> Mapping[str, float]:
    """Errors over what they may be, by output; above 1, or no number, is wrong.

    Args:
        problem: what was solved.
        results: of ``solve``.
        inputs: ``problem.inputs(wide=True)`` from before the students were overwritten, if they were.

    Raises:
        AssertionError: for a wrong shape or dtype, or where zeros would pass for the gradient.
    """
    inputs = inputs or problem.inputs(wide=True)
    truth = _of_reference(problem, inputs, torch.float64)
    eager = _of_reference(problem, inputs, torch.float32)
    ratios = {}
    names = ["loss", "students' log-sums", "teachers' log-sums", "column sums"]
    rows = zip(names, results[:4], eager, truth, _terms(problem, inputs, truth), strict=False)
    for name, got, near, right, terms in rows:
        assert got.dtype == torch.float32 and got.shape == right.shape, (name, got.dtype, got.shape)
        allowed = 2 * (near.double() - right).abs().max() + 8 * EPS * terms
        ratios[name] = _largest((got.double() - right).abs() / allowed.clamp_min(1e-300))
    for stack, got in zip(problem.student, results[4:], strict=True):
        assert got.dtype == problem.dtype and got.shape == stack.shape, (got.dtype, got.shape)
    got = torch.cat(list(results[4:])).double()
    near, right = eager[4].double(), truth[4]
    stored = torch.finfo(problem.dtype)
    allowed = 2 * (near - right).abs().max() + 8 * EPS * _terms(problem, inputs, truth)[4]
    allowed = allowed + stored.eps * right.abs() + stored.smallest_normal * stored.eps
    ratios["gradient"] = _largest((got - right).abs() / allowed)
    zeros_pass = bool((right.abs() <= allowed).all())
    assert not zeros_pass or not right.any(), "the bound is so loose that zeros would pass"
    if problem.weight:
        left_out = problem.left_out.to(got.device)
        ratios["images left out"] = 0.0 if not got[:, left_out].any() else float("inf")
    return ratios


def _of_reference(problem: Problem, inputs: tuple[Any, ...], dtype: torch.dtype) -> list[Tensor]:
    student, teacher, *others = inputs
    student, teacher = [torch.cat(student).to(dtype)], [torch.cat(teacher).to(dtype)]
    arguments: tuple[Any, ...] = (student, teacher, *(None if x is None else x.to(dtype) for x in others))
    forward = reference.soft_target_cross_entropy(*arguments, column_sum=True, **problem.rules)
    arguments += forward[1], forward[2], problem.d_loss.to(dtype)
    gradient = reference.soft_target_cross_entropy_grad(*arguments, **problem.rules)
    return [*forward, *gradient]


def _terms(problem: Problem, inputs: tuple[Any, ...], truth: Sequence[Tensor]) -> list[Tensor]:
    """Sums of the absolute values of the terms that make up each output, in float64.

    A probability inherits the error of its exponential's argument: relative to it, eps times what was added up there.
    """
    student, teacher, potential, row_potential, weight = inputs
    a, c = problem.rules["student_scale"], problem.rules["teacher_scale"]
    x, raw = a * torch.cat(student), torch.cat(teacher)
    taken = torch.ones(problem.t, problem.s, dtype=torch.float64, device=x.device)
    if problem.skip_same_view:
        taken.fill_diagonal_(0.0)
    lse = x.logsumexp(2, keepdim=True)
    v = raw.new_zeros(problem.k) if potential is None else potential
    v = v if v.ndim == 1 else v[:, None]
    y = c * raw - v
    lse_t = y.logsumexp(2, keepdim=True)
    u = lse_t if row_potential is None else row_potential[:, :, None]
    target = (y - u).exp()
    target_terms = target * (1 + (c * raw).abs() + v.abs() + u.abs())
    w = raw.new_ones(problem.b) if weight is None else weight
    loss = w * torch.einsum("ts,tbk,sbk->b", taken, target_terms, (x - lse).abs() + (lse - x.amax(2, keepdim=True)))
    of_student = target.sum(2, keepdim=True) * (1 + lse_t.abs() + u.abs())
    softmax = (x - lse).exp() * (1 + x.abs() + lse.abs())
    gradient = torch.einsum("ts,tbo->sbo", taken, of_student) * softmax
    gradient = gradient + torch.einsum("ts,tbk->sbk", taken, target_terms)
    gradient = gradient * (a * problem.d_loss.double() * w)[:, None]
    student_terms = lse[:, :, 0].abs() + x.abs().amax(2)
    teacher_terms = lse_t[:, :, 0].abs() + (c * raw).abs().amax(2) + v.abs().amax()
    read = raw if weight is None else torch.where((weight == 0)[:, None], 0.0, raw)
    return [loss, student_terms, teacher_terms, read.abs().sum((0, 1)), gradient]


def _largest(ratio: Tensor) -> float:
    if ratio.numel() == 0:
        return 0.0
    return float("nan") if bool(ratio.isnan().any()) else float(ratio.max())


def placed(views: Tensor, layout: str, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Views [S, B, K] as a list of stacks of one dtype, with NaN around every row."""
    views = views.to(device=device, dtype=dtype)
    count = len(views)
    if layout == "stack":
        return [_inside_nan(views, 3)]
    if layout == "chunks":
        return list(_inside_nan(views, 0).split(1))
    if layout == "apart":
        return [_inside_nan(view, 8) for view in views.split(1)]
    if layout == "uneven":
        return [_inside_nan(views[:1], 1), *([_inside_nan(views[1:], 5)] if count > 1 else [])]
    assert layout == "transposed", layout
    return [_inside_nan(views, 3).transpose(1, 2).contiguous().transpose(1, 2)]


def _inside_nan(views: Tensor, columns: int) -> Tensor:
    """The same values as a view into a buffer of NaN, ``columns`` of which stand on either side of a row."""
    count, rows, k = views.shape
    buffer = views.new_full((count + 2, rows + 2, k + 2 * columns), float("nan"))
    inside = buffer[1:-1, 1:-1, columns : columns + k]
    inside.copy_(views)
    return inside
