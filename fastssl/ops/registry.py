"""One mechanism by which every operation is registered with PyTorch and finds its backend.

An operation family is a folder with a module per backend (``reference.py``, ``chunked.py``, ``cpp.py``, ``triton.py``,
and ``cuda.py`` in some), each holding functions of the same names and signatures, and one function

    unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None

that says why this backend cannot serve such tensors here, or None when it can.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch.autograd import forward_ad

from ..backends import ELSEWHERE, PREFERENCE
from .checks import FLOAT_DTYPES

LIBRARY = torch.library.Library("fastssl", "DEF")

# Operation name -> the package of its family, and what its first argument may be. `fastssl info` walks them.
OPERATIONS: dict[str, str] = {}
DTYPES: dict[str, tuple[torch.dtype, ...]] = {}

_DEVICE_KEYS = (torch._C.DispatchKey.CPU, torch._C.DispatchKey.CUDA)

# Operation name -> what serves it below autograd.
_DISPATCH: dict[str, Callable[..., Any]] = {}


@cache
def backend_module(family: str, backend: str) -> ModuleType:
    """The module that holds a family's implementation for one backend."""
    return importlib.import_module(f"{family}.{backend}")


@cache
def _reason(family: str, backend: str, device_type: str, dtype: torch.dtype) -> str | None:
    try:
        module = backend_module(family, backend)
    except ImportError as error:  # Triton is absent on some platforms
        if error.name == f"{family}.{backend}":
            return "this family has no CUDA C++ kernels" if backend == "cuda" else f"this family has no {backend}.py"
        return f"{type(error).__name__}: {error}"
    return module.unsupported_reason(device_type, dtype)


def explain(family: str, device_type: str, dtype: torch.dtype) -> list[tuple[str, str | None]]:
    """The backends in order of preference, each with the reason why it cannot serve (None: it can)."""
    return [(name, _reason(family, name, device_type, dtype)) for name in PREFERENCE.get(device_type, ELSEWHERE)]


def choose(operation: str, device_type: str, dtype: torch.dtype, forced: str) -> ModuleType:
    """The backend module that serves a call.

    Raises:
        RuntimeError: when the forced backend cannot serve tensors of this device and dtype.
    """
    family = OPERATIONS[operation]
    if forced:
        reason = _reason(family, forced, device_type, dtype)
        if reason is not None:
            raise RuntimeError(
                f"{operation}: the backend {forced!r} cannot serve {dtype} tensors on {device_type}: {reason}"
            )
        return backend_module(family, forced)
    for name in PREFERENCE.get(device_type, ELSEWHERE):
        if _reason(family, name, device_type, dtype) is None:
            return backend_module(family, name)
    raise RuntimeError(f"{operation}: no backend serves {dtype} tensors on {device_type}")


