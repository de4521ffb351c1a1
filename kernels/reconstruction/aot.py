"""The variants of the patch loss that are compiled ahead of time: dtypes, orders, errors, and patches of two blocks."""

from __future__ import annotations

from typing import Any

from ..aot import Variant
from .config import block_of


def variants(major: int) -> list[Variant]:
    out = []
    for dtype, pixels, patch, channels, error, first, loss, gradient in (
        ("fp32", "fp32", 16, 3, 0, False, True, True),
        ("bf16", "bf16", 16, 3, 0, False, True, False),
        ("bf16", "bf16", 16, 3, 0, False, False, True),
        ("fp16", "u8", 14, 3, 0, False, True, True),
        ("bf16", "fp32", 32, 3, 1, True, True, True),
        ("fp32", "u8", 8, 4, 2, False, True, True),
        ("fp32", "fp32", 32, 1, 2, False, True, True),
    ):
        block, warps = block_of(patch * patch * channels)
        constants: dict[str, Any] = {
            "P": patch, "C": channels, "BLOCK": block, "NORMALIZE": error == 0, "ERROR": error,
            "CHANNELS_FIRST": first, "LOSS": loss, "GRADIENT": gradient, "ROUND": 0,
        }  # fmt: skip
        signature = {
            "p_prediction": f"*{dtype}", "p_image": f"*{pixels}", "p_weight": "*fp32",
            "L": "i32", "TOKENS": "i32", "COLUMNS": "i32",
            **dict.fromkeys(
                ("prediction_stride", "patch_stride", "image_stride", "channel_stride", "row_stride", "pixel_stride"),
                "i64",
            ),
            **{f"{name}{c}": "fp32" for name in ("scale", "shift") for c in range(4)},
            "beta": "fp32",
        }  # fmt: skip
        if loss:
            signature["p_loss"] = "*fp32"
        if gradient:
            signature |= {"p_factor": "*fp32", "p_gradient": f"*{dtype}"}
        out.append(
            Variant(
                name=f"patch loss {dtype} of {pixels}, {patch}^2 x {channels}, error {error}"
                f"{' loss' if loss else ''}{' gradient' if gradient else ''}",
                kernel="reconstruction.patch:patch_kernel",
                signature=signature,
                constants=constants,
                warps=warps,
                stages=1,
                divisible=("prediction_stride", "patch_stride", "image_stride", "channel_stride", "row_stride"),
                tensor_cores=False,
            )
        )
    return out
