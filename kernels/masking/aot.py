"""The variants of the masking kernels that are compiled ahead of time: every shipped tile, and what they switch off."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..aot import Variant
from ..tiles import Tile
from .config import TILES

_STRIDES = {"stride_b": "i64", "stride_r": "i64"}


def variants(major: int) -> list[Variant]:
    tiles = TILES.shipped(major)
    out = []
    for (kernel, kind, longest), tile in tiles.items():
        if kernel == "sort":
            out += [_sort(tile, longest, drawn) for drawn in (True, False)]
        elif kernel in ("move", "gradient"):
            for dtype in ("bf16", "fp16") if kind == "16bit" else ("fp32",):
                out += (_moves if kernel == "move" else _gradients)(tile, dtype)
    chain, sums, patches = (next(tile for key, tile in tiles.items() if key[0] == name)
                            for name in ("chain", "sums", "patches"))  # fmt: skip
    integers = dict.fromkeys(("sources", "targets"), "i32")
    out.append(
        _variant(
            "chain", "masks:chain_kernel", chain, {"p_ids": "*i64", "p_first": "*i32", "p_next": "*i32", **integers},
            BLOCK=chain.block_m, BLOCK_S=chain.block_n,
        )
    )  # fmt: skip
    signature = {"p_parts": "*fp32", "p_out": "*fp32", "parts": "i32", "N": "i64"}
    out.append(_variant("sums", "moves:sums_kernel", sums, signature, SLOTS=sums.block_m, BLOCK=sums.block_n))
    for pixels, dtype in (("u8", "fp32"), ("fp32", "bf16"), ("bf16", "fp16")):
        signature = {
            "p_images": f"*{pixels}", "p_ids": "*i64", "p_out": f"*{dtype}",
            **dict.fromkeys(("K", "N", "patches", "columns"), "i32"),
            **dict.fromkeys(("stride_b", "stride_c", "stride_y", "stride_x"), "i64"),
            **{f"{name}_{channel}": "fp32" for name in ("mean", "factor") for channel in range(4)},
        }  # fmt: skip
        sizes = {"HEIGHT": 16, "WIDTH": 16, "BLOCK": patches.block_n}
        out.append(_variant(f"patches {pixels} {dtype}", "moves:patches_kernel", patches, signature, (), **sizes))
    return out


def _variant(
    name: str, kernel: str, tile: Tile, signature: dict[str, str], divisible: Iterable[str] = (), **constants: Any
) -> Variant:
    return Variant(
        name=f"masking {name}", kernel=f"masking.{kernel}", signature=signature, constants=constants,
        warps=tile.warps, stages=tile.stages, divisible=tuple(divisible), tensor_cores=False,
    )  # fmt: skip


def _sort(tile: Tile, longest: int | None, drawn: bool) -> Variant:
    signature = {
        **dict.fromkeys(("p_kept", "p_masked", "p_restore"), "*i64"), "p_mask": "*fp32", "L": "i32", "keep": "i32",
        **dict.fromkeys(("view", "epoch", "seed_low", "seed_high"), "i64"),
        **({"p_index": "*i64"} if drawn else {"p_noise": "*fp32"}),
    }  # fmt: skip
    name = f"sort {longest} {'drawn' if drawn else 'given'}"
    return _variant(name, "masks:masks_kernel", tile, signature, BLOCK=tile.block_n, DRAWN=drawn)


def _moves(tile: Tile, dtype: str) -> list[Variant]:
    common = {
        "p_x": f"*{dtype}", "p_out": f"*{dtype}", **dict.fromkeys(("L", "K", "P", "D"), "i32"), **_STRIDES,
    }  # fmt: skip
    blocks = {"BLOCK_R": tile.block_m, "BLOCK_D": tile.block_n}
    out = []
    for full in (True, False):
        divisible = ("D", *_STRIDES) if full else ()
        word = "everything aligned" if full else "bare"
        rows = dict.fromkeys(("p_pos", "p_prefix_pos"), "*fp32") if full else {}
        has = {"HAS_POS": full, "HAS_PREFIX_POS": full}
        prefix = {"p_prefix": "*fp32"} if full else {}
        out.append(
            _variant(
                f"gather {dtype} {word}", "moves:gather_kernel", tile, {**common, "p_ids": "*i64", **rows, **prefix},
                divisible, **blocks, **has, HAS_PREFIX=full,
            )
        )  # fmt: skip
        signature = {**common, "p_restore": "*i64", "p_token": "*fp32", **rows}
        out.append(
            _variant(f"unshuffle {dtype} {word}", "moves:unshuffle_kernel", tile, signature, divisible, **blocks, **has)
        )
    return out


def _gradients(tile: Tile, dtype: str) -> list[Variant]:
    blocks = {"BLOCK_R": tile.block_m, "BLOCK_D": tile.block_n}
    sizes = dict.fromkeys(("L", "K", "P", "D"), "i32")
    common = {
        "p_g": f"*{dtype}", "p_dx": f"*{dtype}", "p_first": "*i32", "p_next": "*i32", "p_sums": "*fp32", **sizes,
        **dict.fromkeys(("images", "per_group"), "i32"), **_STRIDES,
    }  # fmt: skip
    out = [
        _variant(
            f"lost {dtype}", "moves:lost_kernel", tile, {"p_first": "*i32", "p_dx": f"*{dtype}", **sizes}, ("D",),
            **blocks,
        )
    ]  # fmt: skip
    for full in (True, False):
        divisible = ("D", *_STRIDES) if full else ()
        word = "everything aligned" if full else "tokens"
        wanted = {"FOR_TOKENS": True, "FOR_SUMS": full}
        out.append(
            _variant(
                f"gather gradient {dtype} {word}", "moves:gather_grad_kernel", tile, {**common, "rows": "i32"},
                divisible, **blocks, **wanted,
            )
        )  # fmt: skip
        signature = {**common, "p_restore": "*i64", "p_mask": "*fp32"}
        out.append(
            _variant(
                f"unshuffle gradient {dtype} {word}", "moves:unshuffle_grad_kernel", tile, signature, divisible,
                **blocks, **wanted, FOR_MASK=full,
            )
        )  # fmt: skip
    return out
