"""Losses with the signatures of solo-learn's ``solo.losses``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import distributed, functional
from ..functional.supervised import positives_of
from ..losses import NegativeCosineSimilarity
from ..losses.arguments import check_views, default_group, linear_warmup
from ..losses.center import Center
from ..ops import checks
from ..ops.precision import widened
from .targets import TeacherProbabilities, as_logits

__all__ = [
    "DINOLoss", "SinkhornKnopp", "byol_loss_func", "mae_loss_func", "mocov2plus_loss_func", "mocov3_loss_func",
    "nnclr_loss_func", "simclr_loss_func", "simsiam_loss_func", "swav_loss_func",
]  # fmt: skip


def simclr_loss_func(z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Tensor:
    """SimCLR's loss, and with labels in place of indexes a supervised one: of each row the negative logarithm of the
    share of its positives among the exponentials of all others.

    Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020, equation 1; with more
    than one positive, Khosla et al., "Supervised Contrastive Learning", 2020, equation 3, without 1 / |P(i)|.

    Args:
        z: projections of all views, [V N, D], float32, bfloat16, float16 or float64. Across ranks those of all of them.
        indexes: int64 [V N], of the image, or its class.
        temperature: above 0.

    Returns:
        The loss, [], float32 (float64 for float64). A row without a positive makes it infinite, as there. Whether each
        row has one positive is looked up; where one has several, products are made in float64, which takes longer.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    name = "simclr_loss_func"
    checks.check_tensor(name, "z", z, ndim=2, layout="[V N, D]")
    checks.check_keys(name, "indexes", indexes, length=z.shape[0], device=z.device)
    scale = checks.check_temperature(name, "temperature", temperature)
    group = default_group(True)
    if group is not None and group.size() > 1:
        distributed.check_same_shape(name, "z", z, group)
        z = distributed.gather_with_gradient(z, group)
        indexes = distributed.all_gather_rows(indexes, group.group_name)
    rules: dict[str, Any] = {"scale": scale, "normalize": True, "positives": "key", "exclude_self": True}
    if bool((positives_of(indexes, indexes) == 1).all()):
        others, positive = functional.pairwise_logsumexp(z, row_key=indexes, **rules)
        return (others - positive).mean()
    dtype, z = widened(z).dtype, z.double()  # a small share of several positives is a difference of nearly equal sums
    others, _ = functional.pairwise_logsumexp(z, row_key=indexes, **rules)
    negatives, _ = functional.pairwise_logsumexp(z, row_key=indexes, exclude_positives=True, **rules)
    return -torch.log(-torch.expm1(negatives - others)).mean().to(dtype)


def mocov2plus_loss_func(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.1) -> Tensor:
    """MoCo's loss. He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2020, equation 1.

    Args:
        query: unit rows [N, D] of the first view, float32, bfloat16, float16 or float64.
        key: unit rows [N, D] of the second view.
        queue: unit columns [D, K]. It is read row by row: the transpose of a matrix [K, D] costs no copy.
        temperature: above 0.

    Returns:
        The loss, [], float32 (float64 for float64).

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    checks.check_tensor("mocov2plus_loss_func", "queue", queue, ndim=2, layout="[D, K]")
    return functional.info_nce(query, key, queue.T, temperature=temperature, normalize=False)


def mocov3_loss_func(query: Tensor, key: Tensor, temperature: float = 0.2) -> Tensor:
    """MoCo v3's loss of one direction, times 2 tau. Chen, Xie and He, "An Empirical Study of Training Self-Supervised
    Vision Transformers", 2021, algorithm 1.

    Args:
        query: predictions [N, D] of the first view, float32, bfloat16, float16 or float64.
        key: momentum projections [N, D] of the second view; constants. Across ranks those of all of them.
        temperature: above 0.

    Returns:
        The loss, [], float32 (float64 for float64).

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    loss = functional.info_nce(query, key.detach(), temperature=temperature, group=default_group(True))
    return loss * (2 * temperature)


