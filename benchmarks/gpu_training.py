"""Whole training steps of SimCLR and DINO on a GPU: what ``gpu.py`` times. Their kernels are verified by the families
that they belong to. It has not yet run on a GPU.

Alone: ``fastssl bench training --case dino-vit-small simclr-resnet50 --dtype bfloat16 --providers fastssl compiled
lightly-workers torchvision-pil-workers``.
"""

from __future__ import annotations

from collections.abc import Mapping

from . import training
from .cases import Case
from .gpu_family import GpuFamily, Target, Verification


def verifications(target: Target) -> list[Verification]:
    return []


def cases(target: Target) -> list[Case]:
    if target.small:
        return [Case.named(training.tiny_sizes(training.sizes("dino")), "float32", target.device)]
    names = ("dino-vit-small", "simclr-resnet50")
    return [Case.named(training.sizes(name), "bfloat16", target.device) for name in names]


def compiled_sizes(sizes: Mapping[str, float]) -> dict[str, float]:
    """Few images: the kernels for logits depend on the number of prototypes."""
    return {**training.tiny_sizes(sizes), "K": sizes["K"]}


def baselines(case: Case) -> list[str]:
    """Also fastssl as it comes: its views have a backend that its losses lack."""
    if case.device == "cpu":
        return ["eager"]
    return ["fastssl", "lightly-workers", "compiled"]


GPU = GpuFamily(training.FAMILY, verifications, cases, baselines, compiled_sizes)
