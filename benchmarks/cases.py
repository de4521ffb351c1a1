"""The words of the benchmark: a family has cases, inputs, a truth, and providers that compete."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .verify import Check

# "backward" is what `loss.backward()` takes. A provider is free to compute its gradient in the forward pass already, as
# the chunked baseline does: "both" is the pass to compare.
PASSES = {"forward": "forward", "backward": "backward", "both": "forward + backward"}
# A family that is no operation has another: its function does everything that is timed, gradients included.
TITLES = {**PASSES, "step": "training step"}
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


# The inputs -> a scalar loss, or a tuple of a loss and what else comes out of a step; of a family without gradients,
# what its operation returns.
Function = Callable[..., Any]


@dataclass(frozen=True)
class Provider:
    """One implementation that competes.

    Attributes:
        build: makes the function for a case; raises ``Unavailable`` (or ImportError) when it cannot compete.
        note: a few words for the table, may depend on the case: which backend, which block size.
        compiles: its first call compiles for the exact sizes (matters to how memory is measured).
        dtypes: the only dtypes in which it makes sense; None for all.
        bytes_needed: estimate of its peak memory, so that a size that cannot fit is refused instead of tried.
        overwrites_inputs: its gradient takes its inputs' place. It gets copies that are no leaves (``Overwriting``).
        finish: makes what is compared with the truth of what the function returned, (case, inputs, result) -> values;
            not timed. For a provider whose users need less than the others return.
        slack: by which factor what it returns (not its gradients) may exceed the gate's bound, for a published
            implementation that is known to round more. It is timed then, and its note says by how much it is off.
        gate: instead of the comparison with the family's truth: (case, function, sets of inputs) -> checks. For a
            provider that draws random numbers of its own.
        batches: how many times the case's work one call does, on average of which its time is taken.
        elsewhere: it works in processes of its own, whose memory nobody measures.
    """

    build: Callable[[Case], Function]
    note: Callable[[Case], str] = lambda case: ""
    compiles: bool = False
    dtypes: tuple[torch.dtype, ...] | None = None
    bytes_needed: Callable[[Case], float] = lambda case: 0.0
    overwrites_inputs: bool = False
    finish: Callable[[Case, Sequence[Tensor], Any], Any] = lambda case, inputs, result: result
    slack: float = 1.0
    gate: Callable[[Case, Function, Sequence[tuple[Tensor, ...]]], list[Check]] | None = None
    batches: int = 1
    elsewhere: bool = False

    def function(self, case: Case) -> Function:
        """The function for a case, as it is called and timed; raises what ``build`` raises."""
        function = self.build(case)
        return Overwriting(function) if self.overwrites_inputs else function


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
        rows: which rows are compared, an index of the leading dimension or one of each leading dimension, [rows]; None:
            all of them.
        is_gradient: whether it is the gradient of an input.
    """

    name: str
    value: Tensor
    terms: Tensor
    shape: torch.Size
    rows: Tensor | tuple[Tensor, ...] | None = None
    is_gradient: bool = False

    def compared(self, output: Tensor) -> Tensor:
        """What of an output stands beside ``value``."""
        return output if self.rows is None else output[self.rows]


@dataclass(frozen=True)
class Rate:
    """What else than a time says how fast a pass is: how many of something are done in a second.

    Attributes:
        unit: of the rate, such as "views/s".
        count: how many a pass of a case does.
    """

    unit: str
    count: Callable[[Case], float]


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
        truth: what the function returns, loss first, then the gradient of each input that requires one; of a large
            problem's gradients some rows, chosen by a seed.
        tiny_sizes: a case's sizes made small enough to cost nothing: for warming up.
        work: of a case and a pass.
        work_model: how ``work`` counts, in a sentence for the report.
        providers: by name, in the order of the table.
        optional: providers that run only when they are named.
        passes: what can be timed, names from ``TITLES``; "forward" alone where there is no gradient.
        rate: shown beside the time of each pass; None: nothing.
        parts: a function that was called -> median seconds of the parts of its calls since this was asked for last, by
            name; None: they have none.
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
    passes: tuple[str, ...] = tuple(PASSES)
    rate: Rate | None = None
    parts: Callable[[Function], dict[str, float]] | None = None


