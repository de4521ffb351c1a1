"""NT-Xent, the loss of SimCLR, and with a memory bank that of MoCo."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import functional
from ..ops import checks
from .arguments import Exchange, check_exchange, check_gather, default_group
from .memory_bank import MemoryBank


class NTXentLoss(nn.Module):
    """Normalised temperature-scaled cross-entropy, in place of ``lightly.loss.NTXentLoss``: same arguments and values.

    The matrix of similarities is never stored: see :func:`fastssl.functional.nt_xent`, and with a memory bank
    :func:`fastssl.functional.info_nce`. Chen et al., "A Simple Framework for Contrastive Learning of Visual
    Representations", 2020, equation 1; He et al., "Momentum Contrast", 2020, equation 1.

    Args:
        temperature: divides the cosine similarities; above 0.
        memory_bank_size: (rows, dimension) of a bank whose rows are the negatives of ``out0``, into which ``out1`` goes
            after each step (:class:`fastssl.losses.MemoryBank`: saved with the model, and no row is lost where it
            wraps, as they are in lightly); 0: none, the other rows of the batch are the negatives.
        gather_distributed: take the negatives from all processes of the default group. Each process returns the mean
            over its own rows; after DDP's averaging the parameter gradients equal those of one process on the global
            batch. With a memory bank, the rows of all processes go into it. Without an initialised process group it
            has no effect, as in lightly.
        exchange: "gather" or "ring": whether a process holds all rows at once or one process's after the other's.

    Raises:
        TypeError, ValueError: for a temperature that is no finite number above 0, or another size.

    Example:
        >>> criterion = NTXentLoss(temperature=0.1)
        >>> loss = criterion(model(view0), model(view1))
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
        exchange: Exchange = "gather",
    ) -> None:
        super().__init__()
        self.temperature = checks.check_positive_number("NTXentLoss", "temperature", temperature)
        self.gather_distributed = check_gather("NTXentLoss", "gather_distributed", gather_distributed)
        self.exchange = check_exchange("NTXentLoss", exchange)
        size = (memory_bank_size,) if isinstance(memory_bank_size, int) else tuple(memory_bank_size)
        if size != (0,) and len(size) != 2:
            raise ValueError(
                f"NTXentLoss: memory_bank_size must be (rows, dimension), or 0 for no bank, got {memory_bank_size}"
            )
        self.memory_bank = MemoryBank(size, gather_distributed) if size != (0,) and size[0] != 0 else None

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Mean loss over both views' rows, or with a memory bank over those of the first view.

        Args:
            out0: projections of the first view, [N, D], float32, bfloat16, float16 or float64; the queries.
            out1: projections of the second view, same shape, dtype and device; the keys.

        Returns:
            The loss, [], float32 (float64 for float64 input).
        """
        if self.memory_bank is None:
            group = default_group(self.gather_distributed)
            return functional.nt_xent(out0, out1, self.temperature, group=group, exchange=self.exchange)
        negatives = self.memory_bank.rows()
        # Where the keys want a gradient the negatives are saved for it, and another call may write to the bank before.
        negatives = negatives.clone() if out1.requires_grad else negatives
        loss = functional.info_nce(out0, out1, negatives.to(out0.dtype), temperature=self.temperature)
        if torch.is_grad_enabled() and out0.requires_grad:  # evaluation leaves the bank as it is, as in lightly
            self.memory_bank.enqueue(out1)
        return loss

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, gather_distributed={self.gather_distributed}"
