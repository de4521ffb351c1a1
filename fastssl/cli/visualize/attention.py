"""``fastssl visualize attention``: where the last block of a vision transformer looks, head by head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastssl.cli import UsageError
from fastssl.cli.visualize.encoders import Seen, cell_size, encoder_parser, run, see, shrink
from fastssl.cli.visualize.options import save

if TYPE_CHECKING:  # nothing heavy is imported before the arguments are known to make sense
    from jsonargparse import ArgumentParser
    from PIL.Image import Image
    from torch import Tensor

    from fastssl.models.patches import PatchAttention
    from fastssl.report.heat import Interpolation

_LEFT, _GREY = 0.15, 128  # what a mask leaves out shines through grey, which bright and dark pictures are not


def usage() -> str:
    """About this picture."""
    return (
        "usage: fastssl visualize attention <source> [--data photos|FOLDER|FILE ...] [options]\n\n"
        "Write a row per image: the image, the attention of the class token to its patches in the last block for each\n"
        "head, and the mean of the heads (Caron et al. 2021, figure 1).\n\n"
        "source: a checkpoint of fastssl fit, the folder of a run, an exported .safetensors, or a timm model's name\n\n"
        "examples:\n"
        "  fastssl visualize attention runs/dino_photos/1\n"
        "  fastssl visualize attention runs/dino_photos/1 --threshold 0.6 --data ~/pictures --images 4\n"
        "  fastssl visualize attention vit_small_patch8_224.dino --pretrained --size 480\n"
        "  fastssl visualize attention vit_tiny_patch16_224 --help    all options\n"
    )


def check(arguments: list[str]) -> None:
    """Nothing can be known to be wrong before the options are parsed."""


def _parser() -> ArgumentParser:
    parser = encoder_parser("attention", "Write the attention of the last block, head by head.")
    parser.add_argument(
        "--threshold",
        type=float | None,
        default=None,
        help="a second row per image with the patches that hold this share of a map's mass; 0.6 in the paper",
    )
    return parser


def draw(arguments: list[str]) -> int:
    """Draw what the arguments after the picture's name ask for."""
    options = _parser().parse_args(arguments)
    if options.threshold is not None and not 0 < options.threshold < 1:
        raise UsageError(f"--threshold must be between 0 and 1, got {options.threshold}")
    seen = see(options)

    from fastssl.models.patches import patch_attention

    attention: list[PatchAttention] = run(seen, patch_attention)
    if not all(image.weights.isfinite().all() for image in attention):
        raise UsageError(f"{seen.label}: its attention has numbers that are not finite; its weights may be broken")
    save(attention_sheet(seen, attention, options.threshold, options.interpolation), options.out)
    heads = attention[0].weights.shape[1]
    print(f"{len(attention)} images, {heads} head{'s' * (heads > 1)}: {options.out}")
    return 0


def attention_sheet(
    seen: Seen, attention: list[PatchAttention], threshold: float | None, interpolation: Interpolation
) -> Image:
    """A row per image and, with a threshold, one with the masks below it."""
    import torch

    from fastssl.report.grid import Cell, picture_grid
    from fastssl.report.heat import enlarge, heat, keep_mass

    side = cell_size(attention[0].grid)
    rows: list[list[Cell | None]] = []
    for name, picture, image in zip(seen.names, seen.pictures, attention, strict=True):
        maps = torch.cat([image.maps[0], image.maps[0].mean(0, keepdim=True)])
        small = shrink(picture, side)
        rows.append([Cell(small, [name]), *(Cell(heat(map_)) for map_ in enlarge(maps, side, interpolation))])
        if threshold is not None:
            kept = enlarge(keep_mass(maps, threshold), side)
            rows.append([None, *(Cell(_dim(small, mask)) for mask in kept)])
    patches = attention[0].grid
    heads = ["image", *(f"head {number + 1}" for number in range(attention[0].weights.shape[1])), "mean of heads"]
    who = "the class token" if attention[0].of_class_token else "all tokens in the mean (there is no class token)"
    note = (
        f"Attention of {who} to {patches[0]} x {patches[1]} patches in the last block; image of {seen.x.shape[-1]} "
        "pixels. Each map from its smallest (dark) to its largest value (yellow)."
    )
    if threshold is not None:
        note += f" Below: the fewest patches that hold {100 * threshold:g} % of a map's mass."
    return picture_grid(f"{seen.label}: attention of the last block", heads, rows, note)


def _dim(picture, mask: Tensor):
    """The picture, mostly grey where the mask is 0; arrays [h, w, 3]."""
    share = _LEFT + (1 - _LEFT) * mask[..., None].numpy()
    return (picture * share + _GREY * (1 - share)).astype("uint8")
