"""DINO's loss against what people use: the published formula, eager, compiled and chunked PyTorch, lightly.

Every provider computes, from student logits [S, B, K], teacher logits [T, B, K] and the centre [K], the cross-entropy
of all pairs of different views and the next centre, which the published losses update in the same call. View t of the
teacher and view t of the student show the same crop. Baselines are written as their users write them, and in the
strongest forms that we know (``soft_target_baselines``).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

import fastssl

from .cases import Case, Expected, Family, Function, Provider, Work
from .providers import FORCED, autocast, check_above_zero, compiled, of_fastssl
from .soft_target_baselines import (
    CENTER_MOMENTUM,
    STUDENT_TEMPERATURE,
    TEACHER_TEMPERATURE,
    Views,
    block_images,
    chunked,
    collapsed,
    eager,
    lean,
    next_center,
    pairs,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--k", type=int, nargs="+", default=[8192, 65536], metavar="K", help="prototypes")
    parser.add_argument("--batch", type=int, nargs="+", default=[64], metavar="B", help="images")
    parser.add_argument("--views", type=int, default=10, metavar="S", help="student views")
    parser.add_argument("--teachers", type=int, default=2, metavar="T", help="teacher views, seen by students too")


def cases(arguments: argparse.Namespace, device: str) -> list[Case]:
    s, t = arguments.views, arguments.teachers
    check_above_zero({"--k": arguments.k, "--batch": arguments.batch, "--views": [s], "--teachers": [t]})
    if pairs(s, t) == 0:
        raise ValueError(f"--views and --teachers must leave a pair of different views, got {s} and {t}")
    return [
        Case.named({"K": k, "B": b, "S": s, "T": t}, dtype, device)
        for dtype in arguments.dtype
        for b in arguments.batch
        for k in arguments.k
    ]


def tiny_sizes(sizes: Mapping[str, float]) -> dict[str, float]:
    return {**sizes, "K": min(sizes["K"], 64), "B": min(sizes["B"], 2)}


def inputs(case: Case, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a network that has learned something: views of an image agree in part.

    They are of the size of cosines with prototypes (standard deviation 0.1), so that a teacher's probability lies on
    about K / 500 prototypes and a student's on a third of them.
    """
    k, b, s, t = (int(case.sizes[name]) for name in ("K", "B", "S", "T"))
    generator = torch.Generator(case.device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=case.device)

    image = normal(b, k).mul_(0.08)
    student, teacher = (normal(views, b, k).mul_(0.06).add_(image).to(case.dtype) for views in (s, t))
    return student.requires_grad_(), teacher, normal(k).mul_(0.02)


TRUTH_BLOCK = {"cpu": 1 << 21, "cuda": 1 << 27}  # logits in a block of images of the float64 truth: 16 MB, 1 GB
EVERY_ELEMENT = 1 << 23  # the largest gradient of which all rows are compared
SAMPLED_ROWS = 64  # of a larger one, with the first and the last image of every view among them


