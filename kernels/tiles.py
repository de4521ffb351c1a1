"""Tile sizes: one default for each kernel, architecture and dtype; nothing depends on the batch size.

Each family has its own table (``<family>/config.py``). A product's kind is what its operands are: ``16bit`` (bfloat16,
float16), ``tf32`` (float32 inputs rounded to tf32), ``tf32x3`` (three tf32 products, with the error of float32).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """A program's tile of a matrix product, [block_m, block_n], in steps of block_d along the dimension.

    ``block_d`` 0 means the whole dimension at once.
    """

    block_m: int
    block_n: int
    block_d: int
    warps: int
    stages: int


Entries = Mapping[tuple[str, str, int | None], Tile | None]  # (kernel, kind, widest dimension) -> tile


class TileTable:
    """The default tiles of a family's kernels.

    Args:
        common: the tiles of every architecture.
        architectures: by major compute capability (8, 9, 10), tiles that go before the common ones; None there:
            this kernel is not used on that architecture.
    """

    def __init__(self, common: Entries, architectures: Mapping[int, Entries]) -> None:
        self._common = common
        self._architectures = architectures
        self._override: dict[str, Tile | None] = {}
        self._found: dict[tuple[str, str, int, int], Tile | None] = {}

    def tile_for(self, kernel: str, kind: str, dimension: int, major: int) -> Tile | None:
        """The tile of a kernel for a (padded) dimension on an architecture; None where it does not serve that."""
        key = kernel, kind, dimension, major
        if key not in self._found:
            self._found[key] = self._look_up(*key)
        tile = self._found[key]
        return tile and self._override.get(kernel, tile)

    def _look_up(self, kernel: str, kind: str, dimension: int, major: int) -> Tile | None:
        for entries in (self._architectures.get(major, {}), self._common):
            fitting = [
                (float("inf") if widest is None else widest, tile)
                for (name, of_kind, widest), tile in entries.items()
                if (name, of_kind) == (kernel, kind) and (widest is None or dimension <= widest)
            ]
            if fitting:
                return min(fitting, key=lambda entry: entry[0])[1]
        return None

    def shipped(self, major: int) -> dict[tuple[str, str, int | None], Tile]:
        """Every default of an architecture, for the ahead-of-time tests."""
        merged = {**self._common, **self._architectures.get(major, {})}
        return {key: tile for key, tile in merged.items() if tile is not None}

    @contextmanager
    def override(self, **tiles: Tile | None) -> Iterator[None]:
        """Use these tiles, by kernel name, inside the block: for tests (small tiles) and for tuning."""
        before = dict(self._override)
        self._override.update(tiles)
        try:
            yield
        finally:
            self._override = before
