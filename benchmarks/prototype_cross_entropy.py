"""The prototype layer with DINO's or iBOT's loss: fused, against the layer and the strongest losses apart.

Every provider computes, from student features [S, B, D], prototypes [K, D] and the teacher's features and prototypes,
the logits that are cosines with the prototypes (times the features' length, 1 here), the cross-entropy of all pairs of
different views, and the next centre. With one view on each side that is iBOT's loss, each token against the same
token of the teacher; B is the number of masked tokens then.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fastssl
from fastssl.ops.prototypes import composed

from . import soft_target_baselines as losses
from .cases import Case, Expected, Family, Function, Provider, Work
from .providers import FORCED, autocast, backend_note, check_above_zero, compiled, of_fastssl
from .soft_target_baselines import CENTER_MOMENTUM, STUDENT_TEMPERATURE, TEACHER_TEMPERATURE, next_center


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--k", type=int, nargs="+", default=[65536], metavar="K", help="prototypes")
    parser.add_argument("--dim", type=int, nargs="+", default=[256], metavar="D", help="features")
    parser.add_argument("--batch", type=int, nargs="+", default=[64], metavar="B", help="images, or masked tokens")
    parser.add_argument("--views", type=int, default=10, metavar="S", help="student views; 1 with --teachers 1: iBOT")
    parser.add_argument("--teachers", type=int, default=2, metavar="T", help="teacher views, seen by students too")


def cases(arguments: argparse.Namespace, device: str) -> list[Case]:
    s, t = arguments.views, arguments.teachers
    check_above_zero(
        {"--k": arguments.k, "--dim": arguments.dim, "--batch": arguments.batch, "--views": [s], "--teachers": [t]}
    )
    return [
        Case.named({"K": k, "D": d, "B": b, "S": s, "T": t}, dtype, device)
        for dtype in arguments.dtype
        for b in arguments.batch
        for d in arguments.dim
        for k in arguments.k
    ]


def tiny_sizes(sizes: Mapping[str, float]) -> dict[str, float]:
    return {**sizes, "K": min(sizes["K"], 64), "D": min(sizes["D"], 16), "B": min(sizes["B"], 2)}


def inputs(case: Case, seed: int) -> tuple[Tensor, ...]:
    """Features of length 1, in part the image's; prototypes in float32, as parameters are; a teacher that lags behind.

    Student features, prototypes, teacher features, the teacher's prototypes, centre.
    """
    k, d, b, s, t = (int(case.sizes[name]) for name in ("K", "D", "B", "S", "T"))
    generator = torch.Generator(case.device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=case.device)

    image = normal(b, d)
    student, teacher = (F.normalize(image + 0.75 * normal(v, b, d), dim=2).to(case.dtype) for v in (s, t))
    weight = normal(k, d)
    teacher_weight = weight + 0.1 * normal(k, d)
    return student.requires_grad_(), weight.requires_grad_(), teacher, teacher_weight, 0.02 * normal(k)


TRUTH_BLOCK = 1 << 22  # logits in a block of images of the float64 truth: 32 MB, a few times
COMPARED_PROTOTYPES = 4096  # of whose gradient is compared, beside the first and the last 64


def truth(case: Case, inputs: tuple[Tensor, ...], seed: int) -> list[Expected]:
    """Loss, next centre and both gradients in float64, a block of images at a time, with sums of absolute terms.

    A logit is rounded to the case's dtype, as are the two operands that it is made of; their errors are independent,
    so that together they are some ``1 / sqrt(D)`` of a rounding. An exponential inherits the error of its argument.
    """
    student, weight, teacher, teacher_weight, center = (x.detach().double() for x in inputs)
    (s, b, d), t, k = student.shape, len(teacher), len(weight)
    skip = _skips_same_view(case)
    a, c = 1 / STUDENT_TEMPERATURE, 1 / TEACHER_TEMPERATURE
    scale = 1 / (_pairs(case) * b)
    of_sum = torch.finfo(torch.float32).eps / case.eps  # a log-sum is float32 in every dtype
    length = weight.norm(dim=1, keepdim=True)
    unit, teacher_unit = weight / length, F.normalize(teacher_weight, dim=1)
    rows = compared_prototypes(k, seed).to(weight.device)
    loss, loss_terms = weight.new_zeros(()), weight.new_zeros(())
    d_student, student_terms = torch.empty_like(student), torch.empty_like(student)
    d_unit, unit_terms = (weight.new_zeros(len(rows), d) for _ in range(2))
    center_terms = weight.new_zeros(k)
    block = max(1, TRUTH_BLOCK // ((s + t) * k))
    for start in range(0, b, block):
        here = slice(start, start + block)
        y = teacher[:, here] @ teacher_unit.T
        center_terms += (y.abs() + d**-0.5).sum((0, 1))
        z = c * (y - center)
        target = z.softmax(2)
        target_terms = target * (1 + c * (y.abs() + d**-0.5) + of_sum * z.logsumexp(2, keepdim=True).abs())
        x = student[:, here] @ unit.T
        for u in range(s):
            others = [v for v in range(t) if not (skip and v == u)]
            paired, paired_terms = target[others].sum(0), target_terms[others].sum(0)
            logits, inexact = a * x[u], 1 + a * (x[u].abs() + d**-0.5)
            lse = logits.logsumexp(1, keepdim=True)
            probability = len(others) * (logits - lse).exp()
            loss += (len(others) * lse).sum() - (paired * logits).sum()
            loss_terms += (len(others) * lse.abs()).sum() + (probability * inexact).sum()
            loss_terms += (paired_terms * logits.abs() + paired * inexact).sum()
            gradient = a * scale * (probability - paired)  # of the logits
            terms = a * scale * (probability * (inexact + of_sum * lse.abs()) + paired_terms)
            d_student[u, here], student_terms[u, here] = gradient @ unit, terms @ unit.abs()
            d_unit += gradient[:, rows].T @ student[u, here]
            unit_terms += terms[:, rows].T @ student[u, here].abs()
    some = unit[rows]
    radial, radial_terms = ((x * y).sum(1, keepdim=True) for x, y in ((d_unit, some), (unit_terms, some.abs())))
    d_weight = (d_unit - radial * some) / length[rows]
    weight_terms = (unit_terms + radial_terms * some.abs()) / length[rows]
    moved = next_center(center, teacher_unit @ teacher.mean((0, 1)))
    moved_terms = CENTER_MOMENTUM * center.abs() + (1 - CENTER_MOMENTUM) * center_terms / (t * b)
    return [
        Expected("loss", loss * scale, loss_terms * scale, loss.shape),
        Expected("next centre", moved, moved_terms, moved.shape),
        Expected("gradient of the features", d_student, student_terms, student.shape, is_gradient=True),
        Expected("gradient of the prototypes", d_weight, weight_terms, weight.shape, rows, is_gradient=True),
    ]


def compared_prototypes(k: int, seed: int) -> Tensor:
    """Rows of the prototypes' gradient that are compared with the truth, ascending: all, or the ends and a sample."""
    if k <= COMPARED_PROTOTYPES:
        return torch.arange(k)
    sample = torch.randperm(k, generator=torch.Generator().manual_seed(seed))[:COMPARED_PROTOTYPES]
    return torch.cat((sample, torch.arange(64), torch.arange(k - 64, k))).unique()


