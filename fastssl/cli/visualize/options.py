"""What the pictures share: the options, the images that ``--data`` means, and writing the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastssl.cli import UsageError
from fastssl.configs import nearest

if TYPE_CHECKING:  # nothing heavy is imported before the arguments are known to make sense
    from jsonargparse import ArgumentParser, Namespace
    from PIL.Image import Image

    from fastssl.data import ImageList


def make_parser(picture: str, description: str, images: int) -> ArgumentParser:
    """A parser with the options that all pictures have.

    Args:
        picture: its name, and what follows it on the command line.
        description: for the help.
        images: rows, unless told otherwise.
    """
    from fastssl.cli.parsing import Parser

    parser = Parser(prog=f"fastssl visualize {picture}", description=description)
    parser.add_argument("--data", type=str, nargs="+", default=["photos"], help='"photos", a folder, or picture files')
    parser.add_argument(
        "--images", type=int, default=images, help="rows: at most so many images, evenly spread over the data"
    )
    parser.add_argument("--out", type=Path, default=Path(f"{picture.split()[0]}.png"), help="the PNG file to write")
    parser.add_argument("--overwrite", action="store_true", help="write over a file that is there")
    return parser


def check_shared(options: Namespace) -> None:
    """Raise :class:`UsageError` where an option of :func:`make_parser`, or the seed, is out of range."""
    if not 0 <= options.seed < 2**64:
        raise UsageError(f"--seed must be in [0, 2^64), got {options.seed}")
    if options.images < 1:
        raise UsageError(f"--images must be at least 1, got {options.images}")
    if options.out.suffix.lower() != ".png":
        raise UsageError(f"--out must end in .png, got {str(options.out)!r}")
    if options.out.exists() and not options.overwrite:
        raise UsageError(f"--out: {str(options.out)!r} is there already; give another name, or --overwrite")


def choose(data: list[str], count: int) -> tuple[list[Path], list[int]]:
    """At most `count` of the files that ``--data`` means, evenly spread, and their places among all of them."""
    from fastssl.data.folder import find_pictures
    from fastssl.data.photos import find_photos
    from fastssl.evaluate.subset import spread

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
                beside = sorted(entry.name for entry in file.parent.iterdir()) if file.parent.is_dir() else []
                raise UsageError(
                    f'--data must be "photos", a folder or picture files, there is no file {str(file)!r}; '
                    + nearest(file.name, ["photos", *(name for name in beside if not name.startswith("."))])
                )
    places = spread(len(files), count).tolist()
    return [files[place] for place in places], places


def read(files: list[Path], size: int) -> ImageList:
    """The pictures, the large ones reduced while their short side stays at least `size` pixels."""
    from fastssl.data import ImageList, read_image

    return ImageList(read_image(file, size) for file in files)


def save(sheet: Image, out: Path) -> None:
    """Write the file, and the folders above it."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(out, "PNG")
    except OSError as error:
        raise UsageError(f"--out: cannot write {str(out)!r}: {error.strerror}") from None
