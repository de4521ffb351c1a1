"""The loss of Masked Siamese Networks."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from .. import distributed, functional
from ..ops import checks
from ..ops.precision import accumulator
from .arguments import check_gather, default_group
from .cosine import vectors


class MSNLoss(nn.Module):
    """Cross-entropy between the sharpened assignment of an image and those of its masked views, plus a regulariser
    that keeps all prototypes in use, in place of ``lightly.loss.MSNLoss``: same arguments and values.

    Targets stay potentials and are never stored: see :func:`fastssl.functional.soft_target_cross_entropy`. Everything
    after the similarities is float32, finite for 16-bit inputs at any temperature. Assran et al.,
    "Masked Siamese Networks for Label-Efficient Learning", 2022, equation 1.

    Args:
        temperature: of anchors and targets, above 0.
        sinkhorn_iterations: of Sinkhorn-Knopp on the targets; 0: none.
        regularization_weight: lambda, at least 0; multiplies log K minus the entropy of the mean assignment of all
            anchors, which is never below 0.
        gather_distributed: assign the targets of all processes of the default group together, and take the mean
            assignment over all of them too, as the paper does: after DDP's averaging the parameter gradients then equal
            those of one process on the global batch. (lightly's regulariser stays local.) Without an initialised
            process group it has no effect.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.

    Example:
        >>> criterion = MSNLoss()
        >>> loss = criterion(model(masked_views), target_model(images), model.prototypes)
    """

    def __init__(
        self,
        temperature: float = 0.1,
        sinkhorn_iterations: int = 3,
        regularization_weight: float = 1.0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = checks.check_positive_number("MSNLoss", "temperature", temperature)
        self.sinkhorn_iterations = checks.check_count("MSNLoss", "sinkhorn_iterations", sinkhorn_iterations, minimum=0)
        self.regularization_weight = checks.check_range("MSNLoss", "regularization_weight", regularization_weight)
        self.gather_distributed = check_gather("MSNLoss", "gather_distributed", gather_distributed)

    def forward(
        self, anchors: Tensor, targets: Tensor, prototypes: Tensor, target_sharpen_temperature: float = 0.25
    ) -> Tensor:
        """Mean loss over all anchors.

        Args:
            anchors: embeddings of V masked views of B images, [V B, D], view after view; float32, bfloat16, float16 or
                float64.
            targets: embeddings of the images, [B, D]; a constant.
            prototypes: [K, D]; receive gradients through the anchors only.
            target_sharpen_temperature: T, further divides the targets' logits; above 0.

        Returns:
            The loss, [], float32 (float64 for float64).

        Raises:
            TypeError, ValueError: naming the argument, what it was and what it must be.
        """
        name = "MSNLoss"
        checks.check_tensor(name, "anchors", anchors, ndim=2, layout="[V B, D]")
        checks.check_tensor(name, "targets", targets, ndim=2, layout="[B, D]")
        checks.check_tensor(name, "prototypes", prototypes, ndim=2, layout="[K, D]")
        sharpen = checks.check_positive_number(name, "target_sharpen_temperature", target_sharpen_temperature)
        for other_name, other in (("targets", targets), ("prototypes", prototypes)):
            checks.check_same(name, "device", ("anchors", anchors), (other_name, other))
            if other.shape[1] != anchors.shape[1]:
                raise ValueError(
                    f"{name}: {other_name} must have the anchors' dimension, {anchors.shape[1]}, "
                    f"got shape {tuple(other.shape)}"
                )
        if anchors.shape[0] % targets.shape[0]:
            raise ValueError(
                f"{name}: anchors must have as many rows for each target, {targets.shape[0]} times the number of "
                f"views, got {anchors.shape[0]}"
            )
        group = default_group(self.gather_distributed)
        dtype = anchors.dtype
        prototypes = _unit_rows(prototypes).to(dtype)
        similarity = _unit_rows(anchors).to(dtype) @ prototypes.T  # [V B, K]
        with torch.no_grad():
            # Sharpening, probabilities ** (1 / T) divided by their sum, is a lower temperature. Sinkhorn-Knopp starts
            # from its result: rows that sum to 1.
            cosine = (_unit_rows(targets).to(dtype) @ prototypes.T).to(accumulator(anchors))
            target = torch.log_softmax(cosine / (self.temperature * sharpen), dim=1)  # [B, K]
            column_potential = None
            if self.sinkhorn_iterations > 0:
                column_potential, _ = functional.sinkhorn_knopp(
                    target, 1.0, iterations=self.sinkhorn_iterations, group=group
                )
        loss = functional.soft_target_cross_entropy(
            similarity.view(-1, *target.shape),
            target[None],
            student_temperature=self.temperature,
            teacher_temperature=1.0,
            column_potential=column_potential,
            skip_same_view=False,
        )
        if self.regularization_weight > 0:
            loss = loss + self.regularization_weight * self._regularizer(similarity, group)
        return loss

    def _regularizer(self, similarity: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        """log K minus the entropy of the mean assignment."""
        mean = torch.softmax(similarity.to(accumulator(similarity)) / self.temperature, dim=1).mean(0)
        if group is not None and group.size() > 1:
            # The mean over ranks, with this rank's share as it is for the gradient: DDP divides by their number.
            mean = mean + (distributed.sum_over_ranks(mean.detach(), group.group_name) / group.size() - mean.detach())
        # Where a mean has underflowed to 0 the logarithm, and with it the gradient, must stay finite.
        log_mean = mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
        return math.log(mean.shape[0]) + (mean * log_mean).sum()

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, sinkhorn_iterations={self.sinkhorn_iterations}, regularization_weight="
            f"{self.regularization_weight}, gather_distributed={self.gather_distributed}"
        )


def _unit_rows(x: Tensor) -> Tensor:
    return F.normalize(vectors(x, 1), dim=1)
