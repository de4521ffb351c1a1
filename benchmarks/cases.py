"""The words of the benchmark: a family has cases, inputs, a truth, and providers that compete."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

PASSES = {"forward": "forward", "both": "forward + backward"}


class Unavailable(Exception):
    """Why a provider cannot compete in a case: not installed, too large. It becomes the provider's row."""


@dataclass(frozen=True)
class Case:
    """One problem: sizes (and other numbers) by name, a dtype and a device."""

    sizes: Mapping[str, float]
    dtype: torch.dtype
    device: str

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def title(self) -> str:
        numbers = " ".join(f"{name}={value:g}" for name, value in self.sizes.items())
        return f"{numbers} {self.dtype_name} {self.device}"

    def to_json(self) -> dict[str, Any]:
        return {"sizes": dict(self.sizes), "dtype": self.dtype_name, "device": self.device}

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> Case:
        return Case(fields["sizes"], getattr(torch, fields["dtype"]), fields["device"])


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
    """One output's true value in float64, and per element the sum of the absolute values of the terms it is made of."""

    name: str
    value: Tensor
    terms: Tensor


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
        truth: loss first, then the gradient of each input that requires one.
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
    truth: Callable[[Case, tuple[Tensor, ...]], list[Expected]]
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
