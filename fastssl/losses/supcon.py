"""The supervised contrastive loss."""

from __future__ import annotations

from torch import Tensor, nn

from .. import functional
from ..ops import checks
from .arguments import Exchange, check_exchange, check_gather, default_group


class SupConLoss(nn.Module):
    """Supervised contrastive loss: views with labels, or rows with labels as pytorch-metric-learning has it.

    See :func:`fastssl.functional.sup_con`: the mean of log-probabilities over a row's positives, over the rows that
    have one. Khosla et al., "Supervised Contrastive Learning", 2020, equation 2.

    Args:
        temperature: divides the cosine similarities; above 0.
        gather_distributed: take rows and labels from all processes of the default group.
        exchange: "gather" or "ring": whether a process holds all rows at once or one process's after the other's.

    Raises:
        TypeError, ValueError: for a temperature that is no finite number above 0.

    Example:
        >>> loss = SupConLoss()(torch.stack([z0, z1], 1), labels)  # or (z, labels) with z [M, D]
    """

    def __init__(
        self, temperature: float = 0.1, gather_distributed: bool = False, exchange: Exchange = "gather"
    ) -> None:
        super().__init__()
        self.temperature = checks.check_positive_number("SupConLoss", "temperature", temperature)
        self.gather_distributed = check_gather("SupConLoss", "gather_distributed", gather_distributed)
        self.exchange = check_exchange("SupConLoss", exchange)

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mean loss over the rows that have a positive.

        Args:
            features: [N, V, D], V views of each image, or [M, D]; float32, bfloat16, float16 or float64.
            labels: int64 [N] or [M]; None, with views: each image is its own class.

        Returns:
            The loss, [], float32 (float64 for float64 input).
        """
        group = default_group(self.gather_distributed)
        return functional.sup_con(features, labels, self.temperature, group=group, exchange=self.exchange)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, gather_distributed={self.gather_distributed}"
