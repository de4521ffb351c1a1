"""``fastssl visualize views``: what an augmentation does to images."""

from __future__ import annotations

import re
from typing import Any

from fastssl.cli import UsageError
from fastssl.cli.visualize.options import check_shared, choose, make_parser, read, save
from fastssl.configs import nearest

# Names in fastssl.augment.
TRANSFORMS = {
    "simclr": "SimCLRTransform",
    "moco": "MoCoTransform",
    "byol": "BYOLTransform",
    "swav": "SwAVTransform",
    "dino": "DINOTransform",
    "mae": "MAETransform",
    "vicreg": "VICRegTransform",
}
_LARGEST_SOURCE = 4096  # pixels of the short side: pictures beyond twice that are decoded smaller


def usage() -> str:
    """About this picture."""
    return (
        "usage: fastssl visualize views <transform> [--data photos|FOLDER|FILE ...] [options]\n\n"
        "Write a contact sheet: a row per image, the image first, then its random views, to scale. Frames in the\n"
        "image show where its views come from.\n\n"
        f"transforms: {', '.join(TRANSFORMS)}\n\n"
        "examples:\n"
        "  fastssl visualize views simclr\n"
        "  fastssl visualize views dino --data ~/pictures --images 4 --seed 1 --out dino.png\n"
        "  fastssl visualize views simclr --transform.input_size 96 --data cat.jpg dog.png\n"
        "  fastssl visualize views simclr --help          all options\n"
    )


def check(arguments: list[str]) -> None:
    """Raise :class:`UsageError` for a transform that there is not."""
    if arguments[0] not in TRANSFORMS:
        raise UsageError(f"no transform {arguments[0]!r}; {nearest(arguments[0], list(TRANSFORMS))}")


def _parser(name: str) -> Any:
    from fastssl import augment

    parser = make_parser(f"views {name}", "Write a contact sheet of random views.", images=8)
    parser.add_argument("--seed", type=int, default=0, help="with the epoch and an image's place the key of its views")
    parser.add_argument("--epoch", type=int, default=0, help="counted from 0")
    parser.add_class_arguments(getattr(augment, TRANSFORMS[name]), "transform")
    return parser


def draw(arguments: list[str]) -> int:
    """Draw what the arguments after the picture's name ask for."""
    name, *rest = arguments
    from fastssl.cli.parsing import instantiate

    parser = _parser(name)
    options = parser.parse_args(rest)
    check_shared(options)
    if not 0 <= options.epoch < 2**32:
        raise UsageError(f"--epoch must be in [0, 2^32), got {options.epoch}")
    transform = instantiate(parser, options).transform
    files, index = choose(list(options.data), options.images)

    from fastssl.report.contact_sheet import contact_sheet
    from fastssl.report.views import view_rows

    images, names = read(files, _LARGEST_SOURCE), [file.stem for file in files]
    rows = view_rows(transform, images, names, seed=options.seed, epoch=options.epoch, index=index)
    # As it was typed: what a default is, a parser does not say of nested options.
    typed = re.findall(r"--transform\.(\S+?)[= ](\S+)", " ".join(rest))
    given = ", ".join(f"{option}={value}" for option, value in typed)
    title = f"{TRANSFORMS[name]}({given})   seed {options.seed}, epoch {options.epoch}"
    save(contact_sheet(title, rows), options.out)
    views = len(rows[0].views)
    print(f"{len(images)} images, {views} view{'s' * (views > 1)} each: {options.out}")
    return 0
