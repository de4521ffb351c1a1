"""What the pictures of encoders share: options, the encoder, and the images as it sees them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastssl.cli import UsageError
from fastssl.cli.visualize.options import check_shared, choose, make_parser, read

if TYPE_CHECKING:  # nothing heavy is imported before the arguments are known to make sense
    from jsonargparse import ArgumentParser, Namespace
    from torch import Tensor, nn

_CELL = 224  # pixels of a picture on the sheet, about


def encoder_parser(picture: str, description: str) -> ArgumentParser:
    """A parser with the options that pictures of encoders have."""
    parser = make_parser(picture, description, images=6)
    parser.add_argument(
        "source", type=str, help="checkpoint, folder of a run, exported .safetensors, or name of a timm model"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights of a timm model that is not pretrained")
    parser.add_argument(
        "--size", type=int, default=480, help="side of the images in pixels, rounded down to whole patches"
    )
    parser.add_argument(
        "--interpolation", choices=["nearest", "bilinear"], default="nearest", help="how maps of patches become pixels"
    )
    parser.add_argument(
        "--pretrained", action="store_true", help="published weights of a timm model, from timm's cache or by download"
    )
    return parser


class Seen(NamedTuple):
    """An encoder, and images as it sees them.

    Attributes:
        label: of the encoder.
        backbone: in evaluation mode.
        x: normalised, float32 [B, 3, side, side].
        pictures: the same as uint8, [B, 3, side, side].
        names: of the images.
    """

    label: str
    backbone: nn.Module
    x: Tensor
    pictures: Tensor
    names: list[str]


def see(options: Namespace) -> Seen:
    """Load what the options name; the central squares of the images at ``--size``."""
    check_shared(options)
    if options.size < 1:
        raise UsageError(f"--size must be at least 1, got {options.size}")
    files, _ = choose(list(options.data), options.images)

    import warnings

    import torch

    from fastssl.models.encoder import load_encoder
    from fastssl.models.patches import whole_patches
    from fastssl.report.drawing import denormalize

    warnings.filterwarnings("ignore", module=r"timm\.")  # of interpolating positions, its own affair
    torch.manual_seed(options.seed)
    try:
        encoder = load_encoder(options.source, pretrained=options.pretrained)
        encoder.resize(whole_patches(encoder.backbone, options.size))
    except ValueError as error:
        message = str(error)
        raise UsageError(f"--{message}" if message.startswith(("size", "pretrained")) else message) from None
    x = encoder.transform(read(files, options.size), channels="first")
    where = options.source if Path(options.source).expanduser().exists() else ""
    what = where or ("published weights" if options.pretrained else "untrained")
    label = f"{encoder.label} ({what})"
    return Seen(label, encoder.backbone, x, denormalize(x, encoder.statistics), [file.stem for file in files])


def run(seen: Seen, compute: Any) -> list[Any]:
    """What `compute` makes of each image, one at a time, since large ones take much memory."""
    try:
        return [compute(seen.backbone, image[None]) for image in seen.x]
    except ValueError as error:
        raise UsageError(str(error)) from None
    except (AssertionError, RuntimeError) as error:  # how models say that they are built for another size
        reason = " ".join(str(error).split())
        raise UsageError(f"--size: {seen.label} takes no images of {seen.x.shape[-1]} pixels: {reason}") from None


def cell_size(grid: tuple[int, int]) -> int:
    """Side of a picture on the sheet: a whole multiple of the patches, so that each is as large as the others."""
    most = max(grid)
    return most * max(1, round(_CELL / most))


def shrink(picture: Tensor, size: int) -> Any:
    """uint8 [3, H, W] as an array [size, size, 3]."""
    import numpy as np
    from PIL import Image

    from fastssl.report.drawing import picture_of

    return np.asarray(picture_of(picture).resize((size, size), Image.Resampling.LANCZOS))
