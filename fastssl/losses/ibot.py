"""The loss of iBOT and DINOv2 on masked patch tokens."""

from __future__ import annotations

from torch import Tensor, nn

from .. import functional
from ..ops import checks
from ..ops.precision import accumulator
from .center import Center


class IBOTPatchLoss(nn.Module):
    """Cross-entropy between the teacher's and the student's assignment of each masked patch token, in place of
    ``lightly.loss.IBOTPatchLoss``: same arguments, values, and state dict.

    The mean over images of the mean over their masked tokens; an image without masked tokens counts as 0. No
    probabilities are stored: see :func:`fastssl.functional.masked_soft_target_cross_entropy`. Zhou et al., "iBOT: Image
    BERT Pre-Training with Online Tokenizer", 2022, equation 2; the centre is over the masked tokens, as in DINOv2
    (Oquab et al., 2023).

    The buffer ``center.center``, [1, K], is the moving average of the teacher's logits. A call first uses it and then
    moves it, also in eval mode, as lightly does. Over processes each masked token has the same weight in it, as if one
    process held them all, where lightly gives each process the same weight. No gradient flows into the teacher.

    Args:
        output_dim: number of prototypes, K.
        teacher_temp: temperature of the teacher.
        student_temp: temperature of the student.
        center_mode: only "mean".
        center_momentum: share of the old centre in the new one, from 0 to 1.
        inplace: let the gradient take the place of the student's logits, whose values are undefined after the call. It
            saves the gradient's memory; under ``torch.compile`` it has no effect.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.

    Example:
        >>> criterion = IBOTPatchLoss(output_dim=8192)
        >>> loss = criterion(teacher(patches[mask]), student(masked_patches[mask]), mask)
    """

    def __init__(
        self,
        output_dim: int = 65536,
        teacher_temp: float = 0.04,
        student_temp: float = 0.1,
        center_mode: str = "mean",
        center_momentum: float = 0.9,
        *,
        inplace: bool = False,
    ) -> None:
        super().__init__()
        checks.check_choice("IBOTPatchLoss", "center_mode", center_mode, ("mean",))
        self.teacher_temp = checks.check_positive_number("IBOTPatchLoss", "teacher_temp", teacher_temp)
        self.student_temp = checks.check_positive_number("IBOTPatchLoss", "student_temp", student_temp)
        self.center = Center("IBOTPatchLoss", (1, output_dim), center_momentum)
        self.inplace = bool(inplace)

    def forward(
        self, teacher_out: Tensor, student_out: Tensor, mask: Tensor, teacher_temp: float | None = None
    ) -> Tensor:
        """Mean over images of the mean cross-entropy over their masked tokens.

        Args:
            teacher_out: the teacher's logits of the M masked tokens, [M, K], in the order of the mask's True entries;
                or of all tokens, [B, L, K], of which the masked ones are read. float32, bfloat16, float16 or float64.
            student_out: the student's, of the same shape.
            mask: bool, [B, H, W] or [B, L], True where a token was masked.
            teacher_temp: temperature of the teacher in this call; None: that of the constructor.

        Returns:
            The loss, [], float32 (float64 for float64 logits).

        Raises:
            TypeError, ValueError: naming the argument, what it was and what it must be.
        """
        temperature = self.teacher_temp if teacher_temp is None else teacher_temp
        temperature = checks.check_positive_number("IBOTPatchLoss", "teacher_temp", temperature)
        for name, logits in (("teacher_out", teacher_out), ("student_out", student_out)):
            checks.check_number_tensor("IBOTPatchLoss", name, logits)
            self.center.check_prototypes(name, logits)
        if student_out.shape[0] == teacher_out.shape[0] == 0:  # nothing is masked here, but perhaps on other ranks
            loss = student_out.sum(dtype=accumulator(student_out))
            column_sum = self.center.center.new_zeros(student_out.shape[-1])
        else:
            loss, column_sum = functional.masked_soft_target_cross_entropy(
                student_out,
                teacher_out,
                mask,
                student_temperature=self.student_temp,
                teacher_temperature=temperature,
                column_potential=self.center.column_potential(temperature, teacher_out.dtype),
                inplace=self.inplace,
                return_column_sum=True,
            )
        self.center.move(column_sum, mask.sum())
        return loss
