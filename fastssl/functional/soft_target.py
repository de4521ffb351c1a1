"""Cross-entropy of students against soft targets: the loss of DINO, iBOT, DINOv2, SwAV and MSN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from .. import backends, ops  # noqa: F401 - ops registers the operators
from ..ops import checks, registry
from ..ops.gradients import is_last_backward, scaled
from ..ops.precision import accumulator

Views = Tensor | Sequence[Tensor]
Reduction = Literal["mean", "sum", "none"]


@overload
def soft_target_cross_entropy(
    student: Views, teacher: Views, *, student_temperature: float = ..., teacher_temperature: float = ...,
    column_potential: Tensor | None = ..., row_potential: Tensor | None = ..., skip_same_view: bool = ...,
    weight: Tensor | None = ..., reduction: Reduction = ..., inplace: bool = ...,
    return_column_sum: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip
@overload
def soft_target_cross_entropy(
    student: Views, teacher: Views, *, student_temperature: float = ..., teacher_temperature: float = ...,
    column_potential: Tensor | None = ..., row_potential: Tensor | None = ..., skip_same_view: bool = ...,
    weight: Tensor | None = ..., reduction: Reduction = ..., inplace: bool = ...,
    return_column_sum: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def soft_target_cross_entropy(
    student: Views, teacher: Views, *, student_temperature: float = ..., teacher_temperature: float = ...,
    column_potential: Tensor | None = ..., row_potential: Tensor | None = ..., skip_same_view: bool = ...,
    weight: Tensor | None = ..., reduction: Reduction = ..., inplace: bool = ...,
    return_column_sum: bool = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip
def soft_target_cross_entropy(
    student: Views,
    teacher: Views,
    *,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    column_potential: Tensor | None = None,
    row_potential: Tensor | None = None,
    skip_same_view: bool = True,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    inplace: bool = False,
    return_column_sum: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Cross-entropy between the teacher's soft assignments and the students', over all pairs of different views.

    With x the student's and y the teacher's logits over K prototypes, every pair of a teacher view t and a student
    view s of an image b costs ``-sum_k p_tbk log softmax(x_sb / student_temperature)_k``, where
    ``p_tbk = exp(y_tbk / teacher_temperature - column_potential_k - row_potential_tb)``: equation 1 of Caron et al.,
    "Emerging Properties in Self-Supervised Vision Transformers" (DINO), 2021, with the centre c as
    ``column_potential = c / teacher_temperature``; with the potentials of :func:`sinkhorn_knopp` it is the swapped
    prediction of SwAV (Caron et al., 2020, equation 2). No probabilities are stored: the logits are read and the
    gradient is written.

    Args:
        student: S views, [S, B, K], or a sequence of views [B, K] (or of stacks of views); nothing is copied as long
            as the numbers of a row lie side by side. float32, bfloat16, float16 or float64.
        teacher: T views, likewise; view t of the teacher and view t of the student show the same crop. Its dtype may
            differ from the student's. A constant: no gradient flows, nor to the potentials and weights.
        student_temperature: above 0.
        teacher_temperature: above 0.
        column_potential: [K], or [T, K] with potentials of each teacher view.
        row_potential: [T, B]; None: what makes each row of the teacher sum to 1.
        skip_same_view: leave out the pairs with t = s.
        weight: of each image, [B]. Logits of images with weight 0 are not read, and their gradient is 0.
        reduction: "mean" over pairs and images, "sum", or "none": the sum over the pairs of each image, [B].
        inplace: let the gradient take the place of the student's logits, whose values are undefined after the call.
            It saves the gradient's memory. Logits must then not be leaves that require a gradient; under
            ``torch.compile`` it has no effect.
        return_column_sum: return also the sum of the teacher's logits over views and images (of non-zero weight), for
            the next centre; it comes out of the same pass.

    Returns:
        The loss, [] or [B], float32 (float64 for float64); with ``return_column_sum`` also the sums, [K].

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.

    Example:
        >>> loss, total = soft_target_cross_entropy(
        ...     student_logits, teacher_logits, column_potential=center / 0.04, return_column_sum=True
        ... )
        >>> center = 0.9 * center + 0.1 * total / (2 * batch_size)
    """
    name = "soft_target_cross_entropy"
    students, teachers = _stacks(name, "student", student), _stacks(name, "teacher", teacher)
    checks.check_choice(name, "reduction", reduction, ("mean", "sum", "none"))
    views, of_teacher = (sum(stack.shape[0] for stack in stacks) for stacks in (students, teachers))
    pairs = views * of_teacher - (min(views, of_teacher) if skip_same_view else 0)
    if pairs == 0:
        raise ValueError(
            f"{name}: with skip_same_view, student and teacher must have at least one pair of different views, "
            f"got {views} and {of_teacher} views"
        )
    constants = []
    for constant_name, constant in (
        ("column_potential", column_potential),
        ("row_potential", row_potential),
        ("weight", weight),
    ):
        if constant is not None:
            checks.check_number_tensor(name, constant_name, constant)
            constant = constant.detach().to(accumulator(students[0]))
        constants.append(constant)
    arguments = {
        "student_scale": checks.check_temperature(name, "student_temperature", student_temperature),
        "teacher_scale": checks.check_temperature(name, "teacher_temperature", teacher_temperature),
        "skip_same_view": bool(skip_same_view),
        "column_sum": bool(return_column_sum),
        "backend": backends.forced(),
    }
    factor = 1.0 if reduction != "mean" else 1.0 / (pairs * students[0].shape[1])
    inputs = (students, [stack.detach() for stack in teachers], *constants)

    needs_gradient = torch.is_grad_enabled() and any(stack.requires_grad for stack in students)
    inplace = bool(inplace) and needs_gradient and not torch.compiler.is_compiling()
    if inplace:
        _check_may_be_overwritten(name, student)
    # On a CPU the gradient comes out of the pass that computes the loss. On a GPU the backward pass computes it, with
    # the incoming gradient already there. So it does where the gradient would be rounded before a loss scaler
    # multiplies it, and in a graph, which could not leave out the multiplication by 1.
    at_once = (
        needs_gradient
        and reduction != "none"
        and students[0].is_cpu
        and students[0].dtype != torch.float16
        and not torch.compiler.is_compiling()
    )
    if inplace:
        function = _StepInPlace if at_once else _GradientInPlace
        losses, total = function.apply(inputs[1:], {**arguments, **({"factor": factor} if at_once else {})}, *students)
    elif at_once:
        losses, total, _ = torch.ops.fastssl.soft_target_step(*inputs, **arguments, factor=factor)
    else:
        losses, _, _, total = torch.ops.fastssl.soft_target_cross_entropy(*inputs, **arguments)
    loss = losses if at_once or reduction == "none" else losses.sum() * factor
    return (loss, total) if return_column_sum else loss


