"""A queue of past embeddings: the negatives of MoCo, of NNCLR's support set, of memory-bank losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import distributed
from ..ops import checks
from .arguments import check_gather, default_group


class MemoryBank(nn.Module):
    """The last rows that were put in, first in first out, in a buffer that is saved with the model.

    He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2020, section 3.2. A batch that
    does not fit before the end goes on at the start; of one larger than the bank the last rows stay. Rows that were put
    in are visible from the next call of :meth:`rows` on, which is after the loss and its backward pass: what a graph
    has read is not written to before that.

    Args:
        size: number of rows and their dimension.
        gather_distributed: put in the rows of all ranks, in the order of the ranks, so that banks are equal everywhere.
        seed: of the random unit rows at the start, the same on every rank.

    Attributes:
        bank: float32 [size, D], unit rows.
        place: int64 [], the row that is written next.
    """

    bank: Tensor
    place: Tensor

    def __init__(self, size: Sequence[int], gather_distributed: bool = False, seed: int = 0) -> None:
        super().__init__()
        if isinstance(size, int) or len(tuple(size)) != 2:
            raise ValueError(f"MemoryBank: size must be (rows, dimension), got {size}")
        rows, dim = (checks.check_count("MemoryBank", "size", number, minimum=1) for number in size)
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("bank", F.normalize(torch.randn(rows, dim, generator=generator), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self.gather_distributed = check_gather("MemoryBank", "gather_distributed", gather_distributed)
        self._waiting: list[Tensor] = []
        self.register_state_dict_pre_hook(lambda module, *_: module._write())
        self._register_load_state_dict_pre_hook(lambda *_: self._waiting.clear())

    def rows(self) -> Tensor:
        """All rows, [size, D], not copied."""
        self._write()
        return self.bank

    @torch.no_grad()
    def enqueue(self, rows: Tensor) -> None:
        """Put rows in, [N, D]; they are normalised.

        Raises:
            TypeError, ValueError: naming the argument, what it was and what it must be.
        """
        checks.check_tensor("MemoryBank", "rows", rows, ndim=2, layout="[N, D]")
        if rows.shape[1] != self.bank.shape[1]:
            raise ValueError(f"MemoryBank: rows must have {self.bank.shape[1]} numbers each, got {tuple(rows.shape)}")
        rows = F.normalize(rows.detach().to(self.bank.dtype), dim=1)
        group = default_group(self.gather_distributed)
        if group is not None and group.size() > 1:
            distributed.check_same_shape("MemoryBank", "rows", rows, group)
            rows = distributed.all_gather_rows(rows, group.group_name)
        self._waiting.append(rows)

    @torch.no_grad()
    def _write(self) -> None:
        for rows in self._waiting:
            size = self.bank.shape[0]
            # The place stays on its device: nothing waits for it.
            places = (self.place + torch.arange(len(rows), device=rows.device)) % size
            kept = slice(max(0, len(rows) - size), None)
            self.bank.index_copy_(0, places[kept], rows[kept].to(self.bank.device))
            self.place.add_(len(rows)).remainder_(size)
        self._waiting.clear()

    def _apply(self, *arguments: Any, **keywords: Any) -> MemoryBank:
        self._write()
        return super()._apply(*arguments, **keywords)

    def extra_repr(self) -> str:
        return f"size={tuple(self.bank.shape)}, gather_distributed={self.gather_distributed}"
