"""Whole training steps of MAE on a GPU: what ``gpu.py`` times. Their kernels are verified by the families that they
belong to. It has not yet run on a GPU."""

from __future__ import annotations

from . import mae
from .cases import Case
from .gpu_family import GpuFamily, Target, Verification


def verifications(target: Target) -> list[Verification]:
    return []


def cases(target: Target) -> list[Case]:
    name = "mae" if target.small else "mae-vit-base"
    wanted = mae.tiny_sizes(mae.sizes(name)) if target.small else mae.sizes(name)
    return [Case.named(wanted, "float32" if target.small else "bfloat16", target.device)]


def baselines(case: Case) -> list[str]:
    return ["eager"] if case.device == "cpu" else ["fastssl-compiled", "eager", "compiled", "lightly"]


GPU = GpuFamily(mae.FAMILY, verifications, cases, baselines)
