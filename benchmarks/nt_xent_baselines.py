"""NT-Xent in PyTorch's public functions: as people write it, and in the strongest forms that we know.

With unit rows z [M, D], s = 1 / temperature and e_ij = exp(s z_i . z_j), 0 on the diagonal, the loss is the mean of
``log sum_j e_ij - s z_i . z_positive(i)``, and with the sums S its gradient is

    dz_i = s / M (sum_j e_ij (1 / S_i + 1 / S_j) z_j - 2 z_positive(i))

What the strong forms make of that: e is symmetric, so one product with the weights e_ij (1 / S_i + 1 / S_j) replaces
the two that autograd takes, and a block of the matrix serves its rows and, transposed, its columns. Logits lie within
+-s, so no maximum needs to be subtracted as long as exp(s) fits. The positives stay outside of the matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_SCALE = 30  # e^30 = 1e13: sums of millions of them, their inverses and their products stay within float32
BLOCK_ROWS = {"cpu": 512, "cuda": 8192}  # a block of exponentials stays in a CPU's cache; a GPU wants large products
# Exponentials that the chunked form keeps for the gradient, so that memory stays O(N D): on a CPU as fastssl does.
KEPT_BYTES = {"cpu": 32 << 20, "cuda": 1 << 29}


def eager(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    """The loss as the paper's readers write it."""
    z = F.normalize(torch.cat([z0, z1]), dim=1)
    n = z.shape[0]
    logits = z @ z.T / temperature
    logits = logits.masked_fill(torch.eye(n, dtype=torch.bool, device=z.device), -torch.inf)
    return F.cross_entropy(logits, torch.arange(n, device=z.device).roll(n // 2))


def lean(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    """The same with fewer passes over the matrix: scale folded into a row, log-sum-exp, positives apart."""
    a, b = F.normalize(z0, dim=1), F.normalize(z1, dim=1)
    z = torch.cat([a, b])
    logits = (z * (1 / temperature)) @ z.T
    logits = logits.fill_diagonal_(-torch.inf)
    positive = (a * b).sum(1) / temperature
    return logits.logsumexp(1).mean() - positive.mean()


def symmetric(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    """The formulas above on the whole matrix, to be compiled: 4 M^2 D FLOPs where autograd takes 6."""
    return _Symmetric.apply(F.normalize(torch.cat([z0, z1]), dim=1), 1 / temperature)


def chunked(z0: Tensor, z1: Tensor, temperature: float, *, compiled: bool = False) -> Tensor:
    """The formulas above on blocks of the upper triangle, in O(N D) memory: 4 M^2 D FLOPs, 3 where all e are kept.

    Args:
        z0, z1: [N, D] each.
        temperature: above 0.
        compiled: ``torch.compile`` makes what stands between the products.
    """
    return _Chunked.apply(F.normalize(torch.cat([z0, z1]), dim=1), 1 / temperature, compiled)


# ------------------------------------------------------------------------------------------------ arithmetic of a block


class _Exponentials:
    """Sums of exp(logit): for scales up to ``LARGEST_SCALE``."""

    start, join = 0.0, staticmethod(torch.add)  # of sums over blocks

    @staticmethod
    def kept(logits: Tensor) -> Tensor:
        """What the gradient can use again. May take the logits' memory, as ``weights`` may take this one's."""
        # float16 has not the range for them; bfloat16 has, and its logits were rounded more than this rounds.
        return logits.to(torch.float32 if logits.dtype == torch.float16 else logits.dtype).exp_()

    @staticmethod
    def sums(kept: Tensor) -> tuple[Tensor, Tensor]:
        """Of its rows and of its columns."""
        return kept.sum(1, dtype=torch.float32), kept.sum(0, dtype=torch.float32)

    @staticmethod
    def log_sums(sums: Tensor) -> Tensor:
        return sums.log()

    @staticmethod
    def factors(sums: Tensor) -> Tensor:
        """What ``weights`` takes of each row and column."""
        return sums.reciprocal()

    @staticmethod
    def weights(kept: Tensor, of_rows: Tensor, of_columns: Tensor) -> Tensor:
        """The gradient's weight of every pair: its share in the row's sum and in the column's."""
        return kept.mul_((of_rows[:, None] + of_columns).to(kept.dtype))


class _Logarithms:
    """The same with log-sums, for any scale: each row's maximum, and two exponentials per weight."""

    start, join = -torch.inf, staticmethod(torch.logaddexp)

    @staticmethod
    def kept(logits: Tensor) -> Tensor:
        return logits

    @staticmethod
    def sums(kept: Tensor) -> tuple[Tensor, Tensor]:
        wide = kept.float()
        return wide.logsumexp(1), wide.logsumexp(0)

    @staticmethod
    def log_sums(sums: Tensor) -> Tensor:
        return sums

    @staticmethod
    def factors(sums: Tensor) -> Tensor:
        return sums

    @staticmethod
    def weights(kept: Tensor, of_rows: Tensor, of_columns: Tensor) -> Tensor:
        wide = kept.float()
        return (wide - of_rows[:, None]).exp_().add_((wide - of_columns).exp_())


_Arithmetic: TypeAlias = type[_Exponentials] | type[_Logarithms]


def _arithmetic(scale: float) -> _Arithmetic:
    return _Exponentials if scale <= LARGEST_SCALE else _Logarithms


def _loss(z: Tensor, scale: float, log_sums: Tensor) -> Tensor:
    wide = z.float()
    return (log_sums.sum() - scale * (wide * wide.roll(z.shape[0] // 2, 0)).sum()) / z.shape[0]


# -------------------------------------------------------------------------------------------------------- the two forms


class _Symmetric(torch.autograd.Function):
    """Takes normalised rows; keeps one matrix for the backward pass."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, scale: float) -> Tensor:
        arithmetic = _arithmetic(scale)
        row = torch.arange(z.shape[0], device=z.device)
        # Compiled, this scaling costs nothing. That of rows would be rounded, and the matrix not quite symmetric.
        logits = torch.where(row[:, None] == row, -torch.inf, (z @ z.T) * scale)
        kept = arithmetic.kept(logits)
        sums, _ = arithmetic.sums(kept)
        ctx.save_for_backward(z, kept, arithmetic.factors(sums))
        ctx.scale = scale
        return _loss(z, scale, arithmetic.log_sums(sums))

    @staticmethod
    def backward(ctx: Any, *d_loss: Tensor) -> tuple[Tensor | None, ...]:
        z, kept, factors = ctx.saved_tensors
        m = z.shape[0]
        weights = _arithmetic(ctx.scale).weights(kept.clone(), factors, factors).to(z.dtype)
        gradient = (weights @ z).float() - 2 * z.float().roll(m // 2, 0)
        return (gradient * (ctx.scale / m * d_loss[0])).to(z.dtype), None


@dataclass(frozen=True)
class _BlockSteps:
    """What a block goes through between its products."""

    kept_and_sums: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    weights_of_logits: Callable[[Tensor, Tensor, Tensor], Tensor]
    weights_of_kept: Callable[[Tensor, Tensor, Tensor], Tensor]


@cache
def _block_steps(scale: float, compiled: bool) -> _BlockSteps:
    arithmetic = _arithmetic(scale)

    def kept_and_sums(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept = arithmetic.kept(logits)
        return kept, *arithmetic.sums(kept)

    def weights_of_logits(logits: Tensor, of_rows: Tensor, of_columns: Tensor) -> Tensor:
        return arithmetic.weights(arithmetic.kept(logits), of_rows, of_columns)

    steps = kept_and_sums, weights_of_logits, arithmetic.weights
    # Dynamic: the last block of a row has another size.
    return _BlockSteps(*(torch.compile(step, dynamic=True) for step in steps) if compiled else steps)


class _Chunked(torch.autograd.Function):
    """Takes normalised rows; has the gradient already in the forward pass, and keeps nothing but that."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, scale: float, compiled: bool) -> Tensor:
        m, size, room = z.shape[0], BLOCK_ROWS[z.device.type], KEPT_BYTES[z.device.type]
        arithmetic = _arithmetic(scale)
        steps = _block_steps(scale, compiled)
        parts = [slice(start, min(start + size, m)) for start in range(0, m, size)]
        upper = [(rows, columns) for number, rows in enumerate(parts) for columns in parts[number:]]
        scaled = z * scale

        def logits(rows: slice, columns: slice) -> Tensor:
            block = torch.mm(scaled[rows], z[columns].T)
            return block.fill_diagonal_(-torch.inf) if rows is columns else block

        sums = torch.full((m,), arithmetic.start, device=z.device)
        first: list[Tensor] = []  # what is kept of the first blocks
        for rows, columns in upper:
            kept, of_rows, of_columns = steps.kept_and_sums(logits(rows, columns))
            sums[rows] = arithmetic.join(sums[rows], of_rows)
            if rows is not columns:
                sums[columns] = arithmetic.join(sums[columns], of_columns)
            room -= kept.nbytes
            if room >= 0 and ctx.needs_input_grad[0]:
                first.append(kept)
        loss = _loss(z, scale, arithmetic.log_sums(sums))
        if not ctx.needs_input_grad[0]:
            return loss

        factors = arithmetic.factors(sums)
        gradient = z.float().roll(m // 2, 0).mul_(-2)
        first.reverse()
        for rows, columns in upper:
            pair = factors[rows], factors[columns]
            if first:
                weights = steps.weights_of_kept(first.pop(), *pair)
            else:
                weights = steps.weights_of_logits(logits(rows, columns), *pair)
            weights = weights.to(z.dtype)
            _add_product(gradient[rows], weights, z[columns])
            if rows is not columns:
                _add_product(gradient[columns], weights.T, z[rows])
        ctx.save_for_backward(gradient.mul_(scale / m).to(z.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *d_loss: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * d_loss[0]).to(gradient.dtype), None, None


def _add_product(to: Tensor, a: Tensor, b: Tensor) -> None:
    if a.dtype == to.dtype:
        to.addmm_(a, b)
    else:
        to += a @ b
