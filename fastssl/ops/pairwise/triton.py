"""Pairwise log-sum-exp on CUDA devices: launches the kernels in ``kernels/pairwise``.

Nothing here waits for the device or reads a tensor's value. Memory beyond inputs and outputs: the rounded rows and
columns, partial row sums, and at most ``CHUNK_ELEMENTS`` of G where the dimension is too wide for one kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from fastssl.kernels.pairwise.bank import bank_kernel
from fastssl.kernels.pairwise.common import prepare_kernel
from fastssl.kernels.pairwise.gradient import (
    finalize_kernel,
    gradient_kernel,
    pair_weights_kernel,
    terms_kernel,
    weight_scale_kernel,
)
from fastssl.kernels.pairwise.logsum import combine_kernel, logsum_kernel
from fastssl.kernels.pairwise.sigmoid import sigmoid_kernel, sigmoid_weights_kernel
from fastssl.kernels.tiles import Tile

from ..precision import widened
from ..triton_launch import INTERPRETED, OPTIONS, multiprocessors, on_device_of, unsupported_reason
from . import composed
from .triton_problem import Problem, Weights

__all__ = [
    "clip", "info_nce", "nt_xent", "pairwise_logsumexp", "pairwise_logsumexp_grad", "siglip", "unsupported_reason",
    "weighted",
]  # fmt: skip

# Largest G that is written at once (rows x columns). 2^27 elements: 256 MB in 16 bits, 512 MB in float32.
CHUNK_ELEMENTS = 1 << 27
# Row blocks whose column sums are kept side by side in a symmetric problem: their memory is 4 x this x M bytes.
COLUMN_SUM_SLOTS = 256
# Columns are split over programs until there are this many: a few rounds, so that the last one does not weigh much.
PROGRAMS_PER_MULTIPROCESSOR = 8


# ----------------------------------------------------------------------------------------------- the two functions


def pairwise_logsumexp(
    q: Tensor,  # [M, D]
    k: Tensor | None,  # [N, D], None: the columns are q
    logit_scale: Tensor | None,  # []
    *,
    scale: float,
    normalize: bool,
    positives: str,
    row_key: Tensor | None,  # [M]
    col_key: Tensor | None,  # [N]
    exclude_self: bool,
    exclude_positives: bool,
    row_offset: int,
    col_offset: int,
) -> tuple[Tensor, Tensor]:
    """Log-sum [M] and sum of the positive logits [M] of every row, float32."""
    with on_device_of(q):
        problem = Problem.of(
            q, k, logit_scale, scale=scale, normalize=normalize, positives=positives,
            row_key=row_key, col_key=col_key, exclude_self=exclude_self, exclude_positives=exclude_positives,
            row_offset=row_offset, col_offset=col_offset, row_step=1,
        )  # fmt: skip
        return _logsum(problem)


def pairwise_logsumexp_grad(
    q: Tensor,  # [M, D]
    k: Tensor | None,  # [N, D]
    logit_scale: Tensor | None,  # []
    row_lse: Tensor | None,  # [M]
    row_weight: Tensor | None,  # [M]
    row_positive_weight: Tensor | None,  # [M]
    col_lse: Tensor | None,  # [N]
    col_weight: Tensor | None,  # [N]
    col_positive_weight: Tensor | None,  # [N]
    *,
    scale: float,
    normalize: bool,
    positives: str,
    row_key: Tensor | None,
    col_key: Tensor | None,
    exclude_self: bool,
    exclude_positives: bool,
    row_offset: int,
    col_offset: int,
    row_step: int,
) -> tuple[Tensor, Tensor]:
    """Gradient for the rows [M, D] in their dtype, and the derivative with respect to the full scale [], float32."""
    with on_device_of(q):
        problem = Problem.of(
            q, k, logit_scale, scale=scale, normalize=normalize, positives=positives,
            row_key=row_key, col_key=col_key, exclude_self=exclude_self, exclude_positives=exclude_positives,
            row_offset=row_offset, col_offset=col_offset, row_step=row_step,
        )  # fmt: skip
        rows = Weights.of(row_lse, row_weight, row_positive_weight)
        columns = Weights.of(col_lse, col_weight, col_positive_weight)
        if k is None and columns.empty:
            columns = rows
        return _gradient(problem, rows, columns)


nt_xent = partial(composed.nt_xent, pairwise_logsumexp, pairwise_logsumexp_grad)
clip = partial(composed.clip, pairwise_logsumexp, pairwise_logsumexp_grad)
weighted = partial(composed.weighted, pairwise_logsumexp, pairwise_logsumexp_grad)


def info_nce(
    q: Tensor,  # [M, D]
    k: Tensor,  # [N, D]
    positive: Tensor | None,  # [M, D]
    index: Tensor | None,  # [M]
    logit_scale: Tensor | None,  # []
    *,
    scale: float,
    normalize: bool,
    row_offset: int,
    weight: float,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``composed.info_nce``; one pass over the columns where a kernel holds a row's gradient in registers."""
    with on_device_of(q):
        rule = composed.Positives.rule_of(positive, index)
        problem = Problem.of(
            q, k, logit_scale, scale=scale, normalize=normalize, positives=rule, row_key=index, col_key=None,
            exclude_self=False, exclude_positives=rule != "none", row_offset=row_offset, col_offset=0, row_step=1,
        )  # fmt: skip
        tile = problem.tile("bank") if gradient else None
        if tile is None:
            return composed.info_nce(
                pairwise_logsumexp, pairwise_logsumexp_grad, q, k, positive, index, logit_scale, scale=scale,
                normalize=normalize, row_offset=row_offset, weight=weight, gradient=gradient,
            )  # fmt: skip
        others, attended = _bank(problem, tile)
        positives = composed.Positives.of(q, k, positive, index, row_offset)  # gathers rows: only here
    s = scale if logit_scale is None else scale * logit_scale
    rows, own = (F.normalize(widened(x), dim=1) if normalize else widened(x) for x in (q, positives.rows))
    cosine = (rows * own).sum(1)
    logit = s * cosine
    in_sum = positives.in_sum(logit)
    log_sum = torch.logaddexp(others, in_sum)
    of_columns = weight * (others - log_sum).exp()[:, None] * attended
    of_positive = weight * torch.expm1(in_sum - log_sum)
    d_rows = s * (of_columns + of_positive[:, None] * own)
    d_scale = (of_columns * rows).sum() + (of_positive * cosine).sum()
    dq = composed.through_normalize(d_rows, q, normalize).to(q.dtype)
    return weight * (log_sum - logit).sum(), dq, d_scale


