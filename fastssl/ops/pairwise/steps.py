"""Losses with their gradients in one call, for losses whose rows all have the same weight: schemas, shapes, gradients.

``nt_xent``
    the rows of two views among themselves, positives next to each other.
``clip``
    the rows of one set against those of another and the other way around, positives on the diagonal.
``info_nce``
    rows that each have one positive, against columns that want no gradient (a queue, a momentum encoder's keys).
``siglip``
    all pairs of rows of two sets, each a yes or a no of its own.
``weighted``
    any weighted sum of rows' log-sums and positive logits, of rows among themselves (labels, decoupled losses).

``clip`` and ``siglip`` leave the gradient of the second set out where ``columns`` is False: it is a product of three.

Each returns weight x the sum of its losses, the gradients of that for its inputs, and its derivatives by the full scale
(and bias); backward multiplies them. Without ``gradient`` they are empty or undefined. ``composed.py`` has the
definitions, of ``siglip`` ``reference.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..precision import accumulator
from ..registry import define, define_gradient
from .op import POSITIVES

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


def _check_columns(name: str, rows: tuple[str, Tensor], columns: tuple[str, Tensor]) -> None:
    """Columns that rows are multiplied with, as many as there are."""
    for attribute in ("dtype", "device"):
        checks.check_same(name, attribute, rows, columns)
    shapes = tuple(rows[1].shape), tuple(columns[1].shape)
    if shapes[0][1] != shapes[1][1]:
        raise ValueError(
            f"{name}: {rows[0]} and {columns[0]} must have the same D, got shapes {shapes[0]} and {shapes[1]}"
        )


def _check_nt_xent(z0: Tensor, z1: Tensor, *, gradient: bool, **rules: Any) -> None:
    _check("nt_xent", {"z0": z0, "z1": z1}, gradient)


def _check_clip(x: Tensor, y: Tensor, *, gradient: bool, **rules: Any) -> None:
    _check("clip", {"x": x, "y": y}, gradient)


def _check_info_nce(
    q: Tensor,
    k: Tensor,
    positive: Tensor | None,
    index: Tensor | None,
    *,
    row_offset: int,
    gradient: bool,
    **rules: Any,
) -> None:
    _check("info_nce", {"q": q} if positive is None else {"q": q, "positive": positive}, gradient)
    checks.check_tensor("info_nce", "k", k, ndim=2, layout="[K, D]")
    if index is not None:
        checks.check_keys("info_nce", "index", index, length=q.shape[0], device=q.device)
        if positive is not None:
            raise ValueError("info_nce: positive and index exclude each other, got both")
    elif positive is None and not 0 <= row_offset <= k.shape[0] - q.shape[0]:
        raise ValueError(
            f"info_nce: row_offset must leave a column for each of the {q.shape[0]} rows among {k.shape[0]}, "
            f"got {row_offset}"
        )
    _check_columns("info_nce", ("q", q), ("k", k))


def _check_siglip(x: Tensor, y: Tensor, *, gradient: bool, **rules: Any) -> None:
    _check("siglip", {"x": x}, gradient)
    checks.check_tensor("siglip", "y", y, ndim=2, layout="[N, D]")
    _check_columns("siglip", ("x", x), ("y", y))


def _check_weighted(
    z: Tensor,
    key: Tensor | None,
    row_weight: Tensor,
    positive_weight: Tensor,
    *,
    positives: str,
    gradient: bool,
    **rules: Any,
) -> None:
    _check("weighted", {"z": z}, gradient)
    checks.check_choice("weighted", "positives", positives, POSITIVES)
    if positives == "key":
        checks.check_keys("weighted", "key", key, length=z.shape[0], device=z.device)
    for name, vector in (("row_weight", row_weight), ("positive_weight", positive_weight)):
        if vector.shape != z.shape[:1] or vector.dtype != accumulator(z) or vector.device != z.device:
            raise ValueError(
                f"weighted: {name} must be {accumulator(z)} of shape ({z.shape[0]},) on {z.device}, got {vector.dtype} "
                f"of shape {tuple(vector.shape)} on {vector.device}"
            )


def _define(
    schema: str,
    check: Callable[..., None],
    differentiable: Sequence[str],
    numbers: Sequence[str] = ("logit_scale",),
) -> None:
    """An operator that returns a loss, the gradients for some of its inputs, and the derivatives by some numbers.

    ``numbers`` are tensors [] or None: that by the scale is by the full one, which ``logit_scale`` is a factor of.
    An argument ``columns`` says whether more than the first of the inputs gets its gradient.
    """
    name = schema.split("(", 1)[0]

    def fake(*, gradient: bool, columns: bool = True, **arguments: Any) -> tuple[Tensor, ...]:
        inputs = [arguments[argument] for argument in differentiable]
        loss = inputs[0].new_empty((), dtype=accumulator(inputs[0]))
        wanted = [gradient and (columns or i == 0) for i in range(len(inputs))]
        gradients = (x.new_empty(x.shape if want else (0,)) for x, want in zip(inputs, wanted, strict=True))
        return loss, *gradients, *(torch.empty_like(loss) for _ in numbers)

    outputs = ", ".join(["Tensor"] * (1 + len(differentiable) + len(numbers)))
    define(f"{schema} -> ({outputs})", family=__package__, check=check, fake=fake)
    arguments = [a.name for a in getattr(torch.ops.fastssl, name).default._schema.arguments if not a.kwarg_only]
    places, of_numbers = ([arguments.index(name) for name in names] for names in (differentiable, numbers))

    def setup_context(ctx: Any, tensors: Sequence, keywords: dict[str, Any], outputs: tuple) -> None:
        if not keywords["gradient"]:
            raise RuntimeError(f"fastssl::{name}: an input requires a gradient, but the call has gradient=False")
        of_inputs = len(places) if keywords.get("columns", True) else 1
        served = (*places[:of_inputs], *of_numbers)
        if any(wanted and i not in served for i, wanted in enumerate(ctx.needs_input_grad[: len(tensors)])):
            listed = f"{', '.join(differentiable[:of_inputs])} and {' and '.join(numbers)}"
            raise RuntimeError(f"fastssl::{name}: only {listed} get gradients")
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.set_materialize_grads(False)  # of the gradients' gradients, which nobody reads
        ctx.factors = [keywords["scale"] if number == "logit_scale" else 1.0 for number in numbers]
        ctx.dtypes = [None if tensors[place] is None else tensors[place].dtype for place in of_numbers]
        ctx.save_for_backward(*outputs[1:])

    def backward(ctx: Any, d_loss: Tensor | None, *_: None) -> list[Tensor | None]:
        results: list[Tensor | None] = [None] * len(arguments)
        if d_loss is None:
            return results
        saved = ctx.saved_tensors
        for place, gradient in zip(places, saved, strict=False):
            if ctx.needs_input_grad[place]:
                results[place] = gradient * d_loss
        derivatives = saved[len(places) :]
        for place, derivative, factor, dtype in zip(of_numbers, derivatives, ctx.factors, ctx.dtypes, strict=True):
            if ctx.needs_input_grad[place]:
                results[place] = (d_loss * derivative * factor).to(dtype)
        return results

    define_gradient(name, setup_context=setup_context, backward=backward)


_define(f"nt_xent(Tensor z0, Tensor z1, Tensor? logit_scale, *, {_RULES})", _check_nt_xent, ("z0", "z1"))
_define(f"clip(Tensor x, Tensor y, Tensor? logit_scale, *, bool columns, {_RULES})", _check_clip, ("x", "y"))
# The positive of row i is row i of `positive`, one more column; or column index[i], of which there may be none; or
# without both column row_offset + i.
_define(
    "info_nce(Tensor q, Tensor k, Tensor? positive, Tensor? index, Tensor? logit_scale, *, SymInt row_offset, "
    f"{_RULES})",
    _check_info_nce,
    ("q",),
)
_define(
    "weighted(Tensor z, Tensor? key, Tensor row_weight, Tensor positive_weight, Tensor? logit_scale, *, float scale, "
    "bool normalize, str positives, bool exclude_positives, bool gradient, str backend)",
    _check_weighted,
    ("z",),
)
# The positive of row i is column row_offset + i, where there is such a column.
_define(
    "siglip(Tensor x, Tensor y, Tensor? logit_scale, Tensor? logit_bias, *, float bias, SymInt row_offset, "
    f"bool columns, {_RULES})",
    _check_siglip,
    ("x", "y"),
    ("logit_scale", "logit_bias"),
)
