"""The variants of the pairwise kernels that are compiled ahead of time.

Every shipped tile as NT-Xent uses it; and for Hopper, at one dimension, other uses, so that every branch of the kernels
with products compiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..aot import Variant
from ..tiles import Tile
from .config import TILES

_TYPES = {"16bit": "bf16", "tf32": "fp32", "tf32x3": "fp32"}
_INTEGERS = ("M", "N", "M_pad", "row_base", "row_step", "col_shift", "first_block")
_WEIGHTS = ("row", "col", "row_positive", "col_positive")
_FIXED = {"ONLINE": False, "HAS_LOGIT_SCALE": False}
_ONLINE = {"ONLINE": True, "HAS_LOGIT_SCALE": True}


@dataclass(frozen=True)
class Use:
    """Which pairs are positives, which are left out, and which of the gradient's inputs are given."""

    positives: str
    exclude_self: bool = False
    exclude_positives: bool = False
    weights: tuple[str, ...] = ()

    @property
    def masks(self) -> dict[str, Any]:
        return {
            "POSITIVES": ("none", "diagonal", "pair", "key").index(self.positives),
            "EXCLUDE_SELF": self.exclude_self,
            "EXCLUDE_POSITIVES": self.exclude_positives,
        }

    @property
    def has_weights(self) -> dict[str, bool]:
        return {f"HAS_{name.upper()}": name in self.weights for name in _WEIGHTS}

    @property
    def keys(self) -> dict[str, str]:
        return dict.fromkeys(("p_row_key", "p_col_key"), "*i64") if self.positives == "key" else {}

    def __str__(self) -> str:
        return self.positives if self.weights != ("row_positive",) else f"{self.positives} alone"


NT_XENT = Use("pair", exclude_self=True, weights=_WEIGHTS)
NO_POSITIVES = Use("none", weights=("row",))
OTHERS = (
    NO_POSITIVES,
    Use("diagonal", exclude_positives=True, weights=("col", "col_positive")),
    Use("key", exclude_self=True, exclude_positives=True, weights=_WEIGHTS),
)
POSITIVES_ALONE = Use("diagonal", weights=("row_positive",))


def variants(major: int) -> list[Variant]:
    """One variant per shipped tile and mode, at the widest dimension that the tile serves (512 where unbounded)."""
    out = []
    for (kernel, kind, widest), tile in TILES.shipped(major).items():
        dimension = widest or 512
        if kernel == "symmetric":
            out.append(logsum_variant(kind, dimension, tile, symmetric=True, online=False))
        elif kernel == "logsum":
            out += [logsum_variant(kind, dimension, tile, symmetric=False, online=o) for o in (False, True)]
        elif kernel in ("gradient", "pair_weights"):
            build = gradient_variant if kernel == "gradient" else pair_weights_variant
            out += [build(kind, dimension, tile, online=online) for online in (False, True)]
        elif kernel == "bank":
            forms = ((False, False), (True, False), (False, True))
            out += [_bank_variant(kind, dimension, tile, online=form, by_index=index) for form, index in forms]
        else:
            out.append(_sigmoid_variant(kernel, kind, dimension, tile))
    if major == 9:
        out += _other_uses()
    return out + _memory_bound_variants()


def _other_uses() -> list[Variant]:
    """What is not NT-Xent, in 16 bits at D = 128 and, where float32 is what the kernel is for, at D = 32."""

    def tile(kernel: str, kind: str, dimension: int) -> Tile:
        found = TILES.tile_for(kernel, kind, dimension, 9)
        assert found is not None, f"{kernel} serves {kind} at {dimension}"
        return found

    logsum, gradient = tile("logsum", "16bit", 128), tile("gradient", "16bit", 128)
    pair_weights = tile("pair_weights", "tf32", 32)
    symmetric = tile("symmetric", "16bit", 128)
    out = [logsum_variant("16bit", 128, symmetric, symmetric=True, online=False, use=NO_POSITIVES)]
    for use in OTHERS:
        online = use.positives == "diagonal"
        out.append(logsum_variant("16bit", 128, logsum, symmetric=False, online=online, use=use))
    for use in OTHERS:
        online = use.positives == "key"
        out.append(gradient_variant("16bit", 128, gradient, online=online, use=use))
        out.append(pair_weights_variant("tf32", 32, pair_weights, online=online, use=use))
    # not of pair_weights: without exponentials it has no product, hence no tensor cores
    out.append(gradient_variant("16bit", 128, gradient, online=False, use=POSITIVES_ALONE))
    return out


