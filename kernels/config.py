"""Tile sizes: one default for each kernel, architecture and dtype; nothing depends on the batch size.

A product's kind is what its operands are: ``16bit`` (bfloat16, float16), ``tf32`` (float32 inputs rounded to tf32),
``tf32x3`` (three tf32 products, with the error of float32).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Tile:
    """A program's tile of the pairwise matrix, [block_m, block_n], in steps of block_d along the dimension.

    ``block_d`` 0 means the whole dimension at once.
    """

    block_m: int
    block_n: int
    block_d: int
    warps: int
    stages: int


# (kernel, kind, widest dimension) -> tile. An entry for an architecture (8, 9, 10: the major compute capability) goes
# before the common one; None there: this kernel is not used on that architecture. "symmetric" is the log-sum of rows
# with themselves, where a tile's column sums are row sums too; its tiles are square. Every entry compiles without
# spills (tests/test_triton_aot.py).
_Table = dict[tuple[str, str, int | None], Tile | None]
_COMMON: _Table = {
    ("logsum", "16bit", 128): Tile(128, 128, 0, 8, 2),
    ("logsum", "16bit", None): Tile(128, 128, 64, 8, 3),
    ("logsum", "tf32", None): Tile(128, 128, 32, 8, 3),
    ("logsum", "tf32x3", None): Tile(128, 128, 32, 8, 3),
    ("symmetric", "16bit", 128): Tile(128, 128, 0, 8, 2),
    ("symmetric", "16bit", None): Tile(128, 128, 64, 8, 3),
    ("symmetric", "tf32", None): Tile(128, 128, 32, 8, 3),
    ("symmetric", "tf32x3", None): Tile(128, 128, 32, 8, 3),
    ("gradient", "16bit", 128): Tile(64, 64, 0, 4, 3),
    ("gradient", "16bit", 256): Tile(128, 64, 0, 8, 2),
    ("pair_weights", "16bit", None): Tile(128, 128, 64, 8, 3),
    ("pair_weights", "tf32", None): Tile(128, 128, 32, 8, 3),
    ("pair_weights", "tf32x3", None): Tile(128, 128, 32, 8, 3),
}
_ARCHITECTURE: dict[int, _Table] = {
    8: {
        ("logsum", "16bit", None): Tile(128, 128, 32, 8, 3),
        ("logsum", "tf32x3", None): Tile(64, 64, 32, 4, 3),
        ("symmetric", "tf32x3", None): Tile(64, 64, 32, 4, 3),
        ("gradient", "16bit", 256): Tile(64, 64, 0, 8, 2),
        ("pair_weights", "tf32x3", None): Tile(64, 64, 32, 4, 3),
    },
    10: {
        # Column sums go through shuffles that cost more than the product they save here.
        ("symmetric", "16bit", 128): None,
        ("symmetric", "16bit", None): None,
        ("symmetric", "tf32", None): None,
        ("pair_weights", "16bit", None): Tile(128, 64, 64, 8, 3),
        ("pair_weights", "tf32", None): Tile(128, 64, 32, 8, 3),
    },
}

_override: dict[str, Tile | None] = {}


def tile_for(kernel: str, kind: str, dimension: int, major: int) -> Tile | None:
    """The tile of a kernel for a (padded) dimension on an architecture; None where this kernel does not serve it."""
    tile = _lookup(kernel, kind, dimension, major)
    return tile and _override.get(kernel, tile)


@cache
def _lookup(kernel: str, kind: str, dimension: int, major: int) -> Tile | None:
    for table in (_ARCHITECTURE.get(major, {}), _COMMON):
        fitting = [
            (float("inf") if widest is None else widest, tile)
            for (name, of_kind, widest), tile in table.items()
            if (name, of_kind) == (kernel, kind) and (widest is None or dimension <= widest)
        ]
        if fitting:
            return min(fitting, key=lambda entry: entry[0])[1]
    return None


def shipped(major: int) -> dict[tuple[str, str, int | None], Tile]:
    """Every default of an architecture, for the ahead-of-time tests."""
    merged = {**_COMMON, **_ARCHITECTURE.get(major, {})}
    return {key: tile for key, tile in merged.items() if tile is not None}


@contextmanager
def override(**tiles: Tile | None) -> Iterator[None]:
    """Use these tiles, by kernel name, inside the block: for tests (small tiles) and for tuning."""
    before = dict(_override)
    _override.update(tiles)
    try:
        yield
    finally:
        _override.clear()
        _override.update(before)
