"""The centre of DINO and iBOT: the moving average of the teacher's logits, subtracted from them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import distributed
from ..ops import checks
from ..ops.precision import accumulator
from .arguments import default_group


class Center(nn.Module):
    """Moving average of the teacher's logits in the buffer ``center``. A loss either is one or holds one, so that its
    state dict has the names of the loss that it replaces.

    The mean is over the rows of all processes of the default group, each row with the same weight; only a vector of
    K + 1 numbers travels. Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021, equation 4.

    Args:
        loss: name of the loss, for messages.
        shape: of the buffer; all dimensions are 1 but the last, K.
        momentum: share of the old centre in the new one, from 0 to 1.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """

    center: Tensor

    def __init__(self, loss: str, shape: Sequence[int], momentum: float = 0.9) -> None:
        super().__init__()
        checks.check_count(loss, "the number of prototypes", shape[-1], minimum=1)
        self._loss = loss
        self.center_momentum = checks.check_range(loss, "center_momentum", momentum, maximum=1)
        self.register_buffer("center", torch.zeros(*shape))

    def column_potential(self, temperature: float, dtype: torch.dtype) -> Tensor:
        """What the centre takes from logits divided by the temperature, [K]: a copy, float32 (float64 for float64).

        Args:
            temperature: of the teacher.
            dtype: of the teacher's logits.
        """
        return self.center.detach().flatten().to(torch.promote_types(dtype, torch.float32)) / temperature

    @torch.no_grad()
    def move(self, column_sum: Tensor, rows: int | Tensor) -> None:
        """Move the centre towards the mean of all processes' rows. Without any row it stays where it is.

        Args:
            column_sum: sum of this process's rows of logits, [K], float32 or float64.
            rows: how many those are; a tensor [] is not read on the host.
        """
        count = rows.to(column_sum).reshape(1) if isinstance(rows, Tensor) else column_sum.new_full((1,), rows)
        total = torch.cat((column_sum, count))
        group = default_group(True)
        if group is not None and group.size() > 1:
            total = distributed.sum_over_ranks(total, group.group_name)
        mean = (total[:-1] / total[-1]).to(self.center.dtype).view_as(self.center)
        self.center.lerp_(torch.where(total[-1] > 0, mean, self.center), 1.0 - self.center_momentum)

    @torch.no_grad()
    def update_center(self, teacher_out: Tensor) -> None:
        """Move the centre towards the mean of all rows of ``teacher_out``, [..., K]."""
        rows = teacher_out.detach().reshape(-1, teacher_out.shape[-1])
        self.move(rows.sum(0, dtype=accumulator(rows)), rows.shape[0])

    def check_prototypes(self, name: str, logits: Tensor) -> None:
        """Logits with as many columns as the centre has.

        Raises:
            ValueError: naming both numbers.
        """
        if logits.shape[-1:] != self.center.shape[-1:]:
            raise ValueError(
                f"{self._loss}: {name} must have {self.center.shape[-1]} columns, the number of prototypes "
                f"with which the loss was made, got shape {tuple(logits.shape)}"
            )