def siglip(
    x: Tensor,  # [M, D]
    y: Tensor,  # [N, D]
    logit_scale: Tensor | None,  # []
    logit_bias: Tensor | None,  # []
    *,
    scale: float,
    bias: float,
    normalize: bool,
    row_offset: int,
    columns: bool,
    weight: float,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See ``reference.siglip``. Each side's gradient has a pass of its own, as no two programs add to one row."""
    rules: dict[str, Any] = {
        "scale": scale, "normalize": normalize, "positives": "diagonal", "row_key": None, "col_key": None,
        "exclude_self": False, "exclude_positives": False, "row_step": 1,
    }  # fmt: skip
    with on_device_of(x):
        problem = Problem.of(x, y, logit_scale, row_offset=row_offset, col_offset=0, **rules)
        (loss, d_bias), dx, d_scale = _sigmoid(problem, bias, logit_bias, weight, sums=True, gradient=gradient)
        dy = y.new_empty((0,))
        if gradient and columns:
            problem = Problem.of(y, x, logit_scale, row_offset=0, col_offset=row_offset, **rules)
            _, dy, _ = _sigmoid(problem, bias, logit_bias, weight, sums=False, gradient=True)
        return loss, dx, dy, d_scale, d_bias


# ------------------------------------------------------------------------------------------------------------ steps


def _prepared(problem: Problem, multiple: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and the rows' inverse norms, padded to a multiple of the tile."""
    rows, inverse = _prepare(problem, problem.q, multiple)
    return rows, rows if problem.k is None else _prepare(problem, problem.k, multiple)[0], inverse


def _prepare(problem: Problem, x: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """Normalised, rounded, padded rows [M_pad, D_pad] and inverse norms [M_pad]."""
    rows, columns = x.shape
    d = problem.dimension
    padded = _round_up(rows, multiple)
    out = torch.empty(padded, d, dtype=x.dtype, device=x.device)
    inverse = torch.empty(padded, dtype=torch.float32, device=x.device)
    block_d = min(triton.next_power_of_2(d), 1024)
    block_m = min(multiple, max(1, 2048 // block_d))  # both powers of two, so programs tile the padded rows
    prepare_kernel[(padded // block_m,)](
        x, out, inverse, rows, columns, x.stride(0),
        D=d, BLOCK_M=block_m, BLOCK_D=block_d, NORMALIZE=problem.normalize,
        ROUND=problem.round_bits, UPCAST=INTERPRETED and x.dtype != torch.float32,
        num_warps=4, **OPTIONS,
    )  # fmt: skip
    return out, inverse


def _logsum(problem: Problem) -> tuple[Tensor, Tensor]:
    tile = problem.tile("symmetric") if problem.symmetric else None
    symmetric = tile is not None
    tile = tile or problem.tile("logsum")
    assert tile is not None, "the log-sum kernel serves every kind and dimension"
    m, n, device = problem.n_rows, problem.n_columns, problem.q.device
    rows, columns, _ = _prepared(problem, max(tile.block_m, tile.block_n))
    m_pad = rows.shape[0]
    blocks, tiles = -(-m // tile.block_m), -(-n // tile.block_n)

    # a row of the symmetric form has half the tiles on average
    per_split = _tiles_per_split(device, -(-blocks // 2) if symmetric else blocks, tiles, least=1)
    splits = -(-tiles // per_split)
    chunk = min(blocks, COLUMN_SUM_SLOTS) if symmetric else blocks

    def scratch(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    part_sum = scratch(splits, m_pad)
    part_max = scratch(splits, m_pad) if problem.online else None
    part_positive = scratch(splits, m_pad) if problem.positives != "none" else None
    column_sum = scratch(chunk, m_pad) if symmetric else None
    running = scratch(2, m_pad) if chunk < blocks else None
    lse, positive = scratch(m), scratch(m)

    masks, arithmetic = problem.masks(), problem.arithmetic()
    block = min(64, tile.block_m)
    for first_block in range(0, blocks, chunk):
        here = min(chunk, blocks - first_block)
        logsum_kernel[(here, splits)](
            rows, columns, problem.row_key, problem.col_key, problem.logit_scale,
            part_sum, part_max, part_positive, column_sum,
            m, n, m_pad, problem.row_base, problem.row_step, problem.col_shift, problem.scale, first_block, per_split,
            problem.dimension,
            D=problem.dimension, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n,
            BLOCK_D=tile.block_d or problem.dimension, STAGES=tile.stages,
            SYMMETRIC=symmetric, ONLINE=problem.online, **masks, **arithmetic,
            num_warps=tile.warps, num_stages=tile.stages, **OPTIONS,
        )  # fmt: skip
        combine_kernel[(m_pad // block,)](
            part_sum, part_max, part_positive, column_sum, running, problem.logit_scale, lse, positive,
            m, m_pad, splits, first_block, here, problem.scale,
            BLOCK=block, SLOTS=32, BLOCK_M=tile.block_m, POSITIVES=masks["POSITIVES"],
            SYMMETRIC=symmetric, ONLINE=problem.online, HAS_LOGIT_SCALE=arithmetic["HAS_LOGIT_SCALE"],
            FIRST=first_block == 0, LAST=first_block + here == blocks, num_warps=4, **OPTIONS,
        )  # fmt: skip
    return lse, positive


def _gradient(problem: Problem, of_rows: Weights, of_columns: Weights) -> tuple[Tensor, Tensor]:
    q = problem.q
    fused = problem.tile("gradient")
    tile = fused or problem.tile("pair_weights")
    assert tile is not None, "the pair-weights kernel serves every kind and dimension"
    rows, columns, inverse = _prepared(problem, max(tile.block_m, tile.block_n))
    m_pad, n_pad, d = rows.shape[0], columns.shape[0], problem.dimension

    weight_scale = _weight_scale(of_rows, of_columns) if q.dtype == torch.float16 else None
    row_terms = _terms(problem, of_rows, weight_scale, m_pad)
    col_terms = row_terms
    if of_columns is not of_rows or m_pad != n_pad:
        col_terms = _terms(problem, of_columns, weight_scale, n_pad)
    constants = {
        **problem.masks(),
        **problem.arithmetic(),
        "D": d,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "STAGES": tile.stages,
        "ONLINE": problem.online,
        "HAS_ROW": of_rows.has_logsum,
        "HAS_COL": of_columns.has_logsum,
        "HAS_ROW_POSITIVE": of_rows.positive is not None,
        "HAS_COL_POSITIVE": of_columns.positive is not None,
        "ROUND": problem.round_bits,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        **OPTIONS,
    }
    pointers = rows, columns, problem.row_key, problem.col_key, problem.logit_scale, row_terms, col_terms
    sizes = (
        problem.n_rows, problem.n_columns, m_pad, n_pad,
        problem.row_base, problem.row_step, problem.col_shift, problem.scale,
    )  # fmt: skip
    blocks = -(-problem.n_rows // tile.block_m)
    if fused is not None:
        tiles = -(-problem.n_columns // tile.block_n)
        per_split = _tiles_per_split(q.device, blocks, tiles, least=4)  # a partial result here is a block of rows
        splits = -(-tiles // per_split)
        partial = torch.empty(splits, m_pad, d, dtype=torch.float32, device=q.device)
        gradient_kernel[(blocks, splits)](*pointers, partial, *sizes, 0, per_split, **constants)
    else:

        def weights_of(grid: tuple[int], weights: Tensor, first_block: int, here: int) -> None:
            pair_weights_kernel[grid](
                *pointers, weights, *sizes, first_block, here, d, BLOCK_D=tile.block_d or d, GROUP=8, **constants
            )

        partial = _gradient_in_chunks(rows, columns, tile, blocks, weights_of)
    return _finalize(problem, partial, inverse, weight_scale)


def _bank(problem: Problem, tile: Tile) -> tuple[Tensor, Tensor]:
    """Log-sum [M] of every row's columns, and their mean by the softmax over them [M, D]."""
    rows, columns, _ = _prepared(problem, max(tile.block_m, tile.block_n))
    m, m_pad, d = problem.n_rows, rows.shape[0], problem.dimension
    blocks, tiles = -(-m // tile.block_m), -(-problem.n_columns // tile.block_n)
    per_split = _tiles_per_split(rows.device, blocks, tiles, least=4)
    splits = -(-tiles // per_split)
    out = torch.empty(splits, m_pad, d, dtype=torch.float32, device=rows.device)
    sums = torch.empty(2, splits, m_pad, dtype=torch.float32, device=rows.device)
    bank_kernel[(blocks, splits)](
        rows, columns, problem.row_key, problem.logit_scale, out, sums, m, problem.n_columns, m_pad,
        problem.row_base, problem.row_step, problem.col_shift, problem.scale, 0, per_split,
        D=d, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, STAGES=tile.stages, ROUND=problem.round_bits,
        POSITIVES=problem.masks()["POSITIVES"], ONLINE=problem.online, **problem.arithmetic(),
        num_warps=tile.warps, num_stages=tile.stages, **OPTIONS,
    )  # fmt: skip
    total, shift = sums[:, :, :m]
    largest = shift.max(0).values
    factor = torch.where(total > 0, (shift - largest).exp2(), total)  # NaN stays; a split without columns adds nothing
    total = (total * factor).sum(0)
    width = problem.q.shape[1]
    attended = (out[:, :m, :width] * factor[:, :, None]).sum(0)
    log_sum = (largest + total.log2()) * math.log(2)
    # Without any column the log-sum is minus infinity, and nothing is attended to.
    return log_sum, attended / torch.where(total == 0, 1.0, total)[:, None]


def _sigmoid(
    problem: Problem, bias: float, logit_bias: Tensor | None, weight: float, *, sums: bool, gradient: bool
) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Sums over all pairs of the loss and of G, the gradient of the rows, and the derivative by the scale.

    Without ``sums`` the first two, without ``gradient`` the others mean nothing.
    """
    fused = problem.tile("sigmoid") if gradient else None
    tile = fused or problem.tile("sigmoid_weights")
    assert tile is not None, "the kernel that writes weights serves every kind and dimension"
    rows, columns, inverse = _prepared(problem, max(tile.block_m, tile.block_n))
    m, m_pad, n_pad, d = problem.n_rows, rows.shape[0], columns.shape[0], problem.dimension
    blocks, tiles = -(-m // tile.block_m), -(-problem.n_columns // tile.block_n)
    per_split = _tiles_per_split(rows.device, blocks, tiles, least=4)
    parts = -(-tiles // per_split) if fused is not None else n_pad // tile.block_n
    of_rows = torch.empty(2, parts if sums else 0, m_pad, dtype=torch.float32, device=rows.device)
    pointers = rows, columns, problem.logit_scale, logit_bias
    places = problem.row_base, problem.row_step, problem.col_shift, problem.scale, float(bias), weight
    constants = {
        **problem.arithmetic(),
        "HAS_LOGIT_BIAS": logit_bias is not None,
        "SUMS": sums,
        "ROUND": problem.round_bits,
        "D": d,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "STAGES": tile.stages,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        **OPTIONS,
    }

    def weights_of(grid: tuple[int], weights: Tensor, first_block: int, here: int) -> None:
        sigmoid_weights_kernel[grid](
            *pointers, weights, of_rows, m, problem.n_columns, m_pad, n_pad, *places, first_block, here, d,
            BLOCK_D=tile.block_d or d, GROUP=8, WEIGHTS=gradient, **constants,
        )  # fmt: skip

    if fused is not None:
        partial = torch.empty(parts, m_pad, d, dtype=torch.float32, device=rows.device)
        sigmoid_kernel[(blocks, parts)](
            *pointers, partial, of_rows, m, problem.n_columns, m_pad, *places, 0, per_split, **constants
        )
    elif gradient:
        partial = _gradient_in_chunks(rows, columns, tile, blocks, weights_of)
    else:
        weights_of((blocks * (n_pad // tile.block_n),), rows, 0, blocks)  # which writes no weights
    loss, slope = of_rows[:, :, :m].sum((1, 2)) * weight
    if not gradient:
        return (loss, slope), rows.new_empty((0,)), torch.zeros_like(loss)
    return (loss, slope), *_finalize(problem, partial, inverse, None)


def _gradient_in_chunks(
    rows: Tensor, columns: Tensor, tile: Tile, blocks: int, weights_of: Callable[[tuple[int], Tensor, int, int], None]
) -> Tensor:
    """G of a chunk of rows, then the library's product with the columns: [1, M_pad, D].

    For wide dimensions [rows, D] does not fit in registers, and for float32 the second product needs its right
    operand in an order that the tensor cores of Hopper do not take. ``weights_of(grid, out, first block, blocks)``
    launches what writes G of some blocks of rows.
    """
    (m_pad, d), n_pad = rows.shape, columns.shape[0]
    chunk = max(1, min(blocks, CHUNK_ELEMENTS // (n_pad * tile.block_m)))
    weights = torch.empty(chunk * tile.block_m, n_pad, dtype=rows.dtype, device=rows.device)
    out = torch.empty(1, m_pad, d, dtype=torch.float32, device=rows.device)
    for first_block in range(0, blocks, chunk):
        here = min(chunk, blocks - first_block)
        weights_of((here * (n_pad // tile.block_n),), weights, first_block, here)
        n_here = here * tile.block_m
        target = out[0, first_block * tile.block_m : first_block * tile.block_m + n_here]
        if rows.dtype == torch.float32:
            torch.mm(weights[:n_here], columns, out=target)
        elif INTERPRETED:
            torch.mm(weights[:n_here].float(), columns.float(), out=target)
        else:  # 16-bit operands, float32 result
            torch.mm(weights[:n_here], columns, out_dtype=torch.float32, out=target)
    return out


def _finalize(problem: Problem, partial: Tensor, inverse: Tensor, weight_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum of the splits through the normalisation: dq [M, D] and the derivative with respect to the scale []."""
    q = problem.q
    m, columns = q.shape
    splits, m_pad, d = partial.shape
    dq = torch.empty(m, columns, dtype=q.dtype, device=q.device)
    radial = torch.empty(m, dtype=torch.float32, device=q.device)
    block_d = min(triton.next_power_of_2(d), 1024)
    block_m = max(1, 2048 // block_d)
    finalize_kernel[(-(-m // block_m),)](
        partial, q, inverse, problem.logit_scale, weight_scale, dq, radial,
        m, m_pad, columns, q.stride(0), splits, problem.scale,
        D=d, BLOCK_M=block_m, BLOCK_D=block_d, NORMALIZE=problem.normalize,
        HAS_LOGIT_SCALE=problem.logit_scale is not None, HAS_WEIGHT_SCALE=weight_scale is not None,
        num_warps=4, **OPTIONS,
    )  # fmt: skip
    return dq, radial.sum()


def _terms(problem: Problem, weights: Weights, weight_scale: Tensor | None, padded: int) -> Tensor | None:
    """[3, padded]: what G needs of each row (column); None if nothing."""
    if weights.empty:
        return None
    vectors = [v for v in (weights.lse, weights.weight, weights.positive) if v is not None]
    out = torch.empty(3, padded, dtype=torch.float32, device=vectors[0].device)
    block = min(1024, padded & -padded)  # the largest power of two that divides the padded length
    terms_kernel[(padded // block,)](
        weights.lse, weights.weight, weights.positive, problem.logit_scale, weight_scale, out,
        vectors[0].shape[0], padded, problem.scale,
        BLOCK=block, ONLINE=problem.online, HAS_LOGSUM=weights.has_logsum, HAS_POSITIVE=weights.positive is not None,
        HAS_LOGIT_SCALE=problem.logit_scale is not None, HAS_WEIGHT_SCALE=weight_scale is not None,
        num_warps=4, **OPTIONS,
    )  # fmt: skip
    return out


def _weight_scale(of_rows: Weights, of_columns: Weights) -> Tensor:
    """The power of two [] that keeps a float16 G in range."""
    vectors = [of_rows.weight, of_rows.positive]
    if of_columns is not of_rows:
        vectors += [of_columns.weight, of_columns.positive]
    present = [v for v in vectors if v is not None]
    filled = present + present[:1] * (4 - len(present))
    lengths = [v.shape[0] for v in present] + [0] * (4 - len(present))
    out = torch.empty((), dtype=torch.float32, device=filled[0].device)
    weight_scale_kernel[(1,)](*filled, out, *lengths, BLOCK=1024, num_warps=4, **OPTIONS)
    return out


# ---------------------------------------------------------------------------------------------------------- helpers


def _tiles_per_split(device: torch.device, row_blocks: int, column_tiles: int, least: int) -> int:
    """Column tiles per program: splits the columns until the machine has several rounds of programs.

    A split costs memory and a partial result, so a program takes at least ``least`` tiles.
    """
    splits = min(-(-PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(device) // row_blocks), column_tiles // least)
    return -(-column_tiles // max(1, splits))


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
