"""``fastssl visualize reconstruction``: images, what a mask leaves of them, and what a masked autoencoder predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastssl.cli import UsageError
from fastssl.cli.visualize.encoders import cell_size
from fastssl.cli.visualize.options import check_shared, choose, make_parser, read, save

if TYPE_CHECKING:  # nothing heavy is imported before the arguments are known to make sense
    from jsonargparse import ArgumentParser

_GREY = 0.5  # of what the mask hides


def usage() -> str:
    """About this picture."""
    return (
        "usage: fastssl visualize reconstruction <source> [--data photos|FOLDER|FILE ...] [options]\n\n"
        "Write each image beside what a mask leaves of it, what the method predicts, and the prediction with the\n"
        "visible patches put back (He et al. 2022, figure 2).\n\n"
        "source: a checkpoint of fastssl fit mae or simmim, or the folder of a run\n\n"
        "examples:\n"
        "  fastssl visualize reconstruction runs/mae_photos/1\n"
        "  fastssl visualize reconstruction runs/mae_photos/1 --seed 7 --data ~/pictures/horses --out horses.png\n"
        "  fastssl visualize reconstruction runs/mae_photos/1 --help    all options\n"
    )


def check(arguments: list[str]) -> None:
    """Nothing can be known to be wrong before the options are parsed."""


def _parser() -> ArgumentParser:
    parser = make_parser("reconstruction", "Write what a masked autoencoder makes of masked images.", images=6)
    parser.add_argument("source", type=str, help="checkpoint, or folder of a run, of mae or simmim")
    parser.add_argument("--seed", type=int, default=0, help="of the masks")
    return parser


def draw(arguments: list[str]) -> int:
    """Draw what the arguments after the picture's name ask for."""
    options = _parser().parse_args(arguments)
    check_shared(options)
    files, _ = choose(list(options.data), options.images)

    import torch

    from fastssl.methods.base import load
    from fastssl.report.drawing import denormalize
    from fastssl.report.grid import Cell, picture_grid

    try:
        method: Any = load(options.source)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not hasattr(method, "reconstruct"):
        raise UsageError(f"source must be a run of mae or simmim, got one of {type(method).__name__}")
    size = method.hparams["size"]
    method.hparams["seed"] = options.seed
    x = method.eval_transform(read(files, size), channels="first")
    predicted, mask = method.reconstruct(x, torch.arange(len(x)))
    rows, columns = method.grid
    hidden = mask.view(-1, 1, rows, columns).repeat_interleave(size // rows, 2).repeat_interleave(size // columns, 3)
    encoder = method.encoder()
    pictures, predictions = (denormalize(images, encoder.statistics) for images in (x, predicted))
    hidden = hidden.bool().expand_as(pictures)
    grey = torch.full_like(pictures, round(255 * _GREY))
    columns_of = (
        pictures,
        torch.where(hidden, grey, pictures),
        predictions,
        torch.where(hidden, predictions, pictures),
    )
    side = size * max(1, cell_size((rows, columns)) // size)

    def enlarged(picture: torch.Tensor) -> Cell:
        return Cell(
            picture.repeat_interleave(side // size, 1).repeat_interleave(side // size, 2).permute(1, 2, 0).numpy()
        )

    cells = [[enlarged(picture) for picture in line] for line in zip(*columns_of, strict=True)]
    cells = [[line[0]._replace(captions=[file.stem]), *line[1:]] for file, line in zip(files, cells, strict=True)]
    note = (
        f"{rows} x {columns} patches of an image of {size} pixels, {100 * mask.mean():.0f} % of them masked; masks of "
        f"seed {options.seed}."
    )
    if method.hparams.get("norm_pix_loss"):
        note += (
            " Each predicted patch has the mean and the deviation of the true one, since normalised ones were learnt."
        )
    heads = ["image", "what is left", "prediction", "with what is left"]
    save(picture_grid(f"{encoder.label} ({options.source}): reconstruction", heads, cells, note), options.out)
    print(f"{len(files)} images, {100 * mask.mean():.0f} % of {rows} x {columns} patches masked: {options.out}")
    return 0
