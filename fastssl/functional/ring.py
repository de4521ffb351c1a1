"""Rows of this rank against the rows of all ranks, which pass by one rank's block after the other.

Gathering holds every rank's rows at once, [world_size N, D]. Here a rank holds its own block, the one it computes with,
and the one that is arriving meanwhile. What it computes is the same, with the same operators: log-sums add up over
blocks of columns, and the gradient takes the log-sums of all rows, which are vectors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import backends, distributed
from ..ops import checks
from ..ops.precision import accumulator

Exchange = Literal["gather", "ring"]

_ABSENT = (None, None, None)


def outside_of_graphs(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compiler.disable`` from the first call on: it imports the compiler, which takes seconds."""

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        return torch.compiler.disable(function)(*arguments, **keywords)

    return call


def in_ring(function: str, exchange: Exchange, group: dist.ProcessGroup | None) -> bool:
    """Whether blocks are to be passed around: that was asked for, and there is more than one rank.

    Raises:
        ValueError: if ``exchange`` is another word.
    """
    checks.check_choice(function, "exchange", exchange, ("gather", "ring"))
    return exchange == "ring" and group is not None and group.size() > 1


@outside_of_graphs
def pairwise_logsumexp(
    q: Tensor,
    k: Tensor | None,
    logit_scale: Tensor | None,
    keys: Tensor | None = None,
    *,
    caller: tuple[str, str],
    group: dist.ProcessGroup,
    **rules: Any,
) -> tuple[Tensor, Tensor]:
    """Log-sums and positive logits [N] of this rank's rows, over the columns of all ranks.

    Args:
        q: this rank's rows, [N, D], rows rank N and following of the global problem.
        k: this rank's columns, [N, D], at the same places; None: the rows.
        logit_scale: tensor with one element, or None.
        keys: int64 [N], of rows which are columns, for positives by key.
        caller: names of the function and of its argument, for the error where ranks have other shapes.
        group: whose ranks hold the other columns, each as many.
        **rules: scale, normalize, positives, exclude_self, exclude_positives.
    """
    distributed.check_same_shape(*caller, q, group)
    return _Logsumexp.apply(q, k, logit_scale, keys, group, rules)


class _Logsumexp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor | None,
        logit_scale: Tensor | None,
        keys: Tensor | None,
        group: dist.ProcessGroup,
        rules: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        row_offset = q.shape[0] * group.rank()
        log_sum = q.new_full(q.shape[:1], -torch.inf, dtype=accumulator(q))
        positive = torch.zeros_like(log_sum)
        for rank, (columns, *column_keys) in distributed.ring_blocks(_columns(q, k, keys), group):
            own = k is None and rank == group.rank()  # symmetric: half the products
            here = torch.ops.fastssl.pairwise_logsumexp(
                q, None if own else columns, logit_scale, keys, column_keys[0] if column_keys else None,
                row_offset=row_offset, col_offset=q.shape[0] * rank, shared_by="", first_row=0, row_stride=1,
                backend=backends.forced(), **rules,
            )  # fmt: skip
            log_sum = torch.logaddexp(log_sum, here[0])
            positive += here[1]
        ctx.group, ctx.rules, ctx.backend = group, rules, backends.forced()
        ctx.save_for_backward(q, k, logit_scale, keys, log_sum)
        return log_sum, positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_log_sum: Tensor, d_positive: Tensor) -> tuple[Tensor | None, ...]:
        q, k, logit_scale, keys, log_sum = ctx.saved_tensors
        group, rules = ctx.group, ctx.rules
        need_q, need_k, need_scale = ctx.needs_input_grad[:3]
        has_positives = rules["positives"] != "none"
        of_rows = log_sum, d_log_sum.contiguous(), d_positive.contiguous() if has_positives else None
        n, rank = q.shape[0], group.rank()
        # Ranks want the same gradients: one that left an exchange out would keep the others waiting for its block.
        of_all = distributed.all_gather_vectors(of_rows, group.group_name) if k is None or need_k else _ABSENT

        def gradient(
            rows: Tensor, columns: Tensor, from_rank: int, of_own: Any, of_columns: Any, column_keys: list[Tensor]
        ) -> tuple[Tensor, Tensor]:
            own = k is None and from_rank == rank
            return torch.ops.fastssl.pairwise_logsumexp_grad(
                rows, None if own else columns, logit_scale, *of_own, *(_ABSENT if own else of_columns), keys,
                column_keys[0] if column_keys else None, row_offset=n * rank, col_offset=n * from_rank, row_step=1,
                backend=ctx.backend, **rules,
            )  # fmt: skip

        def at(other: int) -> list[Tensor | None]:
            return [None if vector is None else vector[n * other : n * (other + 1)] for vector in of_all]

        # Blocks' shares are added up in the accumulator's precision and rounded once more.
        dq = dk = d_scale = None
        total = log_sum.new_zeros(())
        if need_q or need_scale or k is None:
            dq = torch.zeros_like(q, dtype=accumulator(q))
            for other, (columns, *column_keys) in distributed.ring_blocks(_columns(q, k, keys), group):
                of_columns = at(other) if k is None else _ABSENT
                here, by_scale = gradient(q, columns, other, of_rows, of_columns, column_keys)
                dq += here
                total += by_scale
            dq = dq.to(q.dtype)
        if k is not None and need_k:  # the rows pass by the columns: no gradient has to travel
            dk = torch.zeros_like(k, dtype=accumulator(k))
            for other, (rows,) in distributed.ring_blocks([q], group):
                dk += gradient(k, rows, other, _ABSENT, at(other), [])[0]
            dk = dk.to(k.dtype)
        if need_scale:
            # Among themselves every logit was counted from its row and from its column.
            d_scale = (total * rules["scale"] * (0.5 if k is None else 1.0)).to(logit_scale.dtype)
        return dq if need_q else None, dk, d_scale, None, None, None


