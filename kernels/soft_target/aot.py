"""The variants of the soft-target kernels that are compiled ahead of time.

Every shipped tile, with as many teachers as it is made for, in the form that DINO (views) and iBOT (rows) use; and
for Hopper other uses, so that every branch compiles. Kernels without products have no tensor cores.
"""

from __future__ import annotations

from typing import Any

from ..aot import Variant
from ..table import FILLED_AT_ONCE
from ..tiles import Tile
from .config import TILES

_POINTERS = {
    "statistics": ("p_column", "p_weight", "p_records", "p_group_sums"),
    "gradient": ("p_column", "p_row_potential", "p_weight", "p_student_lse", "p_teacher_lse", "p_d_loss"),
}
_PLACES = ("student_stride", "student_row", "teacher_stride", "teacher_row", "gradient_stride", "gradient_row")


def variants(major: int) -> list[Variant]:
    out = []
    for (kernel, kind, widest), tile in TILES.shipped(major).items():
        rows = kind == "rows"
        for dtype in ("bf16", "fp32") if rows or widest == 2 else ("bf16",):
            out.append(pass_variant(kernel, tile, student=dtype, rows=rows))
    if major == 9:
        out += _other_uses()
    return out + _small_kernels()


def pass_variant(
    kernel: str,
    tile: Tile,
    *,
    student: str = "bf16",
    teacher: str | None = None,
    rows: bool = False,
    teachers: int = 0,
    table: int = 0,
    plain: bool = True,
    whole: bool = True,
) -> Variant:
    """One of the two passes over the logits.

    Args:
        kernel: "statistics" or "gradient".
        tile: for it.
        student: type of the students' logits.
        teacher: of the teachers', by default the same.
        rows: one student per teacher and weights, as iBOT has it; else any number of students.
        teachers: by default as many as the tile has room for.
        table: how the views' places are given (``views.py``).
        plain: aligned rows and a centre for all teachers; else neither, and row potentials.
        whole: whether the columns fill all chunks.
    """
    teachers = teachers or tile.block_m
    given = {"p_column", "p_records", "p_group_sums", "p_student_lse", "p_teacher_lse", "p_d_loss"}
    given |= {"p_weight"} if rows or not plain else set()
    given |= set() if plain else {"p_row_potential"}
    signature = {
        "p_student": f"*{student}",
        "p_teacher": f"*{teacher or student}",
        **({"p_table": "*i64"} if table else {}),
        **{name: "*fp32" for name in _POINTERS[kernel] if name in given},
        **dict.fromkeys(("B", "K", "S", "entries"), "i32"),
        **dict.fromkeys(_PLACES[: 4 if kernel == "statistics" else 6], "i64"),
        **dict.fromkeys(("student_scale", "teacher_scale"), "fp32"),
    }
    constants: dict[str, Any] = {
        "T": teachers, "T_PAD": tile.block_m, "BLOCK": tile.block_n if plain else tile.block_n // 2,
        "STAGES": tile.stages, "TABLE": table, "ALIGNED": plain, "WHOLE": whole and plain,
        "POTENTIALS": 1 if plain else 2, "HAS_WEIGHT": "p_weight" in given,
    }  # fmt: skip
    if kernel == "statistics":
        signature["chunks"] = "i32"
        constants |= {"ONE_STUDENT": rows, "COLUMN_SUM": True}
    else:
        signature["p_gradient"] = f"*{student}"
        constants |= {"SKIP_SAME_VIEW": not rows, "HAS_ROW_POTENTIAL": not plain, "ROUND": 0}
    form = "rows" if rows else "views"
    about = [form, student if teacher is None else f"{student}-{teacher}", f"T={teachers}"]
    about += [f"table={table}"] if table else []
    about += [] if whole and plain else ["masked"]
    about += [] if plain else ["unaligned"]
    return Variant(
        name=f"{kernel} {' '.join(about)}",
        kernel=f"soft_target.{kernel}:{kernel}_kernel",
        signature=signature,
        constants=constants,
        warps=tile.warps,
        stages=tile.stages,
        tensor_cores=False,
    )


def _other_uses() -> list[Variant]:
    """Views anywhere in memory, rows at odd places, two dtypes, numbers of teachers that are no power of two."""
    out = []
    for kernel in ("statistics", "gradient"):
        two, four = (TILES.tile_for(kernel, "views", n, 9) for n in (2, 4))
        rows = TILES.tile_for(kernel, "rows", 1, 9)
        assert two is not None and four is not None and rows is not None
        out += [pass_variant(kernel, two, table=1), pass_variant(kernel, two, student="fp16", table=2, plain=False)]
        out.append(pass_variant(kernel, two, whole=False))
        out += [pass_variant(kernel, two, teacher="fp32"), pass_variant(kernel, four, teachers=3, plain=False)]
        out.append(pass_variant(kernel, rows, rows=True, plain=False))
    return out


def _small_kernels() -> list[Variant]:
    combine = dict.fromkeys(("p_records", "p_loss", "p_student_lse", "p_teacher_lse"), "*fp32")
    sizes = dict.fromkeys(("B", "K", "S", "chunks", "groups", "image_programs"), "i32") | {"student_scale": "fp32"}
    out = []
    for name, students, teachers, slots in (("rows", 1, 1, 128), ("views", 16, 2, 128)):
        rows = name == "rows"
        extra = ("p_weight",) if rows else ("p_group_sums", "p_column_sum", "p_row_potential")
        constants: dict[str, Any] = {
            "T": teachers, "S_PAD": students, "IMAGES": 16 // students, "SLOTS": slots, "COLUMNS": 512,
            "SKIP_SAME_VIEW": not rows, "HAS_ROW_POTENTIAL": not rows, "HAS_WEIGHT": rows, "COLUMN_SUM": not rows,
        }  # fmt: skip
        signature = {**combine, **dict.fromkeys(extra, "*fp32"), **sizes}
        kernel = "soft_target.combine:combine_kernel"
        out.append(Variant(f"combine {name}", kernel, signature, constants, 4, 3, tensor_cores=False))
    values = {f"v{i}": "i64" for i in range(FILLED_AT_ONCE)}
    signature = {"p_table": "*i64", "first": "i32", **values}
    out.append(Variant("fill", "table:fill_kernel", signature, {}, 1, 3, tensor_cores=False))
    return out
