"""What the tests of every operation share: backends, error bounds, guard bands.

A result is judged against float64, relative to the error that eager PyTorch makes on the same inputs at the same
precision, never by a fixed tolerance; and each judgement checks that an all-zero answer would not have passed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import fastssl
import fastssl.ops
from fastssl.ops import registry

# Every pair of a backend and the device on which it serves.
BACKENDS = [("chunked", "cpu"), ("cpp", "cpu")]
if torch.cuda.is_available():
    BACKENDS += [("chunked", "cuda"), ("triton", "cuda")]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@contextlib.contextmanager
def serving(
    backend: str, device: str, dtype: torch.dtype = torch.float32, operation: str = "pairwise_logsumexp"
) -> Iterator[None]:
    """Force a backend; skip the test where it cannot serve."""
    reasons = dict(registry.explain(registry.OPERATIONS[operation], device, dtype))
    if reasons[backend] is not None:
        pytest.skip(f"{backend}: {reasons[backend]}")
    with fastssl.backend(backend):
        yield


def allowed_error(eager: Tensor, truth: Tensor, terms: Tensor, eps: float) -> Tensor:
    """2 x eager PyTorch's largest error + 8 eps x the sum of the absolute values of the terms, elementwise."""
    return 2 * (eager.double() - truth).abs().max() + 8 * eps * terms


def assert_as_accurate_as_eager(
    actual: Tensor, eager: Tensor, truth: Tensor, terms: Tensor, precision: torch.dtype, what: str = ""
) -> None:
    """``actual`` is as close to ``truth`` (float64) as low-precision arithmetic can be expected to bring it.

    Args:
        actual: result of a kernel.
        eager: what plain PyTorch gives for the same inputs at the same precision.
        truth: the same in float64.
        precision: dtype of the inputs.
        terms: float64, per element the sum of the absolute values of the terms that were added up.
    """
    assert actual.dtype == eager.dtype and actual.shape == eager.shape, (what, actual.dtype, eager.dtype)
    actual, eager, truth, terms = (t.detach().cpu() for t in (actual, eager, truth, terms))
    assert torch.equal(truth.isinf(), actual.isinf()), f"{what}: infinities differ"
    finite = truth.isfinite()
    actual, eager, truth, terms = actual[finite], eager[finite], truth[finite], terms[finite]
    if truth.numel() == 0:
        return
    assert eager.isfinite().all(), f"{what}: eager PyTorch is no yardstick here"
    allowed = allowed_error(eager, truth, terms, torch.finfo(precision).eps)
    error = (actual.double() - truth).abs()
    assert (error <= allowed).all(), (
        f"{what}: error {error.max():.3e} exceeds {allowed[error.argmax()]:.3e} "
        f"(eager: {(eager.double() - truth).abs().max():.3e}; largest value {truth.abs().max():.3e})"
    )
    if truth.abs().max() > 0:
        assert (truth.abs() > allowed).any(), f"{what}: the bound is so loose that zeros would pass"


def in_guard_band(tensor: Tensor, band: int = 8) -> Tensor:
    """The same [M, D] values as a strided view inside a buffer of NaN: a read outside the view shows."""
    rows, columns = tensor.shape
    buffer = tensor.new_full((rows + 2 * band, columns + 2 * band + 1), float("nan"))
    view = buffer[band : band + rows, band : band + columns]
    view.copy_(tensor)
    return view


@contextlib.contextmanager
def poisoned_outputs() -> Iterator[None]:
    """``torch.empty`` gives NaN: an element that a kernel leaves unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(4).isnan().all(), "this torch no longer fills uninitialised memory in deterministic mode"
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