def _columns(q: Tensor, k: Tensor | None, keys: Tensor | None) -> list[Tensor]:
    """What travels: columns, and their keys where there are some."""
    return [q if k is None else k, *([] if keys is None else [keys])]


@outside_of_graphs
def pairwise_logsumexp_both_ways(
    x: Tensor, y: Tensor, logit_scale: Tensor | None, *, caller: tuple[str, str], group: dist.ProcessGroup, **rules: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-sums and positive logits of x's rows over all ranks' y, and of y's rows over all ranks' x: four times [N].

    Args:
        x: this rank's rows of one set, [N, D].
        y: those of the other, [N, D].
        logit_scale: tensor with one element, or None.
        caller: as above.
        group: whose ranks hold the other rows, each as many.
        **rules: scale, normalize, positives, exclude_self, exclude_positives.
    """
    distributed.check_same_shape(*caller, x, group)
    return _BothWays.apply(x, y, logit_scale, group, rules)


class _BothWays(torch.autograd.Function):
    """One trip of both sets. In the backward pass one product gives what a row gets as a row and as a column."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, logit_scale: Tensor | None, group: dist.ProcessGroup, rules: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        n, sides = x.shape[0], (x, y)
        log_sums = [side.new_full((n,), -torch.inf, dtype=accumulator(side)) for side in sides]
        positives = [torch.zeros_like(log_sum) for log_sum in log_sums]
        for rank, blocks in distributed.ring_blocks(sides, group):
            for i, (rows, columns) in enumerate(zip(sides, reversed(blocks), strict=True)):
                log_sum, positive = torch.ops.fastssl.pairwise_logsumexp(
                    rows, columns, logit_scale, None, None, row_offset=n * group.rank(), col_offset=n * rank,
                    shared_by="", first_row=0, row_stride=1, backend=backends.forced(), **rules,
                )  # fmt: skip
                log_sums[i] = torch.logaddexp(log_sums[i], log_sum)
                positives[i] += positive
        ctx.group, ctx.rules, ctx.backend = group, rules, backends.forced()
        ctx.save_for_backward(x, y, logit_scale, *log_sums)
        return log_sums[0], positives[0], log_sums[1], positives[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        x, y, logit_scale, *log_sums = ctx.saved_tensors
        group, n, sides = ctx.group, x.shape[0], (x, y)
        terms = [(log_sums[i], incoming[2 * i].contiguous(), incoming[2 * i + 1].contiguous()) for i in range(2)]
        gathered = distributed.all_gather_vectors([*terms[0], *terms[1]], group.group_name)
        gradients = [torch.zeros_like(side, dtype=accumulator(side)) for side in sides]
        total = log_sums[0].new_zeros(())
        for rank, blocks in distributed.ring_blocks(sides, group):
            at_rank = [None if vector is None else vector[n * rank : n * (rank + 1)] for vector in gathered]
            for i, (rows, columns) in enumerate(zip(sides, reversed(blocks), strict=True)):
                here, by_scale = torch.ops.fastssl.pairwise_logsumexp_grad(
                    rows, columns, logit_scale, *terms[i], *(at_rank[:3] if i else at_rank[3:]), None, None,
                    row_offset=n * group.rank(), col_offset=n * rank, row_step=1, backend=ctx.backend, **ctx.rules,
                )  # fmt: skip
                gradients[i] += here
                total += by_scale if i == 0 else 0.0  # of each pair once: this rank's x with all y
        d_scale = (total * ctx.rules["scale"]).to(logit_scale.dtype) if ctx.needs_input_grad[2] else None
        results = (
            gradient.to(side.dtype) if wanted else None
            for gradient, side, wanted in zip(gradients, sides, ctx.needs_input_grad, strict=False)
        )
        return *results, d_scale, None, None


@outside_of_graphs
def siglip(
    x: Tensor,
    y: Tensor,
    logit_scale: Tensor | None,
    logit_bias: Tensor | None,
    *,
    caller: tuple[str, str],
    group: dist.ProcessGroup,
    **rules: Any,
) -> Tensor:
    """SigLIP's loss [] of this rank's rows against the columns of all ranks.

    Args:
        x: this rank's rows, [N, D].
        y: this rank's columns, [N, D].
        logit_scale: tensor with one element, or None.
        logit_bias: the same.
        caller: as above.
        group: whose ranks hold the other columns, each as many.
        **rules: scale, bias, normalize, weight, gradient.
    """
    distributed.check_same_shape(*caller, x, group)
    return _SigLip.apply(x, y, logit_scale, logit_bias, group, rules)


class _SigLip(torch.autograd.Function):
    """The gradient of a block of columns follows it one step behind, and ends where the block came from."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        logit_scale: Tensor | None,
        logit_bias: Tensor | None,
        group: dist.ProcessGroup,
        rules: dict[str, Any],
    ) -> Tensor:
        n, gradient = x.shape[0], rules["gradient"]
        numbers = [x.new_zeros((), dtype=accumulator(x)) for _ in range(3)]  # loss, by scale, by bias
        dx = torch.zeros_like(x, dtype=accumulator(x))
        passed_on: Tensor | None = None  # the last block's gradient, of the ranks that it has visited
        for rank, (columns,) in distributed.ring_blocks([y], group):
            arriving = torch.empty_like(dx) if gradient and passed_on is not None else None
            on_their_way = [] if arriving is None else distributed.pass_on([passed_on], [arriving], group)  # type: ignore[list-item]
            loss, here, of_columns, *derivatives = torch.ops.fastssl.siglip(
                x, columns, logit_scale, logit_bias, row_offset=n * (group.rank() - rank), backend=backends.forced(),
                **rules,
            )  # fmt: skip
            for number, term in zip(numbers, (loss, *derivatives), strict=True):
                number += term
            if not gradient:
                continue
            dx += here
            for transfer in on_their_way:
                transfer.wait()
            passed_on = of_columns.to(dx.dtype) if arriving is None else arriving.add_(of_columns)
        dy = torch.empty_like(dx)
        if passed_on is not None:
            for transfer in distributed.pass_on([passed_on], [dy], group):
                transfer.wait()
        ctx.scale = rules["scale"]
        ctx.save_for_backward(dx.to(x.dtype), dy.to(y.dtype), *numbers[1:], logit_scale, logit_bias)
        return numbers[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        dx, dy, by_scale, by_bias, logit_scale, logit_bias = ctx.saved_tensors
        need_x, need_y, need_scale, need_bias = ctx.needs_input_grad[:4]
        return (
            dx * d_loss if need_x else None,
            dy * d_loss if need_y else None,
            (d_loss * by_scale * ctx.scale).to(logit_scale.dtype) if need_scale else None,
            (d_loss * by_bias).to(logit_bias.dtype) if need_bias else None,
            None,
            None,
        )
