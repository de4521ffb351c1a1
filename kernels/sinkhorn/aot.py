"""The variants of the Sinkhorn kernels that are compiled ahead of time: every shipped tile, aligned and not."""

from __future__ import annotations

from typing import Any

from ..aot import Variant
from .config import TILES


def variants(major: int) -> list[Variant]:
    out = []
    for (kernel, kind, _), tile in TILES.shipped(major).items():
        for dtype in ("bf16", "fp16") if kind == "16bit" else ("fp32",):
            plain = dtype != "fp16"
            constants: dict[str, Any] = {"BLOCK_R": tile.block_m, "BLOCK_K": tile.block_n, "HAS_POTENTIAL": plain}
            signature = {
                "p_x": f"*{dtype}", "p_max": "*fp32", "p_sum": "*fp32", "R": "i32", "K": "i32", "stride": "i64",
                "scale": "fp32", **({"p_potential": "*fp32"} if plain else {}),
            }  # fmt: skip
            if kernel == "rows":
                constants["WHOLE"] = plain
                name = "row_parts_kernel"
            else:
                signature["rows_per_part"] = "i32"
                name = "column_parts_kernel"
            out.append(
                Variant(
                    name=f"sinkhorn {kernel} {dtype}",
                    kernel=f"sinkhorn.logsum:{name}",
                    signature=signature,
                    constants=constants,
                    warps=tile.warps,
                    stages=tile.stages,
                    divisible=("K", "stride") if plain else (),
                    tensor_cores=False,
                )
            )
    signature = {**dict.fromkeys(("p_max", "p_sum", "p_out"), "*fp32"), "parts": "i32", "N": "i32"}
    combine = {"SLOTS": 16, "BLOCK": 128}
    return [
        *out,
        Variant("sinkhorn combine", "sinkhorn.logsum:combine_kernel", signature, combine, 4, 3, tensor_cores=False),
    ]