def define(
    schema: str,
    *,
    family: str,
    check: Callable[..., None],
    fake: Callable[..., Any],
    only_for_gradient: tuple[str, ...] = (),
    dtypes: tuple[torch.dtype, ...] = FLOAT_DTYPES,
) -> None:
    """Register an operation: schema, validation, shapes (fake) and dispatch to the backends.

    Args:
        schema: as ``torch.library`` takes it; the first argument is a tensor or a list of tensors, which decides about
            device and dtype; the last is ``str backend``.
        family: package that holds a module per backend.
        check: raises for tensors that do not fit together, before a kernel could read past their ends. Called with
            the schema's arguments by name, except those below.
        fake: output shapes and dtypes from the inputs', called like ``check`` and after it.
        only_for_gradient: keyword arguments that the gradient formula reads and the backends do not.
        dtypes: those of the first argument, for ``fastssl info``.
    """
    name = schema.split("(", 1)[0]
    OPERATIONS[name], DTYPES[name] = family, dtypes
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    names = [a.name for a in getattr(torch.ops.fastssl, name).default._schema.arguments if not a.kwarg_only]

    def checked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments that the backends take, by name."""
        arguments = {**dict(zip(names, args, strict=True)), **kwargs}
        for argument in only_for_gradient:
            del arguments[argument]
        check(**arguments)
        return arguments

    def dispatch(*args: Any, backend: str, **kwargs: Any) -> Any:
        arguments = checked(args, kwargs)
        first = args[0] if isinstance(args[0], torch.Tensor) else args[0][0]
        module = choose(name, first.device.type, first.dtype, backend)
        return getattr(module, name)(**arguments)

    def shapes(*args: Any, backend: str, **kwargs: Any) -> Any:
        return fake(**checked(args, kwargs))

    def vmap(info: Any, in_dims: Any, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"fastssl::{name} does not support torch.vmap; call it once per batch element")

    LIBRARY.impl(name, dispatch, "CompositeExplicitAutograd")  # every device; `choose` knows them
    _DISPATCH[name] = dispatch
    torch.library.register_fake(f"fastssl::{name}", shapes, lib=LIBRARY)
    torch.library.register_vmap(f"fastssl::{name}", vmap, lib=LIBRARY)


def direct(name: str) -> Callable[..., Any]:
    """An operation below the dispatcher, checked and served like the operator of that name.

    For callers that are no graph (an ``autograd.Function`` in eager mode), with keywords of the backends' functions
    that the operator does not have: one that lets outputs take the place of inputs is no function.
    """
    return _DISPATCH[name]


def define_gradient(name: str, *, setup_context: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Register an operation's gradient formula.

    What ``torch.library.register_autograd`` does, less its walk over the schema at every call, which takes time with
    the square of the number of arguments.

    Args:
        name: of the operation.
        setup_context: (ctx, tensors, keyword arguments, outputs), saves what the formula needs.
        backward: (ctx, *gradients of the outputs) -> a gradient or None for each positional argument. Lists of tensors
            are taken apart in ``ctx.needs_input_grad`` and in the gradients that come in; for an argument that is a
            list the formula returns a list, or None.
    """
    operator = getattr(torch.ops.fastssl, name).default

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            *flat, lengths, out_lengths, keyset, keywords = arguments
            tensors = _nested(flat, lengths)
            outputs = below_autograd(keyset, tensors, keywords)
            setup_context(ctx, tensors, keywords, outputs)
            ctx.lengths = lengths
            if isinstance(outputs, torch.Tensor):
                return outputs
            out_lengths += _lengths(outputs)
            return tuple(_flat(outputs))

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
            results: Any = []
            for result, length in zip(backward(ctx, *gradients), ctx.lengths, strict=True):
                results += [result] if length is None else [None] * length if result is None else result
            if torch.is_grad_enabled():  # create_graph=True: the formula itself must not be differentiated
                anchor = torch.zeros((), requires_grad=True)  # else a constant gradient passes for the derivative
                results = (None if result is None else _Last.apply(name, result, anchor) for result in results)
            return (*results, None, None, None, None)

    def below_autograd(keyset: Any, tensors: Sequence[Any], keywords: dict[str, Any]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            below = keyset & torch._C._after_ADInplaceOrView_keyset
            if below.highestPriorityTypeId() in _DEVICE_KEYS:  # nobody listens in between: save the way there
                return _DISPATCH[name](*tensors, **keywords)
            return operator.redispatch(keyset & torch._C._after_autograd_keyset, *tensors, **keywords)

    def autograd(keyset: Any, *tensors: Any, **keywords: Any) -> Any:
        flat = _flat(tensors)
        if forward_ad._current_level >= 0 and any(
            t is not None and forward_ad.unpack_dual(t).tangent is not None for t in flat
        ):
            raise NotImplementedError(f"fastssl::{name} does not support forward-mode differentiation")
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in flat):
            out_lengths: list[int | None] = []
            outputs = Gradient.apply(*flat, _lengths(tensors), out_lengths, keyset, keywords)
            return outputs if isinstance(outputs, torch.Tensor) else _nested(outputs, out_lengths)
        return below_autograd(keyset, tensors, keywords)

    LIBRARY.impl(name, autograd, "Autograd", with_keyset=True)


def _lengths(values: Sequence[Any]) -> list[int | None]:
    """How many tensors stand in each list; None for what is no list."""
    return [len(value) if isinstance(value, (list, tuple)) else None for value in values]


def _flat(values: Sequence[Any]) -> list[Any]:
    """Lists of tensors taken apart: autograd sees no tensors inside lists."""
    flat: list[Any] = []
    for value in values:
        flat += value if isinstance(value, (list, tuple)) else [value]
    return flat


def _nested(flat: Sequence[Any], lengths: Sequence[int | None]) -> tuple[Any, ...]:
    """The opposite of ``_flat``."""
    remaining = iter(flat)
    return tuple(next(remaining) if length is None else [next(remaining) for _ in range(length)] for length in lengths)


class _Last(torch.autograd.Function):
    """A gradient that goes no further: a second derivative is a clear error instead of a wrong number."""

    @staticmethod
    def forward(ctx: Any, name: str, gradient: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        ctx.name = name
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise RuntimeError(f"fastssl::{ctx.name}: second derivatives of the fused losses are not implemented")


def forbid_gradient(name: str, reason: str = "second derivatives of the fused losses are not implemented") -> None:
    """Make differentiating an operation without a gradient a clear error instead of a silent zero."""

    def nothing(ctx: Any, tensors: Sequence[Any], keywords: dict[str, Any], outputs: Any) -> None:
        pass

    def refuse(ctx: Any, *gradients: torch.Tensor) -> None:
        raise RuntimeError(f"fastssl::{name}: {reason}")

    define_gradient(name, setup_context=nothing, backward=refuse)
