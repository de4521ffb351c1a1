"""The variants of the nearest-neighbour kernels that are compiled ahead of time: every tile, one slot and many."""

from __future__ import annotations

from ..aot import Variant
from .config import TILES


def variants(major: int) -> list[Variant]:
    out = []
    for (kernel, kind, _), tile in TILES.shipped(major).items():
        dtype = "bf16" if kind == "16bit" else "fp32"
        for slots in (1, 16):
            out.append(
                Variant(
                    name=f"{kernel} {kind} slots={slots}",
                    kernel="neighbors.topk:nearest_kernel",
                    signature={
                        **dict.fromkeys(("p_q", "p_k"), f"*{dtype}"),
                        **dict.fromkeys(("p_rank", "p_column"), "*i32"),
                        **dict.fromkeys(("M", "N", "D", "row_offset", "tiles_per_split"), "i32"),
                        **dict.fromkeys(("q_stride", "k_stride"), "i64"),
                    },
                    constants={
                        "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_D": tile.block_d, "SLOTS": slots,
                        "STAGES": tile.stages, "EXCLUDE_SELF": True, "UPCAST": False,
                        "PRECISION": "ieee" if kind == "16bit" else kind,
                    },
                    warps=tile.warps,
                    stages=tile.stages,
                    divisible=("D", "q_stride", "k_stride"),
                )
            )  # fmt: skip
    signature = {
        "p_rank": "*i32",
        "p_column": "*i32",
        "p_out": "*i64",
        **dict.fromkeys(("M", "splits", "count"), "i32"),
    }
    constants = {"BLOCK_M": 8, "CANDIDATES": 256, "SLOTS": 16}
    return [*out, Variant("select", "neighbors.topk:select_kernel", signature, constants, 4, 3, tensor_cores=False)]