def _memory_bound_variants() -> list[Variant]:
    """The kernels before and after the products, in the forms that read and write everything they can."""

    def variant(kernel: str, pointers: dict[str, str], integers: str, constants: dict[str, Any]) -> Variant:
        name = kernel.split(":")[1].removesuffix("_kernel")
        number = {"scale": "fp32"} if name not in ("prepare", "weight_scale") else {}
        signature = {**pointers, **dict.fromkeys(integers.split(), "i32"), **number}
        return Variant(name, f"pairwise.{kernel}", signature, constants, warps=4, stages=3, tensor_cores=False)

    def floats(names: str) -> dict[str, str]:
        return dict.fromkeys(names.split(), "*fp32")

    block = {"D": 512, "BLOCK_M": 4, "BLOCK_D": 512, "NORMALIZE": True}
    scaled = {"HAS_LOGIT_SCALE": True, "HAS_WEIGHT_SCALE": True}
    partial = {"BLOCK": 64, "SLOTS": 32, "BLOCK_M": 128, "POSITIVES": 2}
    half = {"p_x": "*fp16", "p_out": "*fp16"}
    sizes = "M M_pad splits first_block blocks"
    sums = "p_sum p_positive p_running p_logit_scale p_lse p_positive_out"
    chunk = {"SYMMETRIC": True, "ONLINE": False, "HAS_LOGIT_SCALE": True, "FIRST": False, "LAST": False}
    whole = {"SYMMETRIC": False, "ONLINE": True, "HAS_LOGIT_SCALE": True, "FIRST": True, "LAST": True}
    return [
        variant(
            "common:prepare_kernel",
            {**half, "p_inverse": "*fp32"},
            "rows columns stride",
            {**block, "ROUND": 13, "UPCAST": False},
        ),
        variant("logsum:combine_kernel", floats(f"{sums} p_column_sum"), sizes, {**partial, **chunk}),
        variant("logsum:combine_kernel", floats(f"{sums} p_max"), sizes, {**partial, **whole}),
        variant("gradient:weight_scale_kernel", floats("p_w0 p_w1 p_w2 p_w3 p_out"), "n0 n1 n2 n3", {"BLOCK": 1024}),
        variant(
            "gradient:terms_kernel",
            floats("p_lse p_weight p_positive_weight p_logit_scale p_weight_scale p_out"),
            "rows rows_pad",
            {"BLOCK": 1024, "ONLINE": False, "HAS_LOGSUM": True, "HAS_POSITIVE": True, **scaled},
        ),
        variant(
            "gradient:finalize_kernel",
            {**half, **floats("p_partial p_inverse p_logit_scale p_weight_scale p_radial")},
            "rows rows_pad columns stride splits",
            {**block, **scaled},
        ),
    ]


def logsum_variant(
    kind: str, dimension: int, tile: Tile, *, symmetric: bool, online: bool, use: Use = NT_XENT
) -> Variant:
    """The log-sum kernel for one tile."""
    mode = _ONLINE if online else _FIXED
    signature = {
        **_operands(kind),
        **use.keys,
        "p_sum": "*fp32",
        **({"p_positive": "*fp32"} if use.positives != "none" else {}),
        **({"p_max": "*fp32"} if online else {}),
        **({"p_logit_scale": "*fp32"} if online else {}),
        **({"p_column_sum": "*fp32"} if symmetric else {}),
        **dict.fromkeys((*_INTEGERS, "tiles_per_split", "depth"), "i32"),
        "scale": "fp32",
    }
    constants = {
        **_tile(dimension, tile),
        "BLOCK_D": tile.block_d or dimension,
        "SYMMETRIC": symmetric,
        **_arithmetic(kind),
        **use.masks,
        **mode,
    }
    form = "online" if online else "symmetric" if symmetric else "full"
    return _variant(
        "logsum:logsum_kernel", f"logsum {kind} D={dimension} {use} {form}", kind, tile, signature, constants
    )


def gradient_variant(kind: str, dimension: int, tile: Tile, *, online: bool, use: Use = NT_XENT) -> Variant:
    """The gradient kernel for one tile."""
    signature, constants = _gradient_arguments(kind, dimension, tile, online, use)
    signature["tiles_per_split"] = "i32"
    form = "online" if online else "fixed"
    return _variant(
        "gradient:gradient_kernel", f"gradient {kind} D={dimension} {use} {form}", kind, tile, signature, constants
    )


