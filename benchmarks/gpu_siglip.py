"""SigLIP on a GPU: what ``gpu.py`` verifies and times."""

from __future__ import annotations

from functools import partial

from . import siglip
from .cases import Case
from .gpu_family import GpuFamily, Target
from .gpu_whole_loss import baselines
from .gpu_whole_loss import verifications as of_family

SMALL, LARGE = {"N": 35, "scale": 10.0}, {"N": 1111, "scale": 10.0}
verifications = partial(of_family, siglip.FAMILY, SMALL, LARGE)


def cases(target: Target) -> list[Case]:
    if target.small:
        return [Case.named({"N": 64, "D": 16, "scale": 10.0}, "float32", target.device)]
    wanted = [(4096, "bfloat16"), (16384, "bfloat16"), (4096, "tf32"), (32768, "bfloat16")]
    return [Case.named({"N": n, "D": 512, "scale": 10.0}, dtype, target.device) for n, dtype in wanted]


GPU = GpuFamily(siglip.FAMILY, verifications, cases, baselines)
