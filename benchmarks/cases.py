"""The words of the benchmark: a family has cases, inputs, a truth, and providers that compete."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# "backward" is what `loss.backward()` takes. A provider is free to compute its gradient in the forward pass already, as
# the chunked baseline does: "both" is the pass to compare.
PASSES = {"forward": "forward", "backward": "backward", "both": "forward + backward"}
# Name -> the tensors' dtype, and what `torch.set_float32_matmul_precision` has to be. tf32 exists on CUDA only.
DTYPES = {
    "float32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
    "bfloat16": (torch.bfloat16, "highest"),
    "float16": (torch.float16, "highest"),
}


@contextmanager
def precision(dtype: str) -> Iterator[torch.dtype]:
    """The tensors' dtype of a name in ``DTYPES``, with float32 products set accordingly inside the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(DTYPES[dtype][1])
    try:
        yield DTYPES[dtype][0]
    finally:
        torch.set_float32_matmul_precision(before)


class Unavailable(Exception):
    """Why a provider cannot compete in a case: not installed, too large. It becomes the provider's row."""


@dataclass(frozen=True)
class Case:
    """One problem: sizes (and other numbers) by name, a dtype and a device; ``tf32``: products of float32 take it."""

    sizes: Mapping[str, float]
    dtype: torch.dtype
    device: str
    tf32: bool = False

    @staticmethod
    def named(sizes: Mapping[str, float], dtype: str, device: str) -> Case:
        """With the dtype as ``DTYPES`` names it."""
        return Case(sizes, DTYPES[dtype][0], device, dtype == "tf32")

    @property
    def dtype_name(self) -> str:
        return "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")

    @property
    def eps(self) -> float:
        """Relative distance of neighbouring numbers among a product's operands."""
        return 2.0**-10 if self.tf32 else torch.finfo(self.dtype).eps

    @property
    def title(self) -> str:
        numbers = " ".join(f"{name}={value:g}" for name, value in self.sizes.items())
        return f"{numbers} {self.dtype_name} {self.device}"

    def to_json(self) -> dict[str, Any]:
        return {"sizes": dict(self.sizes), "dtype": self.dtype_name, "device": self.device}

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> Case:
        return Case.named(fields["sizes"], fields["dtype"], fields["device"])


Function = Callable[..., Tensor]  # the inputs -> a scalar loss


@dataclass(frozen=True)
class Provider:
    """One implementation that competes.

    Attributes:
        build: makes the function for a case; raises ``Unavailable`` (or ImportError) when it cannot compete.
        note: a few words for the table, may depend on the case: which backend, which block size.
        compiles: its first call compiles for the exact sizes (matters to how memory is measured).
        dtypes: the only dtypes in which it makes sense; None for all.
        bytes_needed: estimate of its peak memory, so that a size that cannot fit is refused instead of tried.
    """

    build: Callable[[Case], Function]
    note: Callable[[Case], str] = lambda case: ""
    compiles: bool = False
    dtypes: tuple[torch.dtype, ...] | None = None
    bytes_needed: Callable[[Case], float] = lambda case: 0.0


@dataclass(frozen=True)
class Work:
    """What a pass has to do at least, for the share of the machine's limit: the same for every provider."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Expected:
    """One output's true value in float64, and per element the sum of the absolute values of the terms it is made of.

    Attributes:
        name: of the output.
        value: of the compared rows.
        terms: of the compared rows.
        shape: of the whole output.
        rows: which rows are compared, [rows]; None: all of them.
    """

    name: str
    value: Tensor
    terms: Tensor
    shape: torch.Size
    rows: Tensor | None = None

    def compared(self, output: Tensor) -> Tensor:
        """What of an output stands beside ``value``."""
        return output if self.rows is None else output[self.rows]


@dataclass(frozen=True)
class Family:
    """Everything the benchmark knows about one family of operations.

    Attributes:
        module: where ``FAMILY`` is found again by a fresh process.
        subject: the provider that this project is judged by.
        baseline: the provider whose error, at the same precision, bounds everyone's.
        add_arguments: the family's own command line options.
        cases: the problems that the options ask for.
        inputs: leaf tensors of a case that a generator with this seed makes; those that require a gradient get one.
        truth: loss first, then the gradient of each input that requires one; of a large problem's gradients some rows,
            chosen by a seed.
        tiny_sizes: a case's sizes made small enough to cost nothing: for warming up.
        work: of a case and a pass.
        work_model: how ``work`` counts, in a sentence for the report.
        providers: by name, in the order of the table.
        optional: providers that run only when they are named.
    """

    name: str
    module: str
    subject: str
    baseline: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    cases: Callable[[argparse.Namespace, str], Sequence[Case]]
    inputs: Callable[[Case, int], tuple[Tensor, ...]]
    truth: Callable[[Case, tuple[Tensor, ...], int], list[Expected]]
    tiny_sizes: Callable[[Mapping[str, float]], dict[str, float]]
    work: Callable[[Case, str], Work]
    work_model: str
    providers: Mapping[str, Provider]
    optional: frozenset[str] = field(default_factory=frozenset)


def load(module: str) -> Family:
    """The family that a module defines."""
    return importlib.import_module(module).FAMILY


def step(function: Function, inputs: Sequence[Tensor]) -> Tensor:
    """Forward and backward; gradients arrive in ``.grad``."""
    loss = function(*inputs)
    loss.backward()
    return loss


def clear_gradients(inputs: Sequence[Tensor]) -> None:
    for tensor in inputs:
        tensor.grad = None


def outputs(function: Function, inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """The loss, and the gradient of each input that requires one (None where none arrived)."""
    clear_gradients(inputs)
    loss = step(function, inputs).detach()
    gradients = [tensor.grad for tensor in inputs if tensor.requires_grad]
    clear_gradients(inputs)
    return [loss, *gradients]
