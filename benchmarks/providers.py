"""What the families' providers have in common: compiled, under autocast, and fastssl with a backend forced.

A builder takes a case and returns the function that competes (``cases.Provider.build``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import fastssl
from fastssl.ops import registry

from .cases import Case, Function, Provider, Unavailable

Builder = Callable[[Case], Function]

LOW_PRECISION = (torch.bfloat16, torch.float16)


def compiled(build: Builder) -> Builder:
    """The same, compiled for the exact sizes."""
    return lambda case: torch.compile(build(case), dynamic=False)


def autocast(build: Builder) -> Builder:
    """The same as a model under autocast to the case's dtype has it; as it is in float32."""

    def build_autocast(case: Case) -> Function:
        function = build(case)
        if case.dtype not in LOW_PRECISION:
            return function

        def under_autocast(*inputs: Tensor) -> Any:
            with torch.autocast(case.device, case.dtype):
                return function(*inputs)

        return under_autocast

    return build_autocast


def forced(build: Builder, backend: str, operation: str, operand: torch.dtype | None = None) -> Builder:
    """The same with one of fastssl's backends.

    Args:
        build: makes the function.
        backend: of fastssl.
        operation: one that it has to serve.
        operand: dtype of its first argument; None: the case's.
    """

    def build_forced(case: Case) -> Function:
        try:
            registry.choose(operation, case.device, operand or case.dtype, backend)
        except RuntimeError as error:
            raise Unavailable(str(error)) from error
        function = build(case)

        def with_backend(*inputs: Tensor) -> Any:
            with fastssl.backend(backend):
                return function(*inputs)

        return with_backend

    return build_forced


BACKENDS = ("cpp", "triton", "chunked")
FORCED = frozenset(f"fastssl-{backend}" for backend in BACKENDS)  # they run when they are named


def of_fastssl(
    build: Builder,
    operation: str,
    *,
    backends: Sequence[str] = BACKENDS,
    operand: torch.dtype | None = None,
    **fields: Any,
) -> dict[str, Provider]:
    """fastssl as it chooses its backend for an operation, and with each backend forced.

    Args:
        build: makes the function.
        operation: that the backends have to serve.
        backends: that are forced.
        operand: dtype of the operation's first argument; None: the case's.
        fields: of all these providers.
    """
    note = fields.pop("note", backend_note(operation, operand))
    return {
        "fastssl": Provider(build, note=note, **fields),
        **{f"fastssl-{name}": Provider(forced(build, name, operation, operand), **fields) for name in backends},
    }


def backend_note(operation: str, operand: torch.dtype | None = None) -> Callable[[Case], str]:
    """A note that names the backend which serves an operation."""

    def note(case: Case) -> str:
        chosen = registry.choose(operation, case.device, operand or case.dtype, fastssl.backends.forced())
        return f"backend {chosen.__name__.rsplit('.', 1)[1]}"

    return note


def check_above_zero(options: Mapping[str, list[float]]) -> None:
    """Refuse numbers of the command line that are not above 0, by the option's name.

    Raises:
        ValueError: naming the option.
    """
    for name, numbers in options.items():
        for number in numbers:
            if not number > 0:
                raise ValueError(f"{name} must be above 0, got {number}")


class GradientInForward(torch.autograd.Function):
    """What forms that are written by hand end with: their forward pass has saved the gradients of its first inputs."""

    @staticmethod
    def backward(ctx, d_loss):  # type: ignore[no-untyped-def]
        gradients = [gradient * d_loss for gradient in ctx.saved_tensors]
        return *gradients, *[None] * (len(ctx.needs_input_grad) - len(gradients))


def of_raw_rows(gradient: Tensor, unit: Tensor, raw: Tensor) -> Tensor:
    """The gradient for rows as they came, in their dtype, from that for the rows of length 1."""
    gradient = gradient.float()
    radial = (gradient * unit).sum(1, keepdim=True)
    return ((gradient - radial * unit) / raw.float().norm(dim=1, keepdim=True)).to(raw.dtype)
