"""What the tests of every operation share: backends, error bounds, guard bands.

A result is judged against float64, relative to the error that eager PyTorch makes on the same inputs at the same
precision, never by a fixed tolerance; and each judgement checks that an all-zero answer would not have passed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastssl
import fastssl.ops
from fastssl.ops import registry

# Every pair of a backend and the device on which it serves.
BACKENDS = [("chunked", "cpu"), ("cpp", "cpu")]
if torch.cuda.is_available():
    BACKENDS += [("chunked", "cuda"), ("triton", "cuda"), ("cuda", "cuda")]
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


def allowed_error(eager: Tensor, truth: Tensor, terms: Tensor) -> Tensor:
    """What rounding explains, elementwise.

    Twice eager PyTorch's largest error, eight roundings of the sum of the absolute values of the terms in the dtype in
    which they are added up, and one rounding of the result to its own dtype.
    """
    added_up_in = torch.float64 if eager.dtype == torch.float64 else torch.float32
    return (
        2 * (eager.double() - truth).abs().max()
        + 8 * torch.finfo(added_up_in).eps * terms
        + torch.finfo(eager.dtype).eps * truth.abs()
    )


def assert_as_accurate_as_eager(
    actual: Tensor, eager: Tensor, truth: Tensor, terms: Tensor, what: str = "", *, refuses_zeros: bool = True
) -> None:
    """``actual`` is as close to ``truth`` (float64) as low-precision arithmetic can be expected to bring it.

    Args:
        actual: result of a kernel.
        eager: what plain PyTorch gives for the same inputs at the same precision.
        truth: the same in float64.
        terms: float64, per element the sum of the absolute values of the terms that were added up.
        what: name of the result, for messages.
        refuses_zeros: check too that zeros would not pass; not for sums that may cancel to nearly nothing.
    """
    assert actual.dtype == eager.dtype and actual.shape == eager.shape, (what, actual.dtype, eager.dtype)
    actual, eager, truth, terms = (t.detach().cpu() for t in (actual, eager, truth, terms))
    assert torch.equal(truth.isinf(), actual.isinf()), f"{what}: infinities differ"
    finite = truth.isfinite()
    actual, eager, truth, terms = actual[finite], eager[finite], truth[finite], terms[finite]
    if truth.numel() == 0:
        return
    assert eager.isfinite().all(), f"{what}: eager PyTorch is no yardstick here"
    allowed = allowed_error(eager, truth, terms)
    error = (actual.double() - truth).abs()
    worst = (error / allowed).argmax()
    assert (error <= allowed).all(), (
        f"{what}: error {error[worst]:.3e} exceeds {allowed[worst]:.3e} "
        f"(eager: {(eager.double() - truth).abs().max():.3e}; largest value {truth.abs().max():.3e})"
    )
    if refuses_zeros and truth.abs().max() > 0:
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


class LargestTensor(TorchDispatchMode):
    """Watches what PyTorch computes: ``numbers`` is the size of the largest tensor. It does not see into operators of
    fastssl, so backends' functions are called directly."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result