def load(module: str) -> Family:
    """The family that a module defines."""
    return importlib.import_module(module).FAMILY


def values(result: Any) -> list[Tensor]:
    """What a function returned, as a list: the loss first."""
    return list(result) if isinstance(result, tuple) else [result]


def step(function: Function, inputs: Sequence[Tensor]) -> Any:
    """Forward and, where there is a gradient, backward; gradients arrive in ``.grad``."""
    result = function(*inputs)
    loss = values(result)[0]
    if loss.requires_grad:
        loss.backward()
    return result


def ready(function: Function, inputs: Sequence[Tensor]) -> None:
    """What comes before every call and is no part of it: no gradients are left, and inputs are what they were."""
    clear_gradients(inputs)
    if isinstance(function, (Overwriting, Formed)):
        function.restore(inputs)


def clear_gradients(inputs: Sequence[Tensor]) -> None:
    for tensor in inputs:
        tensor.grad = None


def outputs(
    function: Function, inputs: Sequence[Tensor], finish: Callable[[Any], Any] = lambda result: result
) -> list[Tensor | None]:
    """What the function returns, finished, and the gradient of each input that requires one (None: none arrived).

    What is no tensor is there for ``finish``.
    """
    ready(function, inputs)
    result = [value.detach() for value in values(finish(step(function, inputs))) if isinstance(value, Tensor)]
    gradients = [tensor.grad for tensor in inputs if tensor.requires_grad]
    if isinstance(function, Overwriting):  # they lie where the next call will write
        gradients = [None if gradient is None else gradient.clone() for gradient in gradients]
    clear_gradients(inputs)
    return [*result, *gradients]


class Formed:
    """A function that gets its inputs in a form of its own, made before it is called with them for the first time.

    Args:
        function: takes what ``form`` returns.
        form: inputs -> the arguments of ``function``.
    """

    def __init__(self, function: Function, form: Callable[..., tuple[Any, ...]]) -> None:
        self.function = function
        self._form = form
        self._formed: dict[int, tuple[Sequence[Tensor], tuple[Any, ...]]] = {}  # by id: the inputs, which have to live

    def restore(self, inputs: Sequence[Tensor]) -> None:
        if id(inputs[0]) not in self._formed:
            self._formed[id(inputs[0])] = inputs, self._form(*inputs)

    def __call__(self, *inputs: Tensor) -> Any:
        return self.function(*self._formed[id(inputs[0])][1])


class Overwriting:
    """A function that may write over those inputs that require a gradient, with copies to write over.

    It gets the copies as a network's last layer would hand them out: they are no leaves. Their gradients are put into
    the leaves' ``.grad`` as they are, without a copy, like those of any other provider.
    """

    def __init__(self, function: Function) -> None:
        self._function = function
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}  # by the leaf's id: the leaf, which has to live, its copy
        self._written: list[tuple[Tensor, Tensor]] = []

    def restore(self, inputs: Sequence[Tensor]) -> None:
        """Undo what the last call wrote. Calls take turns on inputs: the next reads what was not touched just now."""
        for leaf, copy in self._written:
            copy.copy_(leaf.detach())
        self._written.clear()
        for leaf in inputs:
            if leaf.requires_grad and id(leaf) not in self._copies:
                self._copies[id(leaf)] = leaf, leaf.detach().clone()

    def __call__(self, *inputs: Tensor) -> Any:
        return self._function(*(self._copy(leaf) if leaf.requires_grad else leaf for leaf in inputs))

    def _copy(self, leaf: Tensor) -> Tensor:
        _, copy = self._copies[id(leaf)]
        if not torch.is_grad_enabled():
            return copy
        self._written.append((leaf, copy))
        anchor = torch.empty(0, requires_grad=True)
        return _HandedOut.apply(anchor, copy.detach(), leaf)  # detached: a tensor object without a history


class _HandedOut(torch.autograd.Function):
    """Makes a tensor the result of some operation, and puts its gradient into a leaf."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, copy: Tensor, leaf: Tensor) -> Tensor:
        ctx.leaf = leaf
        ctx.mark_dirty(copy)
        return copy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        ctx.leaf.grad = gradients[0]
        return None, None, None
