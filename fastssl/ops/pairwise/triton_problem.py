"""The arguments of a pairwise call in the form in which the Triton kernels take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from fastssl.kernels.pairwise.config import TILES
from fastssl.kernels.tiles import Tile

from ..layout import contiguous, unit_stride
from ..triton_launch import INTERPRETED, capability

# Above it the shift follows the data. The log-sum alone could go to s = 43, where exp(-2 s) leaves the range of normal
# float32 numbers. The gradient multiplies the weights by exp(s - lse), which is exp(2 s) where all that a row is
# compared with lies opposite to it. At 30 that is 1e26 and leaves room for weights of 1e12, so for every loss scaler;
# at 40 it is 6e34, which the 65536 of torch.amp.GradScaler carries to infinity.
FIXED_SHIFT_LIMIT = 30.0

_POSITIVES = {"none": 0, "diagonal": 1, "pair": 2, "key": 3, "index": 4}  # the numbers in kernels/pairwise/common.py


@dataclass(frozen=True)
class Problem:
    """The arguments that log-sum and gradient share."""

    q: Tensor
    k: Tensor | None
    logit_scale: Tensor | None
    scale: float
    normalize: bool
    positives: str
    row_key: Tensor | None
    col_key: Tensor | None
    exclude_self: bool
    exclude_positives: bool
    # Global indices without the even part of col_offset: I = row_base + row_step i, J = col_shift + j.
    row_base: int
    row_step: int
    col_shift: int
    precision: str  # of tl.dot; ignored for 16-bit operands
    major: int  # compute capability

    @staticmethod
    def of(
        q: Tensor,
        k: Tensor | None,
        logit_scale: Tensor | None,
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
    ) -> Problem:
        even = col_offset - (col_offset & 1)
        return Problem(
            q=unit_stride(q),
            k=None if k is None else unit_stride(k),
            logit_scale=logit_scale,
            scale=float(scale),
            normalize=normalize,
            positives=positives,
            row_key=contiguous(row_key),
            col_key=contiguous(col_key),
            exclude_self=exclude_self,
            exclude_positives=exclude_positives,
            row_base=row_offset - even,
            row_step=row_step,
            col_shift=col_offset & 1,
            precision=_precision(q.dtype),
            major=capability(q.device)[0],
        )

    @property
    def n_rows(self) -> int:
        return self.q.shape[0]

    @property
    def n_columns(self) -> int:
        return (self.q if self.k is None else self.k).shape[0]

    @property
    def kind(self) -> str:
        """What the operands of the products are (see ``fastssl.kernels.tiles``)."""
        return "16bit" if self.q.dtype != torch.float32 else self.precision

    @property
    def dimension(self) -> int:
        """Columns of the padded buffers: a power of two up to 256, then a multiple of 64."""
        d = self.q.shape[1]
        return max(32, triton.next_power_of_2(d)) if d <= 256 else -(-d // 64) * 64

    @property
    def online(self) -> bool:
        """Whether the exponentials are shifted by a running maximum, instead of by the scale."""
        fixed = self.normalize and self.logit_scale is None and 0.0 <= self.scale <= FIXED_SHIFT_LIMIT
        return not fixed

    @property
    def round_bits(self) -> int:
        """Mantissa bits of float32 that the prologue rounds away (see `_round_to` in the kernels)."""
        if INTERPRETED and self.q.dtype == torch.bfloat16:  # the interpreter's own conversion truncates
            return 16
        return 13 if self.kind == "tf32" else 0

    @property
    def symmetric(self) -> bool:
        """Whether a tile's column sums are row sums too: same rows, same global indices, pairs inside a block."""
        return (
            self.k is None
            and not self.online
            and self.row_step == 1
            and self.row_base == self.col_shift
            and (self.positives in ("none", "diagonal") or (self.positives == "pair" and self.col_shift == 0))
        )

    def masks(self) -> dict[str, Any]:
        """The kernels' constants that say which pairs are positives and which are left out."""
        return {
            "POSITIVES": _POSITIVES[self.positives],
            "EXCLUDE_SELF": self.exclude_self,
            "EXCLUDE_POSITIVES": self.exclude_positives and self.positives != "none",
        }

    def arithmetic(self) -> dict[str, Any]:
        """The kernels' constants that say how a tile is computed."""
        return {
            "HAS_LOGIT_SCALE": self.logit_scale is not None,
            "PRECISION": self.precision,
            "UPCAST": INTERPRETED and self.q.dtype != torch.float32,
        }

    def tile(self, kernel: str) -> Tile | None:
        return TILES.tile_for(kernel, self.kind, self.dimension, self.major)


@dataclass(frozen=True)
class Weights:
    """The gradient's inputs for one side: of the log-sum (with the log-sum itself), and of the positive logit."""

    lse: Tensor | None
    weight: Tensor | None
    positive: Tensor | None

    @staticmethod
    def of(lse: Tensor | None, weight: Tensor | None, positive: Tensor | None) -> Weights:
        return Weights(contiguous(lse), contiguous(weight), contiguous(positive))

    @property
    def has_logsum(self) -> bool:
        return self.lse is not None and self.weight is not None

    @property
    def empty(self) -> bool:
        return self.lse is None and self.weight is None and self.positive is None


def _precision(dtype: torch.dtype) -> str:
    if dtype != torch.float32:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
