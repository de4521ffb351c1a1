"""Tile sizes of the soft-target kernels.

A tile is [block_m teachers, block_n columns], padded to powers of two; the table's dimension is block_m.
Up to 64 numbers of the teachers' tile lie in a thread's registers, with a student's row and column sums on top of that.

A program of the first pass is one warp. Its row maxima and sums then need neither shared memory nor barriers, and eight
of them fit on a multiprocessor whatever registers they take. "rows" is the case of one student and one teacher with
many rows (iBOT). Nothing here has been tuned on a GPU yet.
"""

from dataclasses import replace

from ..tiles import Tile, TileTable

TILES = TileTable(
    common={
        ("statistics", "rows", None): Tile(1, 1024, 0, 1, 1),
        ("statistics", "views", 2): Tile(2, 1024, 0, 1, 3),
        ("statistics", "views", 4): Tile(4, 512, 0, 1, 3),
        ("statistics", "views", 8): Tile(8, 256, 0, 1, 3),
        ("statistics", "views", None): Tile(16, 128, 0, 1, 3),
        ("gradient", "rows", None): Tile(1, 2048, 0, 4, 1),
        ("gradient", "views", 2): Tile(2, 2048, 0, 4, 3),
        ("gradient", "views", 4): Tile(4, 1024, 0, 4, 3),
        ("gradient", "views", 8): Tile(8, 512, 0, 4, 3),
        ("gradient", "views", None): Tile(16, 256, 0, 4, 3),
    },
    architectures={},
)


def tile_of(kernel: str, students: int, teachers: int, padded: int, aligned: bool, major: int) -> Tile:
    """The tile of a kernel.

    Args:
        kernel: "statistics" or "gradient".
        students: number of them.
        teachers: number of them.
        padded: the next power of two.
        aligned: whether rows begin at multiples of 16 bytes. Where they do not, every element has an address of its
            own, for which half of the columns make room.
        major: compute capability.
    """
    kind = "rows" if students == teachers == 1 else "views"
    tile = TILES.tile_for(kernel, kind, padded, major)
    assert tile is not None, "the table serves any number of teachers"
    return replace(tile, block_m=padded, block_n=tile.block_n if aligned else tile.block_n // 2)
