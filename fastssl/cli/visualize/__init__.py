"""``fastssl visualize``: pictures of what goes on inside: random views, attention, features of patches, masks."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from fastssl.cli import UsageError
from fastssl.configs import nearest

PICTURES = {
    "views": "what the random views of an augmentation look like",
    "attention": "where the last block of a vision transformer looks, head by head",
    "pca": "three principal components of the features of patches, as colours",
    "reconstruction": "masked images, and what MAE or SimMIM predicts",
}
_EXTRA = ("jsonargparse", "PIL", "lightning", "timm", "matplotlib")


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: arguments after `fastssl visualize`.

    Returns:
        Exit status: 0, 1 where the training extra is missing or a picture cannot be read, 2 for arguments that make no
        sense.
    """
    arguments = list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(), end="")
        return 0
    picture, *rest = arguments
    if picture not in PICTURES:
        print(f"fastssl visualize: no picture {picture!r}; {nearest(picture, list(PICTURES))}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"fastssl.cli.visualize.{picture}")
    if not rest or rest in (["-h"], ["--help"]):
        print(module.usage(), end="")
        return 0
    try:
        module.check(rest)
        missing = [name for name in _EXTRA if find_spec(name) is None]
        if missing:
            words = f'needs the training extra: pip install "fastssl[train]" (missing: {", ".join(missing)})'
            print(f"fastssl visualize {words}", file=sys.stderr)
            return 1
        from fastssl.data.decode import UnreadableImage
    except UsageError as error:
        return _refuse(picture, error, 2)
    try:
        return module.draw(rest)
    except UsageError as error:
        return _refuse(picture, error, 2)
    except UnreadableImage as error:
        return _refuse(picture, error, 1)


def _refuse(picture: str, error: Exception, status: int) -> int:
    print(f"fastssl visualize {picture}: {error}", file=sys.stderr)
    return status


def _usage() -> str:
    pictures = "\n".join(f"  {name:<14} {line}" for name, line in PICTURES.items())
    return (
        "usage: fastssl visualize <picture> ... [options]\n\n"
        "Write a picture of what goes on inside as a PNG file.\n\n"
        f"pictures:\n{pictures}\n\n"
        "examples:\n"
        "  fastssl visualize views dino --data ~/pictures --out views.png\n"
        "  fastssl visualize attention runs/dino_photos/1 --images 4 --out attention.png\n"
        "  fastssl visualize pca runs/dino_photos/1 --foreground --out pca.png\n"
        "  fastssl visualize reconstruction runs/mae_photos/1 --out reconstruction.png\n"
        "  fastssl visualize attention --help   about one of them\n"
    )
