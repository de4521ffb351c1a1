"""Tile sizes of the pairwise kernels.

"symmetric" is the log-sum of rows with themselves, where a tile's column sums are row sums too; its tiles are square.
"pair_weights" serves what "gradient" does not, and "sigmoid_weights" what "sigmoid" does not. Every entry compiles
without spills (``tests/test_triton_aot.py``).
"""

from ..tiles import Tile, TileTable

TILES = TileTable(
    common={
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
        ("bank", "16bit", 128): Tile(64, 64, 0, 4, 3),
        ("bank", "16bit", 256): Tile(128, 64, 0, 8, 2),
        ("sigmoid", "16bit", 128): Tile(64, 64, 0, 4, 3),
        ("sigmoid", "16bit", 256): Tile(64, 64, 0, 8, 2),
        ("sigmoid_weights", "16bit", None): Tile(128, 128, 64, 8, 3),
        ("sigmoid_weights", "tf32", None): Tile(128, 128, 32, 8, 3),
        ("sigmoid_weights", "tf32x3", None): Tile(64, 64, 32, 8, 3),
    },
    architectures={
        8: {
            ("logsum", "16bit", None): Tile(128, 128, 32, 8, 3),
            ("logsum", "tf32x3", None): Tile(64, 64, 32, 4, 3),
            ("symmetric", "tf32x3", None): Tile(64, 64, 32, 4, 3),
            ("gradient", "16bit", 256): Tile(64, 64, 0, 8, 2),
            ("bank", "16bit", 256): Tile(64, 64, 0, 8, 2),
            ("pair_weights", "tf32x3", None): Tile(64, 64, 32, 4, 3),
        },
        10: {
            # Column sums go through shuffles that cost more than the product they save here.
            ("symmetric", "16bit", 128): None,
            ("symmetric", "16bit", None): None,
            ("symmetric", "tf32", None): None,
            ("bank", "16bit", 128): Tile(64, 128, 0, 8, 2),
            ("bank", "16bit", 256): Tile(64, 64, 0, 8, 2),
            ("pair_weights", "16bit", None): Tile(128, 64, 64, 8, 3),
            ("pair_weights", "tf32", None): Tile(128, 64, 32, 8, 3),
            ("sigmoid", "16bit", 256): Tile(128, 64, 0, 8, 2),
            ("sigmoid_weights", "16bit", None): Tile(128, 64, 64, 8, 3),
            ("sigmoid_weights", "tf32", None): Tile(128, 64, 32, 8, 3),
        },
    },
)
