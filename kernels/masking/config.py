"""Tile sizes of the masking kernels, [block_m tokens, block_n numbers]. Nothing here has been tuned on a GPU yet.

All of them move memory: a thread has 16 bytes of each of a few rows at a time. Sorting takes a program per image, whose
warps grow with the row: 4 or 8 numbers of 64 bits in a thread.
"""

from ..tiles import Tile, TileTable

TILES = TileTable(
    common={
        ("move", "16bit", None): Tile(4, 512, 0, 2, 1),
        ("move", "fp32", None): Tile(4, 512, 0, 4, 1),
        ("gradient", "16bit", None): Tile(4, 256, 0, 1, 1),
        ("gradient", "fp32", None): Tile(4, 256, 0, 2, 1),
        ("sort", "any", 256): Tile(1, 256, 0, 1, 1),
        ("sort", "any", 1024): Tile(1, 1024, 0, 8, 1),
        ("chain", "any", None): Tile(64, 64, 0, 4, 1),
        ("sums", "any", None): Tile(16, 128, 0, 4, 1),
        ("patches", "any", None): Tile(1, 256, 0, 2, 1),
    },
    architectures={},
)
