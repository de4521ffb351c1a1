"""The variants of the scaling kernel that are compiled ahead of time: one per dtype."""

from __future__ import annotations

from ..aot import Variant


def variants(major: int) -> list[Variant]:
    from .scale import BLOCK, WARPS

    return [
        Variant(
            name=f"scaling {dtype}",
            kernel="scaling.scale:scale_kernel",
            signature={"p_x": f"*{dtype}", "p_factor": "*fp32", "numbers": "i64"},
            constants={"BLOCK": BLOCK, "ROUND": 0},
            warps=WARPS,
            stages=1,
            tensor_cores=False,
        )
        for dtype in ("fp32", "bf16", "fp16")
    ]
