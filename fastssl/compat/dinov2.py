"""The losses of DINOv2 with the interface of its ``dinov2.loss``: in place of

    from dinov2.loss import DINOLoss, iBOTPatchLoss, KoLeoLoss

write

    from fastssl.compat.dinov2 import DINOLoss, iBOTPatchLoss, KoLeoLoss

and its training loop (``SSLMetaArch``) runs unchanged. Oquab et al., "DINOv2: Learning Robust Visual Features without
Supervision", 2023.

There the teacher's probabilities are computed by one method and handed to another. Here ``softmax_center_teacher`` and
``sinkhorn_knopp_teacher`` return :class:`fastssl.compat.targets.TeacherProbabilities`, which holds the logits and is
viewed, flattened and indexed like the tensor, so that the loss reads logits once and no probabilities are stored. The
losses also take tensors of probabilities, at the price of one float32 copy for their logarithm.

Everything works in one process, without a process group. With one, centres and Sinkhorn-Knopp are over all processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from ..losses.arguments import default_group
from ..losses.center import Center
from ..ops import checks
from .targets import TeacherProbabilities, as_logits


class _CenteredTeacher(Center):
    """What both losses share: the teacher's probabilities, by a centre or by Sinkhorn-Knopp."""

    def __init__(self, shape: Sequence[int], student_temp: float, center_momentum: float, inplace: bool) -> None:
        name = type(self).__name__
        super().__init__(name, shape, center_momentum)
        self.student_temp = checks.check_positive_number(name, "student_temp", student_temp)
        self.inplace = bool(inplace)

    @torch.no_grad()
    def softmax_center_teacher(self, teacher_output: Tensor, teacher_temp: float) -> TeacherProbabilities:
        """softmax((teacher_output - center) / teacher_temp) with the centre as it is now.

        Args:
            teacher_output: logits, [..., K], float32, bfloat16, float16 or float64.
            teacher_temp: above 0.

        Returns:
            Probabilities of the same shape.
        """
        name = type(self).__name__
        checks.check_number_tensor(name, "teacher_output", teacher_output)
        self.check_prototypes("teacher_output", teacher_output)
        temperature = checks.check_positive_number(name, "teacher_temp", teacher_temp)
        return TeacherProbabilities(
            teacher_output, temperature, self.column_potential(temperature, teacher_output.dtype)
        )

    def _sinkhorn_knopp(self, logits: Tensor, temperature: float, iterations: int) -> TeacherProbabilities:
        # Rows may be more on one process than on another: their number cancels in the next sum over a row.
        column_potential, _ = functional.sinkhorn_knopp(
            logits, temperature, iterations=iterations, group=default_group(True)
        )
        return TeacherProbabilities(logits, float(temperature), column_potential)


class DINOLoss(_CenteredTeacher):
    """Cross-entropy of class tokens: the sum over all pairs of the mean over the batch.

    Args:
        out_dim: number of prototypes, K.
        student_temp: temperature of the student.
        center_momentum: share of the old centre in the new one. The buffer ``center`` has shape [1, K].
        inplace: let the gradient take the place of the student's logits, whose values are undefined after the call.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.

    Example:
        >>> criterion = DINOLoss(65536)
        >>> teacher = criterion.softmax_center_teacher(teacher_logits, teacher_temp=0.04).view(2, -1, 65536)
        >>> criterion.update_center(teacher_logits)
        >>> loss = criterion(student_logits.chunk(8), teacher)
    """

    def __init__(
        self, out_dim: int, student_temp: float = 0.1, center_momentum: float = 0.9, *, inplace: bool = False
    ) -> None:
        super().__init__((1, out_dim), student_temp, center_momentum, inplace)

    @torch.no_grad()
    def sinkhorn_knopp_teacher(
        self, teacher_output: Tensor, teacher_temp: float, n_iterations: int = 3
    ) -> TeacherProbabilities:
        """The batch's assignment by Sinkhorn-Knopp, finite for logits of any size.

        Args:
            teacher_output: logits, [B, K].
            teacher_temp: above 0.
            n_iterations: at least 1.

        Returns:
            Probabilities [B, K].
        """
        return self._sinkhorn_knopp(teacher_output, teacher_temp, n_iterations)

    def forward(
        self,
        student_output_list: Sequence[Tensor] | Tensor,
        teacher_out_softmaxed_centered_list: Sequence[Any] | TeacherProbabilities | Tensor,
    ) -> Tensor:
        """Sum over all pairs of a student's and a teacher's view of the mean over rows, same views included.

        Args:
            student_output_list: S times logits [B, K], a sequence or a tensor [S, B, K].
            teacher_out_softmaxed_centered_list: T times probabilities [B, K], likewise.

        Returns:
            The loss, [], float32 (float64 for float64 logits).
        """
        students = list(student_output_list)
        targets = list(teacher_out_softmaxed_centered_list)
        if not students or not targets:
            raise ValueError(
                f"DINOLoss: there must be at least one view of student and teacher, got {len(students)} and "
                f"{len(targets)}"
            )
        loss = functional.soft_target_cross_entropy(
            students,
            **as_logits(targets, students[0].dtype),
            student_temperature=self.student_temp,
            skip_same_view=False,
            reduction="sum",
            inplace=self.inplace,
        )
        return loss / students[0].shape[0]


