"""NT-Xent, the loss of SimCLR."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .. import functional
from ..ops import checks
from .arguments import check_gather, default_group


class NTXentLoss(nn.Module):
    """Normalised temperature-scaled cross-entropy, in place of ``lightly.loss.NTXentLoss``: same arguments and values.

    The 2N x 2N similarity matrix is never stored: see :func:`fastssl.functional.nt_xent`. Chen et al., "A Simple
    Framework for Contrastive Learning of Visual Representations", 2020, equation 1.

    Args:
        temperature: divides the cosine similarities; above 0.
        memory_bank_size: only 0 for now; a memory bank raises NotImplementedError.
        gather_distributed: take the negatives from all processes of the default group. Each process returns the mean
            over its own rows; after DDP's averaging the parameter gradients equal those of one process on the global
            batch. Without an initialised process group it has no effect, as in lightly.

    Raises:
        NotImplementedError: for a non-zero memory_bank_size.
        TypeError, ValueError: for a temperature that is no finite number above 0.

    Example:
        >>> criterion = NTXentLoss(temperature=0.1)
        >>> loss = criterion(model(view0), model(view1))
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        size = memory_bank_size if isinstance(memory_bank_size, int) else tuple(memory_bank_size)
        if size not in (0, (0,)):
            raise NotImplementedError(
                f"NTXentLoss: memory_bank_size={memory_bank_size} is not supported yet, it must be 0 (no memory bank)"
            )
        self.temperature = checks.check_positive_number("NTXentLoss", "temperature", temperature)
        self.gather_distributed = check_gather("NTXentLoss", "gather_distributed", gather_distributed)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Mean loss over both views' rows.

        Args:
            out0: projections of the first view, [N, D], float32, bfloat16, float16 or float64.
            out1: projections of the second view, same shape, dtype and device.

        Returns:
            The loss, [], float32 (float64 for float64 input).
        """
        group = default_group(self.gather_distributed)
        return functional.nt_xent(out0, out1, self.temperature, group=group)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, gather_distributed={self.gather_distributed}"
