"""MoCo's loss on a GPU: what ``gpu.py`` verifies and times."""

from __future__ import annotations

from functools import partial

from . import info_nce
from .cases import Case
from .gpu_family import GpuFamily, Target
from .gpu_whole_loss import baselines
from .gpu_whole_loss import verifications as of_family

SMALL, LARGE = {"N": 35, "K": 90, "temperature": 0.2}, {"N": 300, "K": 3333, "temperature": 0.2}
verifications = partial(of_family, info_nce.FAMILY, SMALL, LARGE)


def cases(target: Target) -> list[Case]:
    if target.small:
        return [Case.named({"N": 16, "K": 64, "D": 16, "temperature": 0.2}, "float32", target.device)]
    wanted = [(256, "bfloat16"), (4096, "bfloat16"), (256, "tf32")]
    return [Case.named({"N": n, "K": 65536, "D": 128, "temperature": 0.2}, dtype, target.device) for n, dtype in wanted]


GPU = GpuFamily(info_nce.FAMILY, verifications, cases, baselines)