class iBOTPatchLoss(_CenteredTeacher):
    """Cross-entropy of masked patch tokens: the mean over images of the mean over their masked tokens.

    Args:
        patch_out_dim: number of prototypes, K.
        student_temp: temperature of the student.
        center_momentum: share of the old centre in the new one. The buffer ``center`` has shape [1, 1, K]. Over
            processes each token has the same weight in it; published, each process has.
        inplace: let the gradient take the place of the student's logits, whose values are undefined after the call.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """

    def __init__(
        self, patch_out_dim: int, student_temp: float = 0.1, center_momentum: float = 0.9, *, inplace: bool = False
    ) -> None:
        super().__init__((1, 1, patch_out_dim), student_temp, center_momentum, inplace)

    @torch.no_grad()
    def sinkhorn_knopp_teacher(
        self,
        teacher_output: Tensor,
        teacher_temp: float,
        n_masked_patches_tensor: Tensor | None = None,
        n_iterations: int = 3,
    ) -> TeacherProbabilities:
        """The masked tokens' assignment by Sinkhorn-Knopp, finite for logits of any size.

        Args:
            teacher_output: logits of the masked tokens, [M, K]; each process may have its own M.
            teacher_temp: above 0.
            n_masked_patches_tensor: not used: the number of tokens cancels.
            n_iterations: at least 1.

        Returns:
            Probabilities [M, K].
        """
        return self._sinkhorn_knopp(teacher_output, teacher_temp, n_iterations)

    def forward(
        self,
        student_patch_tokens: Tensor,
        teacher_patch_tokens: TeacherProbabilities | Tensor,
        student_masks_flat: Tensor,
    ) -> Tensor:
        """The loss from all tokens, of which the masked ones are read.

        Args:
            student_patch_tokens: logits, [B, N, K].
            teacher_patch_tokens: probabilities, [B, N, K].
            student_masks_flat: [B, N], True or 1 where a token was masked.

        Returns:
            The loss, [], float32 (float64 for float64 logits).
        """
        return self._masked(student_patch_tokens, teacher_patch_tokens, student_masks_flat)

    def forward_masked(
        self,
        student_patch_tokens_masked: Tensor,
        teacher_patch_tokens_masked: TeacherProbabilities | Tensor,
        student_masks_flat: Tensor,
        n_masked_patches: int | None = None,
        masks_weight: Tensor | None = None,
    ) -> Tensor:
        """The loss from the masked tokens only.

        Args:
            student_patch_tokens_masked: logits, [M, K], in the order of the masks' True entries.
            teacher_patch_tokens_masked: probabilities, [M, K].
            student_masks_flat: bool, [B, N].
            n_masked_patches: rows beyond this many are padding; None: there are none.
            masks_weight: weight of each masked token, [n_masked_patches]; None: 1 over their number in the image.

        Returns:
            The loss, [], float32 (float64 for float64 logits).
        """
        student, teacher = student_patch_tokens_masked, teacher_patch_tokens_masked
        if n_masked_patches is not None and n_masked_patches < student.shape[0]:
            student, teacher = student[:n_masked_patches], teacher[:n_masked_patches]
        if masks_weight is None:
            return self._masked(student, teacher, student_masks_flat)
        return functional.soft_target_cross_entropy(
            [student],
            **as_logits([teacher], student.dtype),
            student_temperature=self.student_temp,
            skip_same_view=False,
            weight=masks_weight / student_masks_flat.shape[0],
            reduction="sum",
            inplace=self.inplace,
        )

    def _masked(self, student: Tensor, teacher: TeacherProbabilities | Tensor, masks: Tensor) -> Tensor:
        arguments = as_logits([teacher], student.dtype)
        (logits,) = arguments.pop("teacher")
        del arguments["row_potential"]  # rows of probabilities sum to 1, here by force
        return functional.masked_soft_target_cross_entropy(
            student, logits, masks.bool(), **arguments, student_temperature=self.student_temp, inplace=self.inplace
        )


class KoLeoLoss(nn.Module):
    """Spreads the embeddings of a batch by each one's distance to its nearest neighbour, without the B x B matrix.

    Example:
        >>> criterion = KoLeoLoss()
        >>> loss = sum(criterion(tokens) for tokens in class_tokens.chunk(2))
    """

    def forward(self, student_output: Tensor, eps: float = 1e-8) -> Tensor:
        """-mean log(distance to the nearest neighbour + eps) of normalised rows.

        Args:
            student_output: embeddings, [B, D], float32, bfloat16, float16 or float64.
            eps: added to distances, above 0.

        Returns:
            The loss, [], float32 (float64 for float64).
        """
        return functional.koleo(student_output, eps=eps)
