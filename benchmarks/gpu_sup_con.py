"""SupCon on a GPU: what ``gpu.py`` verifies and times."""

from __future__ import annotations

from functools import partial

from . import sup_con
from .cases import Case
from .gpu_family import GpuFamily, Target
from .gpu_whole_loss import baselines
from .gpu_whole_loss import verifications as of_family

SMALL, LARGE = {"N": 35, "classes": 5, "temperature": 0.1}, {"N": 1111, "classes": 100, "temperature": 0.1}
verifications = partial(of_family, sup_con.FAMILY, SMALL, LARGE)


def cases(target: Target) -> list[Case]:
    if target.small:
        return [Case.named({"N": 32, "D": 16, "classes": 5, "temperature": 0.1}, "float32", target.device)]
    wanted = [(2048, "bfloat16"), (8192, "bfloat16"), (2048, "tf32")]
    return [
        Case.named({"N": n, "D": 128, "classes": 1000, "temperature": 0.1}, dtype, target.device) for n, dtype in wanted
    ]


GPU = GpuFamily(sup_con.FAMILY, verifications, cases, baselines)