def nnclr_loss_func(nn: Tensor, p: Tensor, temperature: float = 0.1) -> Tensor:
    """NNCLR's loss of one direction. Dwibedi et al., "With a Little Help from My Friends", 2021, equation 2.

    Args:
        nn: nearest neighbours [N, D] of the first view, float32, bfloat16, float16 or float64.
        p: predictions [N, D] of the second view.
        temperature: above 0.

    Returns:
        The loss, [], float32 (float64 for float64).

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    return functional.info_nce(nn, p, temperature=temperature)


def swav_loss_func(preds: Sequence[Tensor], assignments: Sequence[Any], temperature: float = 0.1) -> Tensor:
    """SwAV's swapped prediction: mean cross-entropy over images and pairs of different views.

    Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", 2020.

    Args:
        preds: logits of all views, S times [N, K], float32, bfloat16, float16 or float64.
        assignments: of the first T views, T times [N, K]: what :class:`SinkhornKnopp` returned, of which nothing is
            stored; or tensors, at the price of one float32 copy for their logarithm.
        temperature: above 0.

    Returns:
        The loss, [], float32 (float64 for float64 logits).

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    _, first = check_views("swav_loss_func", "preds", preds)
    if len(assignments) == 0:
        raise ValueError("swav_loss_func: assignments must have at least one view, got none")
    return functional.soft_target_cross_entropy(
        preds, **as_logits(list(assignments), first.dtype), student_temperature=temperature
    )


class SinkhornKnopp(nn.Module):
    """Assigns a batch to prototypes, each nearly the same share; finite for logits of any size.

    Args:
        num_iters: at least 1.
        epsilon: temperature, above 0.
        world_size: not used: with a process group the samples of all its processes are assigned together.
    """

    def __init__(self, num_iters: int = 3, epsilon: float = 0.05, world_size: int = 1) -> None:
        super().__init__()
        self.num_iters = checks.check_count("SinkhornKnopp", "num_iters", num_iters, minimum=1)
        self.epsilon = checks.check_positive_number("SinkhornKnopp", "epsilon", epsilon)

    @torch.no_grad()
    def forward(self, Q: Tensor) -> TeacherProbabilities:
        """Assignments of logits.

        Args:
            Q: similarities of samples and prototypes, [N, K].

        Returns:
            Probabilities [N, K], which can be cut to some rows, and used as a tensor.
        """
        column_potential, _ = functional.sinkhorn_knopp(
            Q, self.epsilon, iterations=self.num_iters, group=default_group(True)
        )
        return TeacherProbabilities(Q, self.epsilon, column_potential)


