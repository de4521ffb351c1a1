"""Tile sizes of the augmentation kernels: [block_m rows, block_n columns] of a view, or block_n images for drawing.

The table's dimension is the number of channels. 32 columns, because views' sides are multiples of it: 224, 96, 32.
Nothing here has been tuned on a GPU yet.
"""

from ..tiles import Tile, TileTable

TILES = TileTable(
    common={
        ("draw", "records", None): Tile(1, 32, 0, 1, 1),
        ("resample", "pixels", None): Tile(16, 32, 0, 8, 1),
        ("blur_rows", "pixels", None): Tile(16, 32, 0, 4, 1),
        ("barrier", "pixels", None): Tile(16, 32, 0, 8, 1),
    },
    architectures={},
)

# Programs that share an image: each leaves one number for the mean of the view, which are added up at once.
PARTS = 256