def pair_weights_variant(kind: str, dimension: int, tile: Tile, *, online: bool, use: Use = NT_XENT) -> Variant:
    """The kernel that writes G, for one tile."""
    signature, constants = _gradient_arguments(kind, dimension, tile, online, use)
    signature |= {"blocks": "i32", "depth": "i32"}
    constants |= {"BLOCK_D": tile.block_d or dimension, "GROUP": 8}
    form = "online" if online else "fixed"
    return _variant(
        "gradient:pair_weights_kernel",
        f"pair_weights {kind} D={dimension} {use} {form}",
        kind,
        tile,
        signature,
        constants,
    )


def _bank_variant(kind: str, dimension: int, tile: Tile, *, online: bool, by_index: bool) -> Variant:
    """Columns without a gradient, of which each row leaves one out."""
    signature = {
        **_operands(kind),
        **dict.fromkeys(("p_out", "p_sums"), "*fp32"),
        **({"p_logit_scale": "*fp32"} if online else {}),
        **({"p_index": "*i64"} if by_index else {}),
        **dict.fromkeys((*_INTEGERS, "tiles_per_split"), "i32"),
        "scale": "fp32",
    }
    constants = {
        **_tile(dimension, tile),
        **_arithmetic(kind),
        **(_ONLINE if online else _FIXED),
        "POSITIVES": 4 if by_index else 1,
        "ROUND": 0,
    }
    form = ("online" if online else "fixed") + (" index" if by_index else "")
    return _variant("bank:bank_kernel", f"bank {kind} D={dimension} {form}", kind, tile, signature, constants)


def _sigmoid_variant(kernel: str, kind: str, dimension: int, tile: Tile) -> Variant:
    """SigLIP for one tile: with learnable numbers and the rows' sums, which is all of it."""
    signature = {
        **_operands(kind),
        **dict.fromkeys(("p_logit_scale", "p_logit_bias", "p_out", "p_sums"), "*fp32"),
        **dict.fromkeys(_INTEGERS, "i32"),
        **dict.fromkeys(("scale", "bias", "weight"), "fp32"),
    }
    constants = {
        **_tile(dimension, tile),
        **_arithmetic(kind),
        **dict.fromkeys(("HAS_LOGIT_SCALE", "HAS_LOGIT_BIAS", "SUMS"), True),
        "ROUND": 13 if kind == "tf32" else 0,
    }
    if kernel == "sigmoid":
        signature["tiles_per_split"] = "i32"
    else:
        signature |= dict.fromkeys(("N_pad", "blocks", "depth"), "i32")
        constants |= {"BLOCK_D": tile.block_d or dimension, "GROUP": 8, "WEIGHTS": True}
    return _variant(f"sigmoid:{kernel}_kernel", f"{kernel} {kind} D={dimension}", kind, tile, signature, constants)


def _variant(
    kernel: str, name: str, kind: str, tile: Tile, signature: dict[str, str], constants: dict[str, Any]
) -> Variant:
    return Variant(
        name=name,
        kernel=f"pairwise.{kernel}",
        signature=signature,
        constants=constants,
        warps=tile.warps,
        stages=tile.stages,
        divisible=("N_pad",) if "N_pad" in signature else (),
    )


def _operands(kind: str) -> dict[str, str]:
    return dict.fromkeys(("p_q", "p_k"), f"*{_TYPES[kind]}")


def _arithmetic(kind: str) -> dict[str, Any]:
    return {"PRECISION": "ieee" if kind == "16bit" else kind, "UPCAST": False}


def _tile(dimension: int, tile: Tile) -> dict[str, int]:
    return {"D": dimension, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "STAGES": tile.stages}


def _gradient_arguments(
    kind: str, dimension: int, tile: Tile, online: bool, use: Use
) -> tuple[dict[str, str], dict[str, Any]]:
    signature = {
        **_operands(kind),
        **use.keys,
        **dict.fromkeys(("p_row_terms", "p_col_terms", "p_out"), "*fp32"),
        **({"p_logit_scale": "*fp32"} if online else {}),
        **dict.fromkeys((*_INTEGERS, "N_pad"), "i32"),
        "scale": "fp32",
    }
    constants = {
        **_tile(dimension, tile),
        **_arithmetic(kind),
        **use.masks,
        **use.has_weights,
        **(_ONLINE if online else _FIXED),
        "ROUND": 13 if kind == "tf32" else 0,
    }
    return signature, constants
