"""How a loss is compared with the published one that it replaces."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from harness import assert_as_accurate_as_eager
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def logits(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, std: float = 1.0) -> Tensor:
    """Normal numbers of one seed, the same for every dtype up to rounding."""
    return (std * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def value_and_gradients(loss: Callable[..., Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The loss as [1], and the gradient of each input (zeros where it has none)."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    value = loss(*inputs)
    gradients = torch.autograd.grad(value.sum(), inputs, allow_unused=True)
    pairs = zip(inputs, gradients, strict=True)
    return value.detach().reshape(1), [torch.zeros_like(x) if g is None else g for x, g in pairs]


def assert_equals_published(
    ours: Callable[..., Tensor],
    published: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    *,
    value_terms: float | Tensor,
    gradient_terms: Sequence[float | Tensor],
) -> None:
    """Loss and gradients of ``ours`` are as close to float64 as the published ones are on the same numbers.

    The yardstick computes with 32 bits also where the inputs have 16, as under autocast; only its gradient is rounded.

    Args:
        ours: loss of the inputs.
        published: the loss that it replaces, of the inputs as float32 or float64.
        inputs: of one dtype.
        value_terms: bound of the sum of the absolute values of the terms that make up the loss.
        gradient_terms: the same for the elements of each gradient.
    """
    dtype = inputs[0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    value, gradients = value_and_gradients(ours, inputs)
    eager_value, eager_gradients = value_and_gradients(published, [x.to(wide) for x in inputs])
    true_value, true_gradients = value_and_gradients(published, [x.double() for x in inputs])
    assert value.dtype == wide
    bound = torch.zeros_like(true_value) + value_terms
    assert_as_accurate_as_eager(value, eager_value.to(wide), true_value, bound, "loss")
    compared = zip(gradients, eager_gradients, true_gradients, gradient_terms, strict=True)
    for index, (mine, theirs, truth, terms) in enumerate(compared):
        # float16 rounds what is below its smallest normal number to steps that no relative bound knows.
        bound = terms + torch.full_like(truth, torch.finfo(dtype).tiny)
        assert_as_accurate_as_eager(mine, theirs.to(dtype), truth, bound, f"gradient of input {index}")


def soft_target_terms(
    student: Tensor,
    teacher: Tensor,
    *,
    student_temperature: float,
    skip_same_view: bool = True,
    weight: float | Tensor = 1.0,
) -> tuple[Tensor, list[Tensor]]:
    """What :func:`assert_equals_published` takes as the terms of a soft-target cross-entropy.

    A term is as uncertain as the exponential in it, whose argument's rounding it multiplies: terms are counted as often
    as the largest argument of their row is large.

    Args:
        student: logits [S, B, K].
        teacher: the exponents from which the teacher's probabilities come, [T, B, K].
        student_temperature: of the student.
        skip_same_view: leave out the pairs of equal views.
        weight: of each image, [B].
    """
    student, teacher = student.double() / student_temperature, teacher.double()
    views, of_teacher = len(student), len(teacher)
    pairs = torch.ones(of_teacher, views, dtype=torch.float64, device=student.device)
    if skip_same_view:
        pairs.fill_diagonal_(0.0)
    weight = torch.as_tensor(weight, dtype=torch.float64, device=student.device)
    size_of_student, size_of_teacher = (1 + x.abs().amax(-1, keepdim=True) for x in (student, teacher))
    p = torch.einsum("ts,tbk->sbk", pairs, teacher.softmax(-1) * size_of_teacher)
    q = pairs.sum(0)[:, None, None] * student.softmax(-1) * size_of_student
    gradients = (p + q) * weight.reshape(-1, 1) / student_temperature
    values = (weight * (p * student.abs() + q).sum(-1)).expand(student.shape[:2]).sum()
    return values, list(gradients)