def truth(case: Case, inputs: tuple[Tensor, ...], seed: int) -> list[Expected]:
    """Loss, next centre and gradient in float64, a block of images at a time, with the sums of absolute terms.

    Loss and centre are of all images. The gradient is of all rows where it has up to ``EVERY_ELEMENT`` numbers, beyond
    that of those that ``compared_rows`` chooses. A probability inherits the error of its exponential's argument, which
    is summed in float32 at least: relative to it, float32's eps times the sizes of what is added up in there.
    """
    student, teacher, center = (tensor.detach() for tensor in inputs)
    (s, b, k), t = student.shape, len(teacher)
    a, c = 1 / STUDENT_TEMPERATURE, 1 / TEACHER_TEMPERATURE
    inherited = torch.finfo(torch.float32).eps / case.eps
    scale = 1 / (pairs(s, t) * b)
    rows = compared_rows(s, b, k, seed)
    wanted = None if rows is None else set(zip(*(index.tolist() for index in rows), strict=True))
    loss, loss_terms = center.new_zeros((), dtype=torch.float64), center.new_zeros((), dtype=torch.float64)
    gradients: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # of single rows, or of a view's block of images
    block = max(1, TRUTH_BLOCK[case.device] // (t * k))
    for start in range(0, b, block):
        images = slice(start, start + block)
        y, v = c * teacher[:, images].double(), c * center.double()
        lse = (y - v).logsumexp(-1, keepdim=True)
        target = (y - v - lse).exp_()
        # From here on sums of absolute terms, which are a bound, are float32.
        target_terms = target.float() * (1 + inherited * (y.abs() + v.abs() + lse.abs()).float())
        total, total_terms = target.sum(0), target_terms.sum(0)
        for u in range(s):
            paired, paired_terms, count = total, total_terms, t
            if u < t:
                paired, paired_terms, count = total - target[u], total_terms - target_terms[u], t - 1
            x = a * student[u, images].double()
            lse = x.logsumexp(-1, keepdim=True)
            loss += count * lse.sum() - (paired * x).sum()
            loss_terms += count * lse.abs().sum() + (paired_terms * x.abs()).sum()
            chosen = [i for i in range(start, min(start + block, b)) if wanted is None or (u, i) in wanted]
            if not chosen:
                continue
            here = torch.tensor(chosen, device=student.device) - start
            x, lse = x[here], lse[here]
            weight = count * (x - lse).exp_()
            value = a * scale * (weight - paired[here])
            inexact = 1 + inherited * (x.abs() + lse.abs()).float()
            gradients[u, start] = value, a * scale * (weight.float() * inexact + paired_terms[here])
    # In the order of the rows: by view, then by image.
    values, terms = (torch.cat([pair[part] for _, pair in sorted(gradients.items())]) for part in (0, 1))
    if rows is None:
        values, terms = values.view(s, b, k), terms.view(s, b, k)
    elif case.device == "cuda":
        rows = rows[0].to(student.device), rows[1].to(student.device)
    mean, mean_terms = teacher.double().mean((0, 1)), teacher.float().abs().mean((0, 1))
    moved = next_center(center.double(), mean)
    moved_terms = CENTER_MOMENTUM * center.abs() + (1 - CENTER_MOMENTUM) * mean_terms
    return [
        Expected("loss", loss * scale, loss_terms * scale, loss.shape),
        Expected("next centre", moved, moved_terms, moved.shape),
        Expected("gradient of the student's logits", values, terms, student.shape, rows, is_gradient=True),
    ]


def compared_rows(s: int, b: int, k: int, seed: int) -> tuple[Tensor, Tensor] | None:
    """Which rows [K] of the gradient are compared with the truth, as (views, images), ascending; None: all of them.

    Beyond ``EVERY_ELEMENT`` numbers: of every view the first and the last image, and one random row out of each of
    ``SAMPLED_ROWS`` equal ranges of all rows.
    """
    if s * b * k <= EVERY_ELEMENT:
        return None
    generator = torch.Generator().manual_seed(seed)
    borders = torch.linspace(0, s * b, min(SAMPLED_ROWS, s * b) + 1, dtype=torch.float64).long()
    drawn = borders[:-1] + (torch.rand(len(borders) - 1, generator=generator) * borders.diff()).long()
    first = torch.arange(s) * b
    rows = torch.cat([drawn, first, first + b - 1]).unique()
    return rows // b, rows % b


def work(case: Case, which: str) -> Work:
    """Rows of logits that go through memory: each read once, on CUDA once in each direction, and the gradient written.

    Arithmetic binds nowhere near: an exponential or two per number.
    """
    read, written = case.sizes["T"] + case.sizes["S"], case.sizes["S"]
    backward = written if case.device == "cpu" else read + written
    rows = {"forward": read, "backward": backward, "both": read + backward}[which]
    return Work(0, rows * case.sizes["B"] * case.sizes["K"] * case.dtype.itemsize)


# --- Providers ------------------------------------------------------------------------------------------------------


def _plain(function: Function) -> Callable[[Case], Function]:
    return lambda case: function


def _fastssl(student: Tensor, teacher: Tensor, center: Tensor, *, inplace: bool = False) -> tuple[Tensor, Tensor]:
    loss, total = fastssl.functional.soft_target_cross_entropy(
        student,
        teacher,
        student_temperature=STUDENT_TEMPERATURE,
        teacher_temperature=TEACHER_TEMPERATURE,
        column_potential=center / TEACHER_TEMPERATURE,
        inplace=inplace,
        return_column_sum=True,
    )
    return loss, next_center(center, total / (teacher.shape[0] * teacher.shape[1]))


def _lightly(case: Case) -> Function:
    from lightly.loss import DINOLoss

    module = DINOLoss(
        output_dim=int(case.sizes["K"]),
        teacher_temp=TEACHER_TEMPERATURE,
        student_temp=STUDENT_TEMPERATURE,
        center_momentum=CENTER_MOMENTUM,
    )

    def function(student: Tensor, teacher: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
        module.center = center.view(1, 1, -1)  # it updates its own, which must not drift from call to call
        loss = module(list(teacher), list(Views.apply(student)))
        return loss, module.center.view(-1)

    return function


def _block_note(case: Case) -> str:
    images = block_images(int(case.sizes["S"] + case.sizes["T"]), int(case.sizes["K"]), case.device)
    return f"{min(images, int(case.sizes['B']))} images a block"


def _views(per_student: float, per_pair: float = 0.0) -> Callable[[Case], float]:
    """Bytes of so many float32 [B, K] for each student view and each pair, and of some for the teachers."""

    def needed(case: Case) -> float:
        s, t = int(case.sizes["S"]), int(case.sizes["T"])
        count = per_student * s + per_pair * pairs(s, t) + 2 * t
        return count * 4 * case.sizes["B"] * case.sizes["K"]

    return needed


_OPERATION = "soft_target_cross_entropy"

PROVIDERS = {
    **of_fastssl(_plain(_fastssl), _OPERATION, bytes_needed=_views(1)),
    "fastssl-inplace": Provider(_plain(partial(_fastssl, inplace=True)), overwrites_inputs=True),
    # In 16 bits it is published, and trained, under autocast.
    "eager": Provider(autocast(_plain(eager)), bytes_needed=_views(3, 2)),
    "eager-lean": Provider(_plain(lean), bytes_needed=_views(4)),
    "eager-collapsed": Provider(_plain(collapsed), bytes_needed=_views(4)),
    "compiled": Provider(compiled(autocast(_plain(eager))), compiles=True, bytes_needed=_views(2)),
    "compiled-lean": Provider(compiled(_plain(lean)), compiles=True, bytes_needed=_views(2)),
    "compiled-collapsed": Provider(compiled(_plain(collapsed)), compiles=True, bytes_needed=_views(2)),
    "compiled-step": Provider(
        _plain(partial(chunked, compiled=True, whole=True)), compiles=True, bytes_needed=_views(1)
    ),
    "chunked": Provider(_plain(chunked), note=_block_note, bytes_needed=_views(1)),
    "chunked-compiled": Provider(
        _plain(partial(chunked, compiled=True)), note=_block_note, compiles=True, bytes_needed=_views(1)
    ),
    # Each of its T S sums has B K terms, added up one after the other: in float32 its loss is off by 0.2 % at B = 64,
    # K = 65536. Its gradient is not.
    "lightly": Provider(autocast(_lightly), bytes_needed=_views(5), slack=1000.0),
}

FAMILY = Family(
    name="soft_target",
    module=__name__,
    subject="fastssl",
    baseline="eager",
    add_arguments=add_arguments,
    cases=cases,
    inputs=inputs,
    truth=truth,
    tiny_sizes=tiny_sizes,
    work=work,
    work_model="which is memory's bandwidth: B (S + T) rows of K logits read and, with a gradient, B S rows written, "
    "at the rate of the best copy (on CUDA rows are read once in each direction). fastssl-inplace is held against the "
    "rate of an operation in place",
    providers=PROVIDERS,
    optional=FORCED | {"fastssl-inplace", "eager-lean", "compiled-lean"},
)
