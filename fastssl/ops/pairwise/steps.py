"""Losses with their gradients in one call, for losses whose rows all have the same weight: schemas, shapes, gradients.

``nt_xent``
    the rows of two views among themselves, positives next to each other.
``clip``
    the rows of one set against those of another and the other way around, positives on the diagonal.
``info_nce``
    rows that each have one positive, against columns that want no gradient (a queue, a momentum encoder's keys).

Each returns weight x the sum of its rows' losses, the gradients of that for its inputs, and its derivative by the full
scale; backward multiplies them. Without ``gradient`` they are empty or undefined. ``composed.py`` has the definitions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..precision import accumulator
from ..registry import define, define_gradient

_RULES = "float scale, bool normalize, float weight, bool gradient, str backend"


def _check(name: str, tensors: dict[str, Tensor], gradient: bool) -> None:
    """Rows [N, D], all like the first."""
    (first, like), *others = tensors.items()
    checks.check_tensor(name, first, like, ndim=2, layout="[N, D]")
    for other, tensor in others:
        checks.check_tensor(name, other, tensor, ndim=2, layout="[N, D]")
        for attribute in ("shape", "dtype", "device"):
            checks.check_same(name, attribute, (first, like), (other, tensor))
    # Rounded to float16 before a loss scaler multiplies them, gradients vanish.
    if gradient and like.dtype == torch.float16:
        raise TypeError(f"{name}: the operator computes no float16 gradients, take pairwise_logsumexp")


def _check_nt_xent(z0: Tensor, z1: Tensor, *, gradient: bool, **rules: Any) -> None:
    _check("nt_xent", {"z0": z0, "z1": z1}, gradient)


def _check_clip(x: Tensor, y: Tensor, *, gradient: bool, **rules: Any) -> None:
    _check("clip", {"x": x, "y": y}, gradient)


def _check_info_nce(
    q: Tensor, k: Tensor, positive: Tensor | None, *, row_offset: int, gradient: bool, **rules: Any
) -> None:
    _check("info_nce", {"q": q} if positive is None else {"q": q, "positive": positive}, gradient)
    checks.check_tensor("info_nce", "k", k, ndim=2, layout="[K, D]")
    if positive is None and not 0 <= row_offset <= k.shape[0] - q.shape[0]:
        raise ValueError(
            f"info_nce: row_offset must leave a column for each of the {q.shape[0]} rows among {k.shape[0]}, "
            f"got {row_offset}"
        )
    for attribute in ("dtype", "device"):
        checks.check_same("info_nce", attribute, ("q", q), ("k", k))
    if q.shape[1] != k.shape[1]:
        raise ValueError(f"info_nce: q and k must have the same D, got shapes {tuple(q.shape)} and {tuple(k.shape)}")


def _define(schema: str, check: Callable[..., None], differentiable: Sequence[str]) -> None:
    """An operator that returns a loss, the gradients for some of its inputs, and the derivative by the full scale."""
    name = schema.split("(", 1)[0]

    def fake(*, logit_scale: Tensor | None, gradient: bool, **arguments: Any) -> tuple[Tensor, ...]:
        inputs = [arguments[argument] for argument in differentiable]
        loss = inputs[0].new_empty((), dtype=accumulator(inputs[0]))
        gradients = (x.new_empty(x.shape if gradient else (0,)) for x in inputs)
        return loss, *gradients, torch.empty_like(loss)

    outputs = ", ".join(["Tensor"] * (2 + len(differentiable)))
    define(f"{schema} -> ({outputs})", family=__package__, check=check, fake=fake)
    arguments = [a.name for a in getattr(torch.ops.fastssl, name).default._schema.arguments if not a.kwarg_only]
    places, of_scale = [arguments.index(argument) for argument in differentiable], arguments.index("logit_scale")

    def setup_context(ctx: Any, tensors: Sequence, keywords: dict[str, Any], outputs: tuple) -> None:
        if not keywords["gradient"]:
            raise RuntimeError(f"fastssl::{name}: an input requires a gradient, but the call has gradient=False")
        if any(
            wanted and i not in (*places, of_scale) for i, wanted in enumerate(ctx.needs_input_grad[: len(tensors)])
        ):
            raise RuntimeError(f"fastssl::{name}: only {', '.join(differentiable)} and logit_scale get gradients")
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.set_materialize_grads(False)  # of the gradients' gradients, which nobody reads
        ctx.scale = keywords["scale"]
        ctx.logit_scale_dtype = None if tensors[of_scale] is None else tensors[of_scale].dtype
        ctx.save_for_backward(*outputs[1:])

    def backward(ctx: Any, d_loss: Tensor | None, *_: None) -> list[Tensor | None]:
        results: list[Tensor | None] = [None] * len(arguments)
        if d_loss is None:
            return results
        *gradients, d_scale = ctx.saved_tensors
        for place, gradient in zip(places, gradients, strict=True):
            if ctx.needs_input_grad[place]:
                results[place] = gradient * d_loss
        if ctx.needs_input_grad[of_scale]:
            results[of_scale] = (d_loss * d_scale * ctx.scale).to(ctx.logit_scale_dtype)
        return results

    define_gradient(name, setup_context=setup_context, backward=backward)


_define(f"nt_xent(Tensor z0, Tensor z1, Tensor? logit_scale, *, {_RULES})", _check_nt_xent, ("z0", "z1"))
_define(f"clip(Tensor x, Tensor y, Tensor? logit_scale, *, {_RULES})", _check_clip, ("x", "y"))
# The positive of row i is row i of `positive`, one more column; or without that column row_offset + i.
_define(
    f"info_nce(Tensor q, Tensor k, Tensor? positive, Tensor? logit_scale, *, SymInt row_offset, {_RULES})",
    _check_info_nce,
    ("q",),
)
