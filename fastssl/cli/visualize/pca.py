"""``fastssl visualize pca``: three principal components of the features of patches, as colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastssl.cli import UsageError
from fastssl.cli.visualize.encoders import Seen, cell_size, encoder_parser, run, see, shrink
from fastssl.cli.visualize.options import save

if TYPE_CHECKING:  # nothing heavy is imported before the arguments are known to make sense
    from jsonargparse import ArgumentParser
    from PIL.Image import Image
    from torch import Tensor

    from fastssl.report.heat import Interpolation

_ACROSS = 4  # pairs of pictures in a row


def usage() -> str:
    """About this picture."""
    return (
        "usage: fastssl visualize pca <source> [--data photos|FOLDER|FILE ...] [options]\n\n"
        "Write each image beside its patches, coloured by three principal components of their features over all of\n"
        "the images: what looks alike to the encoder has the same colour (Oquab et al. 2023, figure 1).\n\n"
        "source: a checkpoint of fastssl fit, the folder of a run, an exported .safetensors, or a timm model's name\n\n"
        "examples:\n"
        "  fastssl visualize pca runs/dino_photos/1\n"
        "  fastssl visualize pca runs/dino_photos/1 --foreground --data ~/pictures/horses\n"
        "  fastssl visualize pca resnet50 --pretrained --size 640 --interpolation bilinear\n"
        "  fastssl visualize pca vit_tiny_patch16_224 --help    all options\n"
    )


def check(arguments: list[str]) -> None:
    """Nothing can be known to be wrong before the options are parsed."""


def _parser() -> ArgumentParser:
    parser = encoder_parser("pca", "Write principal components of the features of patches as colours.")
    parser.add_argument(
        "--foreground",
        action="store_true",
        help="leave out what the first component tells from the rest as background, and take three of what remains",
    )
    return parser


def draw(arguments: list[str]) -> int:
    """Draw what the arguments after the picture's name ask for."""
    options = _parser().parse_args(arguments)
    seen = see(options)

    import torch

    from fastssl.models.patches import patch_features

    features = torch.cat(run(seen, patch_features))
    if not features.isfinite().all():
        raise UsageError(f"{seen.label}: its features have numbers that are not finite; its weights may be broken")
    save(pca_sheet(seen, features, options.foreground, options.interpolation), options.out)
    print(f"{len(features)} images, {features.shape[1]} x {features.shape[2]} patches each: {options.out}")
    return 0


def pca_sheet(seen: Seen, features: Tensor, subject: bool, interpolation: Interpolation) -> Image:
    """Images and their colours in pairs, several in a row; features [B, rows, columns, D]."""
    import torch

    from fastssl.report.components import as_colors, foreground, principal_components
    from fastssl.report.grid import Cell, picture_grid
    from fastssl.report.heat import enlarge

    count, rows, columns, width = features.shape
    x = features.reshape(-1, width)
    kept = torch.ones(len(x), dtype=torch.bool)
    if subject:
        border = torch.ones(count, rows, columns, dtype=torch.bool)
        border[:, 1:-1, 1:-1] = False
        kept = foreground(x, border.flatten())
    colors = torch.zeros(len(x), 3, dtype=torch.uint8)
    share = torch.zeros(3)
    if kept.any():
        found = principal_components(x[kept])
        colors[kept], share = as_colors(found.scores), found.share
    side = cell_size((rows, columns))
    maps = enlarge(colors.view(count, rows, columns, 3).permute(0, 3, 1, 2), side, interpolation).round().byte()
    pairs = [
        (Cell(shrink(picture, side), [name]), Cell(map_.permute(1, 2, 0).numpy()))
        for name, picture, map_ in zip(seen.names, seen.pictures, maps, strict=True)
    ]
    across = -(-len(pairs) // -(-len(pairs) // _ACROSS))  # rows of about the same length
    cells: list[list[Cell | None]] = []
    for first in range(0, len(pairs), across):
        line: list[Cell | None] = [cell for pair in pairs[first : first + across] for cell in pair]
        cells.append(line + [None] * (2 * across - len(line)))
    parts = ", ".join(f"{name} {100 * part:.0f} %" for name, part in zip(("red", "green", "blue"), share, strict=True))
    note = (
        f"{rows} x {columns} patches of an image of {seen.x.shape[-1]} pixels, features after the last block. "
        f"Components over all images; share of the variance: {parts}."
    )
    if subject:
        left_out = 100 * (~kept).double().mean()
        note += f" Black: background, by the sign of a first component over all patches ({left_out:.0f} %)."
    return picture_grid(f"{seen.label}: principal components of patches", ["image", "components"] * across, cells, note)
