"""Tile sizes of the Sinkhorn kernels, [block_m rows, block_n columns]. Nothing here has been tuned on a GPU yet.

Programs of a single warp take sums along rows without barriers. For sums along columns a thread has 16 bytes of each of
eight rows at a time.
"""

from ..tiles import Tile, TileTable

TILES = TileTable(
    common={
        ("rows", "16bit", None): Tile(2, 1024, 0, 1, 3),
        ("rows", "fp32", None): Tile(2, 1024, 0, 1, 3),
        ("columns", "16bit", None): Tile(8, 256, 0, 1, 3),
        ("columns", "fp32", None): Tile(8, 128, 0, 1, 3),
    },
    architectures={},
)
