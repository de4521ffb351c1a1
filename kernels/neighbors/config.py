"""Tile sizes of the nearest-neighbour search. Nothing here has been tuned on a GPU yet."""

from ..tiles import Tile, TileTable

TILES = TileTable(
    common={
        ("nearest", "16bit", None): Tile(64, 128, 64, 8, 3),
        ("nearest", "tf32", None): Tile(64, 128, 32, 8, 3),
        ("nearest", "tf32x3", None): Tile(64, 64, 32, 8, 3),
    },
    architectures={},
)
