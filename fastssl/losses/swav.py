"""The loss of SwAV."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import functional
from ..ops import checks
from .arguments import check_gather, check_same_batch, check_views, default_group


class SwaVLoss(nn.Module):
    """Swapped prediction: each view's codes, from Sinkhorn-Knopp, predicted from every other view, in place of
    ``lightly.loss.SwaVLoss``: same arguments and values.

    Codes stay potentials and are never stored, and Sinkhorn-Knopp runs on logarithms, so that similarities of any size
    stay finite: see :func:`fastssl.functional.sinkhorn_knopp`. Caron et al., "Unsupervised Learning of Visual Features
    by Contrasting Cluster Assignments", 2020, equations 1 to 5.

    Args:
        temperature: of the predictions.
        sinkhorn_iterations: at least 1.
        sinkhorn_epsilon: temperature of the codes.
        sinkhorn_gather_distributed: assign the samples of all processes of the default group together; vectors of K
            numbers travel. After DDP's averaging the parameter gradients equal those of one process on the global
            batch. Without an initialised process group it has no effect.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.

    Example:
        >>> criterion = SwaVLoss()
        >>> loss = criterion([prototypes(x) for x in global_views], [prototypes(x) for x in local_views])
    """

    def __init__(
        self,
        temperature: float = 0.1,
        sinkhorn_iterations: int = 3,
        sinkhorn_epsilon: float = 0.05,
        sinkhorn_gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = checks.check_positive_number("SwaVLoss", "temperature", temperature)
        self.sinkhorn_iterations = checks.check_count("SwaVLoss", "sinkhorn_iterations", sinkhorn_iterations, minimum=1)
        self.sinkhorn_epsilon = checks.check_positive_number("SwaVLoss", "sinkhorn_epsilon", sinkhorn_epsilon)
        self.sinkhorn_gather_distributed = check_gather(
            "SwaVLoss", "sinkhorn_gather_distributed", sinkhorn_gather_distributed
        )

    def forward(
        self,
        high_resolution_outputs: Sequence[Tensor] | Tensor,
        low_resolution_outputs: Sequence[Tensor] | Tensor,
        queue_outputs: Sequence[Tensor] | Tensor | None = None,
    ) -> Tensor:
        """Mean cross-entropy over images and pairs of a high-resolution view (codes) and another view (prediction).

        Args:
            high_resolution_outputs: similarities to the prototypes of the T high-resolution views, a list of [B, K] or
                a tensor [T, B, K]; float32, bfloat16, float16 or float64.
            low_resolution_outputs: of the other views, likewise; an empty list for none.
            queue_outputs: of earlier images' T high-resolution views, a list of [Q, K] or a tensor [T, Q, K]; they take
                part in the assignment, not in the loss.

        Returns:
            The loss with lightly's shape, [1], so that code written for it goes on working; float32 (float64 for
            float64).

        Raises:
            TypeError, ValueError: naming the argument, what it was and what it must be.
        """
        name = "SwaVLoss"
        views, high = check_views(name, "high_resolution_outputs", high_resolution_outputs)
        students = _as_list(high_resolution_outputs)
        if len(low_resolution_outputs) > 0:
            _, low = check_views(name, "low_resolution_outputs", low_resolution_outputs)
            check_same_batch(name, ("high_resolution_outputs's views", high), ("low_resolution_outputs's", low))
            students += _as_list(low_resolution_outputs)
        elif views == 1:
            raise ValueError(f"{name}: there must be at least two views in all, got one")
        samples = [view.detach() for view in high_resolution_outputs]
        if queue_outputs is not None:
            queues, queue = check_views(name, "queue_outputs", queue_outputs)
            if queues != views or queue.shape[1] != high.shape[1] or queue.device != high.device:
                raise ValueError(
                    f"{name}: queue_outputs must have {views} views [Q, {high.shape[1]}] on {high.device} like "
                    f"high_resolution_outputs, got {queues} of {tuple(queue.shape)} on {queue.device}"
                )
            samples = [torch.cat((x, old.detach())) for x, old in zip(samples, queue_outputs, strict=True)]
        group = default_group(self.sinkhorn_gather_distributed)
        potentials = [
            functional.sinkhorn_knopp(x, self.sinkhorn_epsilon, iterations=self.sinkhorn_iterations, group=group)[0]
            for x in samples
        ]
        loss = functional.soft_target_cross_entropy(
            students,
            high_resolution_outputs,
            student_temperature=self.temperature,
            teacher_temperature=self.sinkhorn_epsilon,
            column_potential=torch.stack(potentials),
        )
        return loss.reshape(1)

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, sinkhorn_iterations={self.sinkhorn_iterations}, sinkhorn_epsilon="
            f"{self.sinkhorn_epsilon}, sinkhorn_gather_distributed={self.sinkhorn_gather_distributed}"
        )


def _as_list(views: Sequence[Tensor] | Tensor) -> list[Tensor]:
    return [views] if isinstance(views, Tensor) else list(views)
