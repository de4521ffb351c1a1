"""The variants of the augmentation kernels that are compiled ahead of time.

For every architecture the kernels of color images in a stack, bilinear, as presets use them; for Hopper also lists,
bicubic, images of one, two and four channels, views of odd widths and every dtype.
"""

from __future__ import annotations

from typing import Any

from ..aot import Variant
from ..tiles import Tile
from .config import PARTS, TILES

_SCALARS = {"first_image": "i32", "steps": "i32", "passes": "i32", "height": "i32", "width": "i32", "plane": "i64"}
_VIEW = {
    "p_out": "*bf16", "group": "i32", "channels": "i32",
    **{f"{name}_{i}": "fp32" for name in ("mean", "scale") for i in range(4)},
}  # fmt: skip
_IMAGES = {
    "H": "i32", "W": "i32", **{f"{name}_stride": "i64" for name in ("image", "channel", "row", "pixel")},
}  # fmt: skip


def variants(major: int) -> list[Variant]:
    tiles = {kernel: tile for (kernel, _, _), tile in TILES.shipped(major).items()}
    out = [draw_variant(tiles["draw"]), *(view_variant(kernel, tiles[kernel]) for kernel in tiles if kernel != "draw")]
    if major == 9:
        out.append(draw_variant(tiles["draw"], sizes=True))
        for channels in (1, 2, 4):
            out += [view_variant(kernel, tiles[kernel], channels=channels) for kernel in tiles if kernel != "draw"]
        for dtype in ("fp32", "fp16"):
            out += [view_variant(kernel, tiles[kernel], dtype=dtype) for kernel in ("resample", "barrier")]
        out += [view_variant(kernel, tiles[kernel], plain=False) for kernel in tiles if kernel != "draw"]
    return out


def draw_variant(tile: Tile, *, sizes: bool = False) -> Variant:
    """Drawing records, of images of one size or of many."""
    signature = {
        "p_index": "*i64", "p_program": "*fp64", "p_out": "*fp32", **({"p_sizes": "*i64"} if sizes else {}),
        **dict.fromkeys(("batch", "entries", "record", "height", "width", "out_height", "out_width"), "i32"),
        **dict.fromkeys(("seed_low", "seed_high", "epoch", "view"), "i64"),
    }  # fmt: skip
    constants = {"HAS_SIZES": sizes, "BLOCK": tile.block_n}
    return Variant(
        f"draw records{' sizes' if sizes else ''}", "augment.sampling:draw_kernel", signature, constants, tile.warps, 1,
        tensor_cores=False,
    )  # fmt: skip


def view_variant(kernel: str, tile: Tile, *, channels: int = 3, dtype: str = "bf16", plain: bool = True) -> Variant:
    """One of the kernels that make views.

    Args:
        kernel: "resample", "blur_rows" or "barrier".
        tile: for it.
        channels: of the images, up to 4.
        dtype: of the views.
        plain: a stack, bilinear, and a width that is a multiple of 16; else a list, bicubic, and any width.
    """
    signature = {"p_records": "*fp32", "p_buffers": "*fp16", **_SCALARS}
    constants: dict[str, Any] = {"BLOCK_Y": tile.block_m, "BLOCK_X": tile.block_n, "STEPS": 16, "CHANNELS": channels}
    if kernel != "resample":
        signature |= {"number": "i32", "images": "i32"}
    if kernel != "blur_rows":
        signature |= {**_VIEW, "p_out": f"*{dtype}", "p_sums": "*fp32"}
        constants |= {"COLORS": channels if channels in (1, 3) else 0, "ROUND": 0}
    if kernel == "resample":
        signature |= {"p_images": "*u8" if plain else "*i64", **_IMAGES}
        constants |= {"RAGGED": not plain, "BICUBIC": not plain}
    if kernel == "barrier":
        constants["PARTS"] = PARTS
    module = "resample" if kernel == "resample" else "barriers"
    return Variant(
        name=f"augment {kernel} C={channels} {dtype}{'' if plain else ' list bicubic odd'}",
        kernel=f"augment.{module}:{kernel}_kernel",
        signature=signature,
        constants=constants,
        warps=tile.warps,
        stages=3,
        divisible=("width", "plane") if plain else (),
        tensor_cores=False,
    )
