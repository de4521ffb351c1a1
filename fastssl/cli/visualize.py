"""``fastssl visualize``: pictures of what goes on inside; for now ``views``, what an augmentation does to images."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastssl.cli import UsageError
from fastssl.configs import nearest

if TYPE_CHECKING:  # nothing heavy is imported before the arguments are known to make sense
    from torch import Tensor

    from fastssl.augment import ViewParameters

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
_EXTRA = ("jsonargparse", "PIL", "lightning")
_LARGEST_SOURCE = 4096  # pixels of the short side: pictures beyond twice that are decoded smaller


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: arguments after `fastssl visualize`.

    Returns:
        Exit status: 0, 1 where the training extra is missing or a picture cannot be read, 2 for arguments that make no
        sense.
    """
    arguments = list(argv)
    if (
        not arguments
        or arguments[0] in ("-h", "--help")
        or arguments in (["views"], ["views", "-h"], ["views", "--help"])
    ):
        print(_usage(), end="")
        return 0
    if arguments[0] != "views":
        print(f"fastssl visualize: no picture {arguments[0]!r}; {nearest(arguments[0], ['views'])}", file=sys.stderr)
        return 2
    name, rest = arguments[1], arguments[2:]
    if name not in TRANSFORMS:
        print(f"fastssl visualize views: no transform {name!r}; {nearest(name, list(TRANSFORMS))}", file=sys.stderr)
        return 2
    missing = [module for module in _EXTRA if find_spec(module) is None]
    if missing:
        print(
            f'fastssl visualize needs the training extra: pip install "fastssl[train]" (missing: {", ".join(missing)})',
            file=sys.stderr,
        )
        return 1
    from fastssl.data.decode import UnreadableImage

    try:
        return _views(name, rest)
    except (UsageError, UnreadableImage) as error:
        print(f"fastssl visualize views: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _usage() -> str:
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


def _parser(name: str) -> Any:
    import jsonargparse

    from fastssl import augment

    class Parser(jsonargparse.ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> Any:
            line = " ".join(message.split())
            known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
            unknown = re.search(r"nrecognized arguments?:? (--[^\s=]+)", line)
            raise UsageError(f"no option {unknown[1]!r}; {nearest(unknown[1], known)}" if unknown else line)

    parser = Parser(prog=f"fastssl visualize views {name}", description="Write a contact sheet of random views.")
    parser.add_argument("--data", type=str, nargs="+", default=["photos"], help='"photos", a folder, or picture files')
    parser.add_argument(
        "--images", type=int, default=8, help="rows: at most so many images, evenly spread over the data"
    )
    parser.add_argument("--seed", type=int, default=0, help="with the epoch and an image's place the key of its views")
    parser.add_argument("--epoch", type=int, default=0, help="counted from 0")
    parser.add_argument("--out", type=Path, default=Path("views.png"), help="the PNG file to write")
    parser.add_argument("--overwrite", action="store_true", help="write over a file that is there")
    parser.add_class_arguments(getattr(augment, TRANSFORMS[name]), "transform")
    return parser


def _views(name: str, arguments: list[str]) -> int:
    parser = _parser(name)
    options = parser.parse_args(arguments)
    for option, bits in (("seed", 64), ("epoch", 32)):
        if not 0 <= options[option] < 2**bits:
            raise UsageError(f"--{option} must be in [0, 2^{bits}), got {options[option]}")
    if options.images < 1:
        raise UsageError(f"--images must be at least 1, got {options.images}")
    if options.out.suffix.lower() != ".png":
        raise UsageError(f"--out must end in .png, got {str(options.out)!r}")
    if options.out.exists() and not options.overwrite:
        raise UsageError(f"--out: {str(options.out)!r} is there already; give another name, or --overwrite")
    try:
        # The first name since jsonargparse 4.49, the second before.
        transform = (getattr(parser, "instantiate", None) or parser.instantiate_classes)(options).transform
    except (TypeError, ValueError) as error:
        raise UsageError(" ".join(str(error).split())) from None
    files, index = _choose(list(options.data), options.images)

    import torch

    from fastssl.cli.contact_sheet import Row, contact_sheet
    from fastssl.data import ImageList, read_image

    images = ImageList(read_image(file, _LARGEST_SOURCE) for file in files)
    key = {"seed": options.seed, "epoch": options.epoch, "index": torch.tensor(index)}
    views, parameters = transform(images, **key, channels="first", return_parameters=True)
    pixels = [_pixels(view, transform.plans()[0].statistics) for view in views]
    rows = [
        Row(
            file.stem,
            images[number],
            [view[number] for view in pixels],
            [_box(drawn[number]) for drawn in parameters],
            [_words(drawn[number]) for drawn in parameters],
        )
        for number, file in enumerate(files)
    ]
    # As it was typed: what a default is, a parser does not say of nested options.
    typed = re.findall(r"--transform\.(\S+?)[= ](\S+)", " ".join(arguments))
    given = ", ".join(f"{option}={value}" for option, value in typed)
    title = f"{TRANSFORMS[name]}({given})   seed {options.seed}, epoch {options.epoch}"
    sheet = contact_sheet(title, rows)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(options.out)
    except OSError as error:
        raise UsageError(f"--out: cannot write {str(options.out)!r}: {error.strerror}") from None
    print(f"{len(images)} images, {len(views)} view{'s' * (len(views) > 1)} each: {options.out}")
    return 0


def _choose(data: list[str], count: int) -> tuple[list[Path], list[int]]:
    """At most `count` of the files that `--data` means, and their places among all of them."""
    from fastssl.data.folder import find_pictures
    from fastssl.data.photos import find_photos

    if data == ["photos"]:
        files = list(find_photos().values())
    elif len(data) == 1 and Path(data[0]).expanduser().is_dir():
        files = [Path(file) for file in find_pictures(Path(data[0]).expanduser())]
        if not files:
            raise UsageError(f"--data: no picture in the folder {data[0]!r}")
    else:
        files = [Path(file).expanduser() for file in data]
        for file in files:
            if not file.is_file():
                raise UsageError(f'--data must be "photos", a folder or picture files, there is no file {str(file)!r}')
    last = len(files) - 1
    places = range(len(files)) if last < count else [round(last * n / max(1, count - 1)) for n in range(count)]
    return [files[place] for place in places], list(places)


def _pixels(view: Tensor, statistics: tuple[Sequence[float], Sequence[float]] | None) -> Tensor:
    """uint8 [B, C, h, w] of normalised numbers."""
    if statistics is not None:
        mean, std = (view.new_tensor(values)[:, None, None] for values in statistics)
        view = view * std + mean
    return (view.clamp(0, 1) * 255).round().byte()


def _box(drawn: ViewParameters) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of one image's crop."""
    top, left, height, width = (float(x) for x in (drawn.top, drawn.left, drawn.height, drawn.width))
    return left, top, left + width, top + height


def _words(drawn: ViewParameters) -> str:
    """What happened to one image, shortly."""
    words = ["flip"] * bool(drawn.horizontal_flip) + ["upside down"] * bool(drawn.vertical_flip)
    words += [f"turn {90 * int(drawn.quarter_turns)}"] * bool(drawn.quarter_turns)
    for step, numbers in drawn.steps(0):
        if step in ("brightness", "contrast", "saturation", "hue"):
            words += ["colours"] * ("colours" not in words)
        elif step == "blur":
            words.append(f"blur {numbers['sigma']:.1f}")
        else:
            words.append({"grayscale": "grey", "solarize": "solarised"}.get(step, step))
    return ", ".join(words)