class DINOLoss(Center):
    """Cross-entropy between the teacher's centred, sharpened assignments and the student's, over pairs of different
    views. Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021.

    Set the attribute ``epoch`` to follow the schedule of the teacher's temperature.

    Args:
        num_prototypes: K. The buffer ``center`` has shape [1, K].
        warmup_teacher_temp: temperature of the teacher in epoch 0.
        teacher_temp: temperature after the warm-up.
        warmup_teacher_temp_epochs: epochs in which it goes linearly from one to the other.
        num_epochs: of the training, at least as many.
        student_temp: temperature of the student.
        num_large_crops: views that the student sees.
        center_momentum: share of the old centre in the new one, from 0 to 1.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """

    def __init__(
        self,
        num_prototypes: int,
        warmup_teacher_temp: float,
        teacher_temp: float,
        warmup_teacher_temp_epochs: int,
        num_epochs: int,
        student_temp: float = 0.1,
        num_large_crops: int = 2,
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__("DINOLoss", (1, num_prototypes), center_momentum)
        self.epoch = 0
        self.student_temp = checks.check_positive_number("DINOLoss", "student_temp", student_temp)
        self.num_large_crops = checks.check_count("DINOLoss", "num_large_crops", num_large_crops, minimum=2)
        warmup = linear_warmup("DINOLoss", warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs)
        checks.check_count("DINOLoss", "num_epochs", num_epochs, minimum=len(warmup))
        self.teacher_temp_schedule = (*warmup, *[float(teacher_temp)] * (num_epochs - len(warmup)))

    def forward(self, student_output: Tensor, teacher_output: Tensor) -> Tensor:
        """Mean cross-entropy over pairs of different views and images; then the centre moves.

        Args:
            student_output: logits of all views, [num_large_crops N, K], view after view; float32, bfloat16, float16 or
                float64.
            teacher_output: logits of the first two views, [2 N, K].

        Returns:
            The loss, [], float32 (float64 for float64 logits).

        Raises:
            TypeError, ValueError: naming the argument, what it was and what it must be.
        """
        checks.check_count("DINOLoss", "epoch", self.epoch, minimum=0)
        if self.epoch >= len(self.teacher_temp_schedule):
            raise ValueError(
                f"DINOLoss: epoch must be below num_epochs, {len(self.teacher_temp_schedule)}, got {self.epoch}"
            )
        stacks = []
        for name, logits, views in (
            ("student_output", student_output, self.num_large_crops),
            ("teacher_output", teacher_output, 2),
        ):
            checks.check_tensor("DINOLoss", name, logits, ndim=2, layout=f"[{views} N, K]")
            self.check_prototypes(name, logits)
            if logits.shape[0] % views:
                raise ValueError(
                    f"DINOLoss: {name} must have {views} views of as many rows, got shape {tuple(logits.shape)}"
                )
            stacks.append(logits.view(views, -1, logits.shape[1]))
        temperature = self.teacher_temp_schedule[self.epoch]
        loss, column_sum = functional.soft_target_cross_entropy(
            *stacks,
            student_temperature=self.student_temp,
            teacher_temperature=temperature,
            column_potential=self.column_potential(temperature, teacher_output.dtype),
            return_column_sum=True,
        )
        self.move(column_sum, teacher_output.shape[0])
        return loss


def byol_loss_func(p: Tensor, z: Tensor, simplified: bool = True) -> Tensor:
    """BYOL's loss of one direction, 2 - 2 cosine. Grill et al., "Bootstrap Your Own Latent", 2020, equation 2.

    Args:
        p: predictions from one view, [N, D], float32, bfloat16, float16 or float64.
        z: projections of the other view, [N, D]; a constant.
        simplified: not used: both forms have the same value.

    Returns:
        The loss, [], float32 (float64 for float64).
    """
    return 2 + 2 * NegativeCosineSimilarity(dim=-1)(p, z.detach())


def simsiam_loss_func(p: Tensor, z: Tensor, simplified: bool = True) -> Tensor:
    """SimSiam's loss of one direction, minus the cosine. Chen and He, "Exploring Simple Siamese Representation
    Learning", 2021, equation 1.

    Args:
        p: predictions from one view, [N, D], float32, bfloat16, float16 or float64.
        z: projections of the other view, [N, D]; a constant.
        simplified: not used: both forms have the same value.

    Returns:
        The loss, [], float32 (float64 for float64).
    """
    return NegativeCosineSimilarity(dim=-1)(p, z.detach())


def mae_loss_func(imgs: Tensor, pred: Tensor, mask: Tensor, patch_size: int, norm_pix_loss: bool = True) -> Tensor:
    """MAE's mean squared error of the removed patches. He et al., "Masked Autoencoders Are Scalable Vision Learners",
    2022, section 3.

    Args:
        imgs: [N, C, H, W], float32, bfloat16, float16, float64, or uint8, which is divided by 255. A constant.
        pred: [N, L, patch_size^2 C] in the order (y, x, C).
        mask: [N, L], 1 where a patch was removed.
        patch_size: divides H and W.
        norm_pix_loss: normalise each patch of the image by its mean and its unbiased variance + 1e-6.

    Returns:
        The loss, [], float32 (float64 for float64 predictions); NaN where no patch was removed.
    """
    return functional.patch_loss(imgs, pred, mask, patch_size=patch_size, normalize=norm_pix_loss)
