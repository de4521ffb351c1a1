"""The gate in front of every time: a result is compared with float64, and a wrong one is refused.

The bound, for each element of an output::

    error <= 2 x the largest error of eager PyTorch at the same precision
             + 8 eps x the sum of the absolute values of the terms that make up the element

It is relative to what the precision allows: a gradient of zeros fails. eps is that of the inputs' dtype, or of tf32
where products take it.

Of a large problem's gradients only some rows are known (``Expected.rows``). In the other rows a missing shape and
numbers that are not finite still show; a wrong but finite number there does not. A family chooses the rows such that a
wrong tile cannot hide between them.

One exception is made: ``Provider.slack``, for a peer whose loss is known to be summed carelessly. It is never silent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cases import Case, Expected


@dataclass(frozen=True)
class Check:
    """How one output compares with the truth.

    Attributes:
        name: of the output.
        error: largest absolute error; infinite when the output is missing, misshapen or not finite.
        allowed: the bound at the element that comes closest to it (or exceeds it most).
        ratio: error over bound at that element; above 1 is wrong.
        reason: why the output is wrong, empty when it is right.
    """

    name: str
    error: float
    allowed: float
    ratio: float
    reason: str


def errors(outputs: Sequence[Tensor | None], expected: Sequence[Expected]) -> list[float]:
    """Largest absolute error of each output."""
    return [
        float("inf") if out is None or out.shape != want.shape else float(_error(out, want).max())
        for out, want in zip(outputs, expected, strict=True)
    ]


def check(
    outputs: Sequence[Tensor | None],
    expected: Sequence[Expected],
    baseline_errors: Sequence[float],
    case: Case,
) -> list[Check]:
    """Compare outputs with the truth.

    Args:
        outputs: a provider's, in the order of ``expected``.
        expected: the truth.
        baseline_errors: of eager PyTorch at the same precision, per output; 0 where it could not run.
        case: the problem, for its dtype.
    """
    return [
        _check(out, want, baseline, case)
        for out, want, baseline in zip(outputs, expected, baseline_errors, strict=True)
    ]


def would_refuse_zeros(expected: Sequence[Expected], baseline_errors: Sequence[float], case: Case) -> bool:
    """Whether the gate says anything here: with saturated or tiny inputs the bound can exceed the gradient itself.

    Of a family without gradients: whether it would refuse results of zeros.
    """
    zeros = [want.value.new_zeros(()).expand(want.shape) for want in expected]
    checks = list(zip(check(zeros, expected, baseline_errors, case), expected, strict=True))
    gradients = [one for one, want in checks if want.is_gradient] or [one for one, _ in checks]
    return any(one.reason for one in gradients)


def _error(out: Tensor, want: Expected) -> Tensor:
    return (want.compared(out).double() - want.value).abs()


def _check(out: Tensor | None, want: Expected, baseline: float, case: Case) -> Check:
    infinite = float("inf")
    if out is None or out.shape != want.shape:
        got = "nothing" if out is None else f"shape {tuple(out.shape)}"
        return Check(want.name, infinite, 0.0, infinite, f"{want.name}: {got} instead of {tuple(want.shape)}")
    if not bool(torch.isfinite(out).all()):
        return Check(want.name, infinite, 0.0, infinite, f"{want.name} is not finite")
    stored = torch.finfo(case.dtype)
    # Below the smallest number that the dtype can hold there is nothing to ask for (float16 gradients).
    quantum = stored.smallest_normal * stored.eps
    error = _error(out, want)
    allowed = 2 * baseline + 8 * case.eps * want.terms + quantum
    ratio = error / allowed
    worst = int(ratio.argmax())
    at_worst = float(ratio.flatten()[worst])
    bound = float(allowed.expand_as(error).flatten()[worst])
    reason = ""
    if at_worst > 1:
        reason = f"{want.name} is off by {float(error.flatten()[worst]):.2g}, allowed is {bound:.2g}"
    return Check(want.name, float(error.max()), bound, at_worst, reason)
