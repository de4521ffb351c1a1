"""The decoupled contrastive losses."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import distributed, functional
from ..ops import checks
from ..ops.precision import widened
from .arguments import Exchange, check_exchange, check_gather, default_group


class DCLLoss(nn.Module):
    """Decoupled contrastive loss, in place of ``lightly.loss.DCLLoss``: same arguments and values.

    See :func:`fastssl.functional.dcl`. Yeh et al., "Decoupled Contrastive Learning", 2022, equation 6.

    Args:
        temperature: divides the cosine similarities; above 0.
        weight_fn: of two views' unit rows [N, D], weights [N] of the first one's positives; None: 1.
        gather_distributed: take the negatives from all processes of the default group, as
            :class:`fastssl.losses.NTXentLoss` does.
        exchange: "gather" or "ring", as there.

    Raises:
        TypeError, ValueError: for a temperature that is no finite number above 0, or a weight_fn that is no function.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        gather_distributed: bool = False,
        exchange: Exchange = "gather",
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.temperature = checks.check_positive_number(name, "temperature", temperature)
        if weight_fn is not None and not callable(weight_fn):
            raise TypeError(f"{name}: weight_fn must be a function or None, got {type(weight_fn).__name__}")
        self.weight_fn = weight_fn
        self.gather_distributed = check_gather(name, "gather_distributed", gather_distributed)
        self.exchange = check_exchange(name, exchange)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Mean loss over both views' rows.

        Args:
            out0: projections of the first view, [N, D], float32, bfloat16, float16 or float64.
            out1: projections of the second view, same shape, dtype and device.

        Returns:
            The loss, [], float32 (float64 for float64 input).
        """
        weights = None
        if self.weight_fn is not None:
            with torch.no_grad():
                unit0, unit1 = (F.normalize(widened(out), dim=1) for out in (out0, out1))
                weights = self.weight_fn(unit0, unit1), self.weight_fn(unit1, unit0)
        group = default_group(self.gather_distributed)
        return functional.dcl(out0, out1, self.temperature, weights=weights, group=group, exchange=self.exchange)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, gather_distributed={self.gather_distributed}"


class DCLWLoss(DCLLoss):
    """Weighted decoupled contrastive loss, in place of ``lightly.loss.DCLWLoss``: same arguments and values.

    A positive's weight is ``2 - exp(s / sigma) / mean(exp(s / sigma))``, s its cosine: Yeh et al. 2022, equation 7.

    Args:
        temperature: divides the cosine similarities; above 0.
        sigma: divides those of the weights; above 0.
        gather_distributed: as in :class:`DCLLoss`.
        exchange: as there.

    Raises:
        TypeError, ValueError: for a number that is not finite and above 0.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        sigma: float = 0.5,
        gather_distributed: bool = False,
        exchange: Exchange = "gather",
    ) -> None:
        sigma = checks.check_positive_number("DCLWLoss", "sigma", sigma)

        def weights(out0: Tensor, out1: Tensor) -> Tensor:
            similar = (out0 * out1).sum(1) / sigma
            log_sum, count = similar.logsumexp(0, keepdim=True), len(out0)
            group = default_group(self.gather_distributed)
            if group is not None and group.size() > 1:  # the mean is the global batch's
                log_sum = distributed.logsumexp_over_ranks(log_sum, group.group_name)
                count *= group.size()
            return 2 - count * (similar - log_sum).exp()

        super().__init__(temperature, weights, gather_distributed, exchange)
        self.sigma = sigma

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sigma={self.sigma}"
