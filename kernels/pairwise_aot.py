"""The variants of the pairwise kernels that are compiled ahead of time: every shipped tile, in its common uses."""

from __future__ import annotations

from typing import Any

from . import config
from .aot import Variant

_TYPES = {"16bit": "bf16", "tf32": "fp32", "tf32x3": "fp32"}
_INTEGERS = ("M", "N", "M_pad", "row_base", "row_step", "col_shift", "first_block")
# NT-Xent: pairs as positives, itself left out, a plain number as temperature.
_NT_XENT = {"POSITIVES": 2, "EXCLUDE_SELF": True, "EXCLUDE_POSITIVES": False}
_FIXED = {"ONLINE": False, "HAS_LOGIT_SCALE": False}
_ONLINE = {"ONLINE": True, "HAS_LOGIT_SCALE": True}
_ALL_WEIGHTS = {"HAS_ROW": True, "HAS_COL": True, "HAS_ROW_POSITIVE": True, "HAS_COL_POSITIVE": True}


def variants(major: int) -> list[Variant]:
    """One variant per shipped tile and mode, at the widest dimension that the tile serves (512 where unbounded)."""
    out = []
    for (kernel, kind, widest), tile in config.shipped(major).items():
        dimension = widest or 512
        if kernel == "symmetric":
            out.append(logsum_variant(kind, dimension, tile, symmetric=True, online=False))
        elif kernel == "logsum":
            out += [logsum_variant(kind, dimension, tile, symmetric=False, online=o) for o in (False, True)]
        else:
            build = gradient_variant if kernel == "gradient" else pair_weights_variant
            out += [build(kind, dimension, tile, online=online) for online in (False, True)]
    return out + _memory_bound_variants()


def _memory_bound_variants() -> list[Variant]:
    """The kernels before and after the products, in the forms that read and write everything they can."""

    def variant(name: str, pointers: dict[str, str], integers: str, constants: dict[str, Any]) -> Variant:
        integer_types = dict.fromkeys(integers.split(), "i32")
        number = {"scale": "fp32"} if name not in ("prepare", "weight_scale") else {}
        signature = {**pointers, **integer_types, **number}
        return Variant(name, f"pairwise:{name}_kernel", signature, constants, warps=4, stages=3, tensor_cores=False)

    def floats(names: str) -> dict[str, str]:
        return dict.fromkeys(names.split(), "*fp32")

    block = {"D": 512, "BLOCK_M": 4, "BLOCK_D": 512, "NORMALIZE": True}
    scaled = {"HAS_LOGIT_SCALE": True, "HAS_WEIGHT_SCALE": True}
    partial = {"BLOCK": 64, "SLOTS": 32, "BLOCK_M": 128, "POSITIVES": 2}
    half = {"p_x": "*fp16", "p_out": "*fp16"}
    sums = "p_sum p_positive p_running p_logit_scale p_lse p_positive_out"
    chunk = {"SYMMETRIC": True, "ONLINE": False, "HAS_LOGIT_SCALE": True, "FIRST": False, "LAST": False}
    whole = {"SYMMETRIC": False, "ONLINE": True, "HAS_LOGIT_SCALE": True, "FIRST": True, "LAST": True}
    return [
        variant(
            "prepare", {**half, "p_inverse": "*fp32"}, "rows columns stride", {**block, "ROUND": 13, "UPCAST": False}
        ),
        variant("combine", floats(f"{sums} p_column_sum"), "M M_pad splits first_block blocks", {**partial, **chunk}),
        variant("combine", floats(f"{sums} p_max"), "M M_pad splits first_block blocks", {**partial, **whole}),
        variant("weight_scale", floats("p_w0 p_w1 p_w2 p_w3 p_out"), "n0 n1 n2 n3", {"BLOCK": 1024}),
        variant(
            "terms",
            floats("p_lse p_weight p_positive_weight p_logit_scale p_weight_scale p_out"),
            "rows rows_pad",
            {"BLOCK": 1024, "ONLINE": False, "HAS_LOGSUM": True, "HAS_POSITIVE": True, **scaled},
        ),
        variant(
            "finalize",
            {**half, **floats("p_partial p_inverse p_logit_scale p_weight_scale p_radial")},
            "rows rows_pad columns stride splits",
            {**block, **scaled},
        ),
    ]


def logsum_variant(kind: str, dimension: int, tile: config.Tile, *, symmetric: bool, online: bool) -> Variant:
    """The log-sum kernel of NT-Xent for one tile; also what the tuner compiles."""
    mode = _ONLINE if online else _FIXED
    signature = {
        **_operands(kind),
        **dict.fromkeys(("p_sum", "p_positive"), "*fp32"),
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
        **_NT_XENT,
        **mode,
    }
    form = "online" if online else "symmetric" if symmetric else "full"
    return _variant("logsum_kernel", f"logsum {kind} D={dimension} {form}", kind, tile, signature, constants)


def gradient_variant(kind: str, dimension: int, tile: config.Tile, *, online: bool) -> Variant:
    """The gradient kernel of NT-Xent for one tile."""
    signature, constants = _gradient_arguments(kind, dimension, tile, online)
    signature["tiles_per_split"] = "i32"
    form = "online" if online else "fixed"
    return _variant("gradient_kernel", f"gradient {kind} D={dimension} {form}", kind, tile, signature, constants)


def pair_weights_variant(kind: str, dimension: int, tile: config.Tile, *, online: bool) -> Variant:
    """The kernel that writes G, for one tile."""
    signature, constants = _gradient_arguments(kind, dimension, tile, online)
    signature |= {"blocks": "i32", "depth": "i32"}
    constants |= {"BLOCK_D": tile.block_d or dimension, "GROUP": 8}
    form = "online" if online else "fixed"
    return _variant(
        "pair_weights_kernel", f"pair_weights {kind} D={dimension} {form}", kind, tile, signature, constants
    )


def _variant(
    function: str, name: str, kind: str, tile: config.Tile, signature: dict[str, str], constants: dict[str, Any]
) -> Variant:
    return Variant(
        name=name,
        kernel=f"pairwise:{function}",
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


def _tile(dimension: int, tile: config.Tile) -> dict[str, int]:
    return {"D": dimension, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "STAGES": tile.stages}


def _gradient_arguments(
    kind: str, dimension: int, tile: config.Tile, online: bool
) -> tuple[dict[str, str], dict[str, Any]]:
    signature = {
        **_operands(kind),
        **dict.fromkeys(("p_row_terms", "p_col_terms", "p_out"), "*fp32"),
        **({"p_logit_scale": "*fp32"} if online else {}),
        **dict.fromkeys((*_INTEGERS, "N_pad"), "i32"),
        "scale": "fp32",
    }
    constants = {
        **_tile(dimension, tile),
        **_arithmetic(kind),
        **_NT_XENT,
        **_ALL_WEIGHTS,
        **(_ONLINE if online else _FIXED),
        "ROUND": 13 if kind == "tf32" else 0,
    }
    return signature, constants