@overload
def masked_soft_target_cross_entropy(
    student: Tensor, teacher: Tensor, mask: Tensor, *, student_temperature: float = ...,
    teacher_temperature: float = ..., column_potential: Tensor | None = ..., inplace: bool = ...,
    return_column_sum: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip
@overload
def masked_soft_target_cross_entropy(
    student: Tensor, teacher: Tensor, mask: Tensor, *, student_temperature: float = ...,
    teacher_temperature: float = ..., column_potential: Tensor | None = ..., inplace: bool = ...,
    return_column_sum: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def masked_soft_target_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    *,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    column_potential: Tensor | None = None,
    inplace: bool = False,
    return_column_sum: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Cross-entropy of each masked token against the teacher's assignment of the same token (iBOT, DINOv2).

    The mean over images of the mean over their masked tokens: equation 2 of Zhou et al., "iBOT: Image BERT Pre-Training
    with Online Tokenizer", 2022. An image without masked tokens counts as 0. Which tokens are masked is read on the
    device: nothing is gathered and no host waits.

    Args:
        student: logits of all tokens, [B, L, K], of which the masked ones are read; or of the masked tokens only,
            [M, K], in the order in which they stand in the mask. Rows beyond those (padding) are not read.
        teacher: of the same shape; a constant.
        mask: bool, [B, L] or [B, H, W], True where a token was masked.
        student_temperature: above 0.
        teacher_temperature: above 0.
        column_potential: [K], as in :func:`soft_target_cross_entropy`.
        inplace: as in :func:`soft_target_cross_entropy`.
        return_column_sum: return also the sum over the masked tokens of the teacher's logits, [K].

    Returns:
        The loss, [], float32 (float64 for float64); with ``return_column_sum`` also the sums, [K].

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    name = "masked_soft_target_cross_entropy"
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name}: mask must be a bool tensor of shape [B, L] or [B, H, W], got {got}")
    if mask.ndim not in (2, 3) or 0 in mask.shape:
        raise ValueError(f"{name}: mask must have shape [B, L] or [B, H, W], got {tuple(mask.shape)}")
    mask = mask.flatten(1)
    gathered = isinstance(student, Tensor) and student.ndim == 2
    for tensor_name, tensor in (("student", student), ("teacher", teacher)):
        checks.check_tensor(name, tensor_name, tensor, ndim=2 if gathered else 3, layout="[B, L, K] or [M, K]")
    for attribute in ("shape", "device"):
        checks.check_same(name, attribute, ("student", student), ("teacher", teacher))
    checks.check_same(name, "device", ("student", student), ("mask", mask))
    if not gathered and student.shape[:2] != mask.shape:
        raise ValueError(
            f"{name}: student must have the mask's tokens, [{mask.shape[0]}, {mask.shape[1]}, K], "
            f"got {tuple(student.shape)}"
        )
    share = mask.sum(1, dtype=accumulator(student)).clamp(min=1).reciprocal()  # [B]
    if gathered:
        weight = _weights_of_gathered(name, mask, share, student.shape[0])
    else:
        weight = torch.where(mask, share[:, None], 0.0).flatten()
        if inplace and student.requires_grad and student.is_leaf and torch.is_grad_enabled():
            _check_may_be_overwritten(name, student)  # flattened it would be no leaf any more
    return soft_target_cross_entropy(
        student.reshape(1, -1, student.shape[-1]),
        teacher.reshape(1, -1, student.shape[-1]),
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        column_potential=column_potential,
        skip_same_view=False,
        weight=weight / mask.shape[0],
        reduction="sum",
        inplace=inplace,
        return_column_sum=return_column_sum,
    )


def _weights_of_gathered(function: str, mask: Tensor, share: Tensor, rows: int) -> Tensor:
    """The weight of the image from which each of M gathered rows comes, [M]; 0 for rows beyond the mask's entries."""
    entries = mask.flatten().cumsum(0)
    if mask.is_cpu and not torch.compiler.is_compiling() and int(entries[-1]) > rows:
        raise ValueError(f"{function}: student must have a row per masked token, {int(entries[-1])}, got {rows}")
    place = torch.searchsorted(entries, torch.arange(1, rows + 1, device=mask.device))  # of the m-th True entry
    image = (place // mask.shape[1]).clamp(max=mask.shape[0] - 1)
    return torch.where(place < mask.numel(), share[image], 0.0)


def _stacks(function: str, name: str, views: Any, last: str = "K") -> list[Tensor]:
    """Views as a list of stacks [views, B, K], without copies; ``last`` is the last dimension's name in messages."""
    if isinstance(views, Tensor):
        if views.ndim == 2:
            raise ValueError(
                f"{function}: {name} must have shape [views, B, {last}] or be a list of [B, {last}], "
                f"got {tuple(views.shape)}"
            )
        views = [views]
    elif not isinstance(views, Sequence) or isinstance(views, str):
        raise TypeError(
            f"{function}: {name} must be a tensor [views, B, {last}] or a list of [B, {last}], "
            f"got {type(views).__name__}"
        )
    if len(views) == 0:
        raise ValueError(f"{function}: {name} must have at least one view, got none")
    stacks = []
    for view in views:
        if isinstance(view, Tensor) and view.ndim == 3:
            checks.check_tensor(function, name, view, ndim=3, layout=f"[views, B, {last}]")
            stacks.append(view)
        else:
            checks.check_tensor(function, name, view, ndim=2, layout=f"[B, {last}]")
            stacks.append(view.unsqueeze(0))
    return stacks


def _check_may_be_overwritten(function: str, views: Views) -> None:
    """Logits into which the gradient can be written."""
    tensors = [views] if isinstance(views, Tensor) else list(views)
    if any(tensor.is_leaf and tensor.requires_grad for tensor in tensors):
        raise ValueError(
            f"{function}: with inplace=True the student's logits are overwritten, so they must not be leaves that "
            "require a gradient, got a leaf"
        )
    if len({tensor.data_ptr() for tensor in tensors}) < len(tensors) or any(
        torch._debug_has_internal_overlap(tensor) == 1 for tensor in tensors
    ):
        raise ValueError(
            f"{function}: with inplace=True the student's logits are overwritten, so no two of them may share memory"
        )


class _StepInPlace(torch.autograd.Function):
    """Loss and gradient at once; the gradient takes the logits' place in the forward pass."""

    @staticmethod
    def forward(ctx: Any, constants: tuple, arguments: dict[str, Any], *students: Tensor) -> tuple[Tensor, Tensor]:
        buffers = [stack.detach() for stack in students]
        loss, total, gradients = registry.direct("soft_target_step")(buffers, *constants, **arguments, inplace=True)
        torch.autograd.graph.increment_version(students)  # whoever saved the logits is told
        ctx.mark_non_differentiable(total)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*gradients)
        return loss, total

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if torch.is_grad_enabled():
            _refuse_second_derivatives()
        gradients: Sequence[Any] = ctx.saved_tensors
        gradients = [None] * len(gradients) if d_loss is None else scaled(gradients, d_loss)
        return (None, None, *gradients)


class _GradientInPlace(torch.autograd.Function):
    """The backward pass writes the gradient over the logits."""

    @staticmethod
    def forward(ctx: Any, constants: tuple, arguments: dict[str, Any], *students: Tensor) -> tuple[Tensor, Tensor]:
        buffers = [stack.detach() for stack in students]
        loss, student_lse, teacher_lse, total = torch.ops.fastssl.soft_target_cross_entropy(
            buffers, *constants, **arguments
        )
        ctx.mark_non_differentiable(total)
        ctx.set_materialize_grads(False)
        ctx.constants = constants[1:]
        ctx.teachers = len(constants[0])
        ctx.rules = {name: value for name, value in arguments.items() if name != "column_sum"}
        ctx.save_for_backward(*constants[0], student_lse, teacher_lse, *students)  # students: their version is checked
        return loss, total

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if torch.is_grad_enabled():
            _refuse_second_derivatives()
        teachers, rest = ctx.saved_tensors[: ctx.teachers], ctx.saved_tensors[ctx.teachers :]
        student_lse, teacher_lse, *students = rest
        if d_loss is None:
            return (None,) * (2 + len(students))
        inputs = ([x.detach() for x in students], list(teachers), *ctx.constants, student_lse, teacher_lse)
        overwrite = is_last_backward()
        gradients = registry.direct("soft_target_cross_entropy_grad")(
            *inputs, d_loss.contiguous(), **ctx.rules, inplace=overwrite
        )
        if overwrite:
            torch.autograd.graph.increment_version(students)
        return (None, None, *gradients)


def _refuse_second_derivatives() -> None:
    raise RuntimeError("soft_target_cross_entropy: second derivatives of the fused losses are not implemented")