def work(case: Case, which: str) -> Work:
    """A product makes logits, two more take the students' gradients on. Prototypes are read, their gradient written."""
    k, d, b, s, t = (case.sizes[name] for name in ("K", "D", "B", "S", "T"))
    rows = {"forward": s + t, "backward": 2 * s, "both": 3 * s + t}[which]
    moves = {"forward": 2, "backward": 2, "both": 3}[which]
    return Work(2 * rows * b * k * d, moves * k * d * 4)


# --- Providers ------------------------------------------------------------------------------------------------------


def _skips_same_view(case: Case) -> bool:
    return not case.sizes["S"] == case.sizes["T"] == 1


def _pairs(case: Case) -> int:
    return losses.pairs(int(case.sizes["S"]), int(case.sizes["T"])) if _skips_same_view(case) else 1


def _logits(features: Tensor, weight: Tensor) -> Tensor:
    return F.linear(features, F.normalize(weight, dim=1))


def _of_tokens(student: Tensor, teacher: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """iBOT's loss as it is published, for one view [1, B, K] on each side."""
    target = F.softmax((teacher - center) / TEACHER_TEMPERATURE, dim=-1)
    loss = torch.sum(-target * F.log_softmax(student / STUDENT_TEMPERATURE, dim=-1), dim=-1)
    return loss.mean(), next_center(center, teacher.mean((0, 1), dtype=torch.float32))


def _apart(loss: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[Case], Function]:
    """The layer, then a loss of logits."""

    def build(case: Case) -> Function:
        of_logits = loss if _skips_same_view(case) else _of_tokens

        def function(student: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor, center: Tensor) -> Any:
            with torch.no_grad():
                targets = _logits(teacher, teacher_weight)
            return of_logits(_logits(student, weight), targets, center)

        return function

    return build


def _checkpointed(case: Case) -> Function:
    """The layer and the collapsed loss, a block of images at a time; the backward pass computes the logits again."""
    b = int(case.sizes["B"])
    images, step = _images(case), _apart(losses.collapsed)(case)

    def function(student: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor, center: Tensor) -> Any:
        loss: Any = 0
        moved: Any = 0
        for start in range(0, b, images):
            here = slice(start, min(start + images, b))
            share = (here.stop - here.start) / b
            part = checkpoint(
                step, student[:, here], weight, teacher[:, here], teacher_weight, center, use_reentrant=False
            )
            loss, moved = loss + share * part[0], moved + share * part[1]
        return loss, moved

    return function


def _fused(case: Case) -> Function:
    def function(student: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor, center: Tensor) -> Any:
        loss, total = fastssl.functional.prototype_cross_entropy(
            student,
            weight,
            teacher_features=teacher,
            teacher_weight=teacher_weight,
            skip_same_view=_skips_same_view(case),
            student_temperature=STUDENT_TEMPERATURE,
            teacher_temperature=TEACHER_TEMPERATURE,
            column_potential=center / TEACHER_TEMPERATURE,
            return_column_sum=True,
        )
        return loss, next_center(center, total / (teacher.shape[0] * teacher.shape[1]))

    return function


def _fastssl_apart(case: Case) -> Function:
    """The layer, then fastssl's loss, whose gradient takes the logits' place."""

    def of_logits(student: Tensor, teacher: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
        loss, total = fastssl.functional.soft_target_cross_entropy(
            student,
            teacher,
            skip_same_view=_skips_same_view(case),
            student_temperature=STUDENT_TEMPERATURE,
            teacher_temperature=TEACHER_TEMPERATURE,
            column_potential=center / TEACHER_TEMPERATURE,
            inplace=True,
            return_column_sum=True,
        )
        return loss, next_center(center, total / (teacher.shape[0] * teacher.shape[1]))

    def function(student: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor, center: Tensor) -> Any:
        with torch.no_grad():
            targets = _logits(teacher, teacher_weight)
        return of_logits(_logits(student, weight), targets, center)

    return function


def _images(case: Case) -> int:
    """Images whose logits exist at a time in the fused form."""
    bytes_each = (case.sizes["S"] + case.sizes["T"]) * case.sizes["K"] * case.dtype.itemsize
    room = composed.CHUNK_BYTES.get(case.device, composed.CHUNK_BYTES_ELSEWHERE)
    return min(max(1, int(room // bytes_each)), int(case.sizes["B"]))


def _note(case: Case) -> str:
    return f"{backend_note(_OPERATION)(case)}, {_images(case)} images a chunk"


def _logit_tensors(count: float) -> Callable[[Case], float]:
    """Bytes of so many float32 tensors of the students' logits, and of three the size of the prototypes."""

    def needed(case: Case) -> float:
        return 4 * case.sizes["K"] * (count * case.sizes["S"] * case.sizes["B"] + 3 * case.sizes["D"])

    return needed


_OPERATION = "prototype_cross_entropy"

# In 16 bits everyone runs under autocast: features are 16 bits wide then, and parameters are not.
PROVIDERS = {
    **of_fastssl(autocast(_fused), _OPERATION, note=_note, bytes_needed=_logit_tensors(0)),
    "fastssl-apart": Provider(autocast(_fastssl_apart), bytes_needed=_logit_tensors(1)),
    "eager": Provider(autocast(_apart(losses.eager)), bytes_needed=_logit_tensors(5)),
    "eager-collapsed": Provider(autocast(_apart(losses.collapsed)), bytes_needed=_logit_tensors(4)),
    "compiled": Provider(compiled(autocast(_apart(losses.eager))), compiles=True, bytes_needed=_logit_tensors(2)),
    "compiled-collapsed": Provider(
        compiled(autocast(_apart(losses.collapsed))), compiles=True, bytes_needed=_logit_tensors(2)
    ),
    "checkpointed": Provider(
        autocast(_checkpointed),
        note=lambda case: f"{_images(case)} images a block",
        bytes_needed=_logit_tensors(0),
    ),
}

FAMILY = Family(
    name="prototype_cross_entropy",
    module=__name__,
    subject="fastssl",
    baseline="eager",
    add_arguments=add_arguments,
    cases=cases,
    inputs=inputs,
    truth=truth,
    tiny_sizes=tiny_sizes,
    work=work,
    work_model="forward 2 B (S + T) K D FLOPs, backward 4 B S K D (the fused form has its gradients in the forward "
    "pass already, and checkpointed computes the students' logits twice: compare forward + backward)",
    providers=PROVIDERS,
    optional=FORCED,
)
