"""The KoLeo regulariser."""

from __future__ import annotations

from torch import Tensor, nn

from .. import functional
from ..ops import checks
from .arguments import check_gather, default_group


class KoLeoLoss(nn.Module):
    """Spreads embeddings over the sphere by each one's distance to its nearest neighbour, in place of
    ``lightly.loss.KoLeoLoss``: same arguments and values.

    ``-mean log(distance + eps)`` between normalised embeddings, finite on duplicates in every dtype; the N x N matrix
    is never stored: see :func:`fastssl.functional.koleo`. Sablayrolles et al., "Spreading vectors for similarity
    search", 2019, equation 3. DINOv2 applies it to each global crop by itself.

    Args:
        p: norm of the distance, above 0.
        eps: added to differences and distances, above 0.
        top_k: mean over this many nearest neighbours.
        gather_distributed: look for neighbours among the embeddings of all processes of the default group. Each process
            returns the mean over its own; after DDP's averaging the parameter gradients equal those of one process on
            the global batch. Without an initialised process group it has no effect.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.

    Example:
        >>> criterion = KoLeoLoss()
        >>> loss = sum(criterion(class_token) for class_token in backbone(global_views).chunk(2))
    """

    def __init__(self, p: float = 2, eps: float = 1e-8, *, top_k: int = 1, gather_distributed: bool = False) -> None:
        super().__init__()
        self.p = checks.check_positive_number("KoLeoLoss", "p", p)
        self.eps = checks.check_positive_number("KoLeoLoss", "eps", eps)
        self.top_k = checks.check_count("KoLeoLoss", "top_k", top_k, minimum=1)
        self.gather_distributed = check_gather("KoLeoLoss", "gather_distributed", gather_distributed)

    def forward(self, x: Tensor) -> Tensor:
        """The regulariser.

        Args:
            x: embeddings of different images, [N, D], float32, bfloat16, float16 or float64.

        Returns:
            The loss, [], float32 (float64 for float64).

        Raises:
            TypeError, ValueError: naming the argument, what it was and what it must be.
        """
        group = default_group(self.gather_distributed)
        return functional.koleo(x, top_k=self.top_k, p=self.p, eps=self.eps, group=group)

    def extra_repr(self) -> str:
        return f"p={self.p}, eps={self.eps}, top_k={self.top_k}, gather_distributed={self.gather_distributed}"
