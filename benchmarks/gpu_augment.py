"""The kernels that draw and make views, on a GPU: what ``gpu.py`` verifies and times."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from fastssl.ops import registry
from fastssl.ops.augment import reference
from fastssl.ops.augment.record import Kind

from . import augment
from .augment_gate import ALLOWED, moved_threshold, program_of
from .augment_recipes import MEAN, RATIO, STD, photographs
from .cases import DTYPES, Case, Function
from .gpu_family import GpuFamily, Target, Verification
from .jobs import Job, Results
from .timing import Task, interleave

PACKAGE = "fastssl.ops.augment"
Row = tuple[float, ...]  # of a program: kind, probability, parameters

SIMCLR: tuple[Row, ...] = (
    (Kind.RESIZED_CROP, 1.0, 0.08, 1.0, *RATIO),
    (Kind.HORIZONTAL_FLIP, 0.5),
    (Kind.JITTER, 0.8, 0.2, 1.8, 0.2, 1.8, 0.2, 1.8, -0.2, 0.2),
    (Kind.GRAYSCALE, 0.2),
    (Kind.BLUR, 0.5, 0.1, 2.0, 23),
)
EVERYTHING: tuple[Row, ...] = (
    (Kind.RESIZED_CROP, 1.0, 0.02, 1.0, 0.5, 2.0),
    (Kind.HORIZONTAL_FLIP, 0.5),
    (Kind.VERTICAL_FLIP, 0.5),
    (Kind.QUARTER_TURN, 0.5),
    (Kind.SOLARIZE, 0.2, 0.5),
    (Kind.JITTER, 0.8, 0.2, 1.8, 0.2, 1.8, 0.2, 1.8, -0.5, 0.5),
    (Kind.GRAYSCALE, 0.2),
    (Kind.ROTATE, 0.5, -30.0, 30.0, 1.0, 0.3),
    (Kind.BLUR, 0.5, 0.1, 2.0, 9),
    (Kind.CUTOUT, 0.5, 0.02, 0.3, 0.3, 3.3, -1.0),
    (Kind.NOISE, 0.3, 0.01, 0.1, 1.0),
    (Kind.SOBEL, 0.2),
)
GEOMETRY: tuple[Row, ...] = ((Kind.CENTER, 1.0, 0.875), (Kind.VERTICAL_FLIP, 0.5), (Kind.BLUR, 0.5, 0.1, 2.0, 5))


@dataclass
class Drawn:
    """Records of a program, judged against the definition."""

    index: Tensor
    sizes: Tensor | None
    rows: Sequence[Row]
    backend: ModuleType

    def solve(self) -> Sequence[Tensor]:
        return (self.by(self.backend),)

    def judge(self, results: Sequence[Tensor]) -> Mapping[str, float]:
        truth = self.by(reference)
        allowed = torch.finfo(torch.float32).eps * truth.abs() + torch.finfo(torch.float32).tiny
        return {"records": float(((results[0] - truth).abs() / allowed).max())}

    def by(self, backend: ModuleType) -> Tensor:
        size = {"height": 200, "width": 300, "out_height": 96, "out_width": 96}
        key = {"seed": 1 << 40 | 3, "epoch": 5, "view": 7}
        return backend.view_parameters(self.index, self.sizes, **size, **key, program=program_of(self.rows))


@dataclass
class Views:
    """Views of photographs, judged against float64."""

    images: Sequence[Tensor]
    records: Tensor
    size: tuple[int, int]
    bicubic: bool
    dtype: torch.dtype
    backend: ModuleType

    def solve(self) -> Sequence[Tensor]:
        return self.by(self.backend, self.records, self.dtype)

    def judge(self, results: Sequence[Tensor]) -> Mapping[str, float]:
        truth = self.by(reference, self.records, torch.float64)[0]
        grey_level = ALLOWED["cuda"]
        allowed = grey_level / torch.tensor(self.normalization[1], dtype=torch.float64, device=truth.device)
        bound = allowed[:, None, None] + torch.finfo(self.dtype).eps * truth.abs()
        for by in (-grey_level, grey_level):  # a pixel next to the threshold of solarising may fall on either side
            moved = moved_threshold(self.records, by)
            bound = bound + (self.by(reference, moved, torch.float64)[0] - truth).abs()
        return {"views": float(((results[0].double() - truth).abs() / bound).max())}

    @property
    def normalization(self) -> tuple[Sequence[float], Sequence[float]]:
        channels = self.images[0].shape[-3]
        return (MEAN, STD) if channels == 3 else ((0.5,) * channels, (0.25,) * channels)

    def by(self, backend: ModuleType, records: Tensor, dtype: torch.dtype) -> list[Tensor]:
        mean, std = self.normalization
        return backend.augment_views(
            self.images, [records], heights=[self.size[0]], widths=[self.size[1]], bicubic=[self.bicubic], passes=[-1],
            mean=mean, std=std, dtype=dtype,
        )  # fmt: skip


def _drawn(rows: Sequence[Row], ragged: bool, target: Target, seed: int) -> Drawn:
    generator = torch.Generator().manual_seed(seed)
    count = 9 if target.small else 5000
    index = torch.randint(0, 2**40, (count,), generator=generator).to(target.device)
    sizes = torch.randint(1, 4000, (count, 2), generator=generator).to(target.device) if ragged else None
    return Drawn(index, sizes, rows, registry.backend_module(PACKAGE, target.backend))


LAYOUTS = ("HWC", "CHW", "list")


def _views(
    rows: Sequence[Row], layout: str, channels: int, size: tuple[int, int], bicubic: bool, target: Target, dtype: str,
    seed: int,
) -> Views:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    count, height, width = (4, 50, 61) if target.small else (48, 300, 411)
    pictures = photographs(count, height, width, generator, "cpu").to(target.device)
    pictures = pictures.repeat(1, 1, 1, -(-channels // 3))[..., :channels]
    images = pictures.movedim(-1, 1)
    if layout == "CHW":
        images = images.contiguous()
    each: list[Tensor] = [images]
    sizes = torch.tensor([[height, width]]).expand(count, 2)
    if layout == "list":  # from the whole image to a single pixel
        each = [image[:, : max(1, height - 7 * n), : max(1, width - 9 * n)] for n, image in enumerate(images)]
        sizes = torch.tensor([list(image.shape[-2:]) for image in each])
    records = reference.view_parameters(
        torch.arange(count), sizes, height=1, width=1, out_height=size[0], out_width=size[1], seed=seed, epoch=0,
        view=0, program=program_of(rows),
    )  # fmt: skip
    backend = registry.backend_module(PACKAGE, target.backend)
    return Views(each, records.to(target.device), size, bicubic, DTYPES[dtype][0], backend)


def verifications(target: Target) -> list[Verification]:
    found = []
    for one in GPU.targets(target):
        found += [
            Verification(f"{one.backend}: records of {name}, {words}", "float32", partial(_drawn, rows, ragged, one))
            for name, rows in (("SimCLR", SIMCLR), ("everything", EVERYTHING), ("geometry", GEOMETRY))
            for ragged, words in ((False, "one size"), (True, "sizes of their own"))
        ]
        small, large, flat = ((32, 32), (64, 64), (24, 40)) if one.small else ((96, 96), (224, 224), (120, 200))
        for dtype in ("float32", "bfloat16", "float16"):
            for title, rows, layout, channels, size, bicubic in (
                ("SimCLR", SIMCLR, "HWC", 3, large, False),
                ("SimCLR", SIMCLR, "CHW", 3, large, False),
                ("SimCLR", SIMCLR, "list", 3, small, False),
                ("everything", EVERYTHING, "HWC", 3, small, True),
                ("everything", EVERYTHING, "list", 3, small, False),
                ("everything", EVERYTHING, "CHW", 1, small, False),
                ("geometry", GEOMETRY, "HWC", 5, flat, True),
            ):
                resized = "bicubic" if bicubic else "bilinear"
                found.append(
                    Verification(
                        f"{one.backend}: {title}, {layout}, {channels} channels, {resized}",
                        dtype,
                        partial(_views, rows, layout, channels, size, bicubic, one, dtype),
                    )
                )
    return found


def cases(target: Target) -> list[Case]:
    if target.small:
        return [Case.named({**augment.tiny_sizes(augment.sizes("simclr-224")), "B": 4}, "float32", target.device)]
    wanted = [
        ("simclr-224", 1024, "float32"),
        ("simclr-224", 1024, "bfloat16"),
        ("dino", 256, "bfloat16"),
        ("simclr-32", 4096, "float32"),
    ]
    return [Case.named(augment.sizes(name, batch), dtype, target.device) for name, batch, dtype in wanted]


def baselines(case: Case) -> list[str]:
    return ["eager", "kornia", "torchvision-v2", *(["compiled"] if case.device == "cuda" else ["batched"])]


# --- Beside a training step -----------------------------------------------------------------------------------------


def share_of_a_step(target: Target) -> Results:
    """Time of views of a batch over that of a ResNet-50's step on as many images, in turns.

    The step is what a network pays for one view: forward, backward and SGD, in bfloat16 and channels-last.
    """
    import timm

    case = replace(cases(target)[0], dtype=torch.bfloat16)
    batch, size = int(case.sizes["B"]), int(case.sizes["size"])
    name = "resnet18" if target.small else "resnet50"
    network = timm.create_model(name, num_classes=128).to(case.device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    x = torch.randn(batch, 3, size, size, device=case.device, dtype=case.dtype)
    x = x.contiguous(memory_format=torch.channels_last)

    def step(_: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(case.device, torch.bfloat16):
            loss = network(x).square().mean()
        loss.backward()
        optimizer.step()

    providers = [one.provider for one in GPU.targets(target)]
    inputs = augment.inputs(case, 0)
    functions = {provider: augment.PROVIDERS[provider].function(case) for provider in providers}
    tasks = {"step": Task(step)}
    for provider, function in functions.items():
        tasks[provider] = Task(partial(_call, function, inputs))
    for task in tasks.values():
        task.run(0)
    timings = interleave(tasks, device=case.device, rounds=3, budget=0.25)
    of_a_step = timings.pop("step").median
    lines = [
        f"{name}'s step on {batch} images takes {of_a_step * 1e3:.3g} ms; {provider}'s views of them "
        f"{timing.median * 1e3:.3g} ms, {timing.median / of_a_step:.2%} of it"
        for provider, timing in timings.items()
    ]
    seconds = {provider: timing.median for provider, timing in timings.items()}
    return {"lines": lines, "step_s": of_a_step, "views_s": seconds, "network": name, "batch": batch}


def _call(function: Function, inputs: Sequence[Tensor], call: int) -> None:
    function(*inputs)


def others(target: Target) -> list[Job]:
    return [Job("augment beside a training step", share_of_a_step, (target,), required=False)]


def backends() -> list[str]:
    """With kernels: the compiled ones take part where they were built."""
    built = importlib.util.find_spec("fastssl._CUDA") is not None
    return ["cuda", "triton"] if built else ["triton"]


GPU = GpuFamily(augment.FAMILY, verifications, cases, baselines, backends=backends, others=others)
