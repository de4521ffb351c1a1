"""The loss of DINO."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import functional
from ..ops import checks
from .arguments import check_same_batch, check_views, linear_warmup
from .center import Center


class DINOLoss(Center):
    """Cross-entropy between the teacher's centred, sharpened assignments and the student's, over all pairs of different
    views, in place of ``lightly.loss.DINOLoss``: same arguments, values, and state dict.

    No probabilities are stored: see :func:`fastssl.functional.soft_target_cross_entropy`. Caron et al., "Emerging
    Properties in Self-Supervised Vision Transformers", 2021, equations 1, 3 and 4.

    The buffer ``center``, [1, 1, K], is the moving average of the teacher's logits over all processes. A call first
    uses it and then moves it, also in eval mode, as lightly does; the sums come out of the same pass as the loss. Only
    the teacher's values are used: unlike in lightly no gradient flows into it.

    Args:
        output_dim: number of prototypes, K.
        warmup_teacher_temp: temperature of the teacher in epoch 0, when calls pass an epoch.
        teacher_temp: temperature of the teacher after the warm-up, and in calls without an epoch.
        warmup_teacher_temp_epochs: epochs in which the temperature goes linearly from one to the other.
        student_temp: temperature of the student.
        center_momentum: share of the old centre in the new one, from 0 to 1.
        center_mode: only "mean".
        inplace: let the gradient take the place of the student's logits, whose values are undefined after the call. It
            saves the gradient's memory; under ``torch.compile`` it has no effect.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.

    Example:
        >>> criterion = DINOLoss(output_dim=65536)
        >>> loss = criterion([teacher(x) for x in global_views], [student(x) for x in global_views + local_views])
    """

    def __init__(
        self,
        output_dim: int = 65536,
        warmup_teacher_temp: float = 0.04,
        teacher_temp: float = 0.04,
        warmup_teacher_temp_epochs: int = 30,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
        center_mode: str = "mean",
        *,
        inplace: bool = False,
    ) -> None:
        super().__init__("DINOLoss", (1, 1, output_dim), center_momentum)
        checks.check_choice("DINOLoss", "center_mode", center_mode, ("mean",))
        self.teacher_temp = checks.check_positive_number("DINOLoss", "teacher_temp", teacher_temp)
        self.student_temp = checks.check_positive_number("DINOLoss", "student_temp", student_temp)
        self.warmup_teacher_temp_epochs = warmup_teacher_temp_epochs
        self.teacher_temp_schedule = linear_warmup(
            "DINOLoss", warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs
        )
        self.inplace = bool(inplace)

    def forward(
        self,
        teacher_out: Sequence[Tensor] | Tensor,
        student_out: Sequence[Tensor] | Tensor,
        teacher_temp: float | None = None,
        epoch: int | None = None,
    ) -> Tensor:
        """Mean cross-entropy over pairs of different views and images.

        Args:
            teacher_out: logits of the T views that the teacher sees, a list of [B, K] or a tensor [T, B, K]; float32,
                bfloat16, float16 or float64.
            student_out: logits of the S views that the student sees, likewise; the first T are the teacher's.
            teacher_temp: temperature of the teacher in this call.
            epoch: looks the temperature up in the schedule, when ``teacher_temp`` is None.

        Returns:
            The loss, [], float32 (float64 for float64 logits).

        Raises:
            TypeError, ValueError: naming the argument, what it was and what it must be.
        """
        if teacher_temp is None:
            teacher_temp = self._scheduled(epoch)
        temperature = checks.check_positive_number("DINOLoss", "teacher_temp", teacher_temp)
        views, teacher = check_views("DINOLoss", "teacher_out", teacher_out)
        _, student = check_views("DINOLoss", "student_out", student_out)
        check_same_batch("DINOLoss", ("teacher_out's views", teacher), ("student_out's", student))
        self.check_prototypes("teacher_out", teacher)
        loss, column_sum = functional.soft_target_cross_entropy(
            student_out,
            teacher_out,
            student_temperature=self.student_temp,
            teacher_temperature=temperature,
            column_potential=self.column_potential(temperature, teacher.dtype),
            inplace=self.inplace,
            return_column_sum=True,
        )
        self.move(column_sum, views * teacher.shape[0])
        return loss

    def _scheduled(self, epoch: int | None) -> float:
        if epoch is None:
            return self.teacher_temp
        checks.check_count("DINOLoss", "epoch", epoch, minimum=0)
        return self.teacher_temp_schedule[epoch] if epoch < self.warmup_teacher_temp_epochs else self.teacher_temp
