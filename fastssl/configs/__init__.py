"""Training configurations that come with fastssl, by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

_FOLDER = Path(__file__).parent
_SHOWN = 12  # choices in a message


def names() -> list[str]:
    """Names of all configurations, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def path_of(name: str) -> Path:
    """The file of the configuration `name`, or `name` itself where it is the path of a file.

    Raises:
        ValueError: if there is neither, with the names that come near.
    """
    if name in names():
        return _FOLDER / f"{name}.yaml"
    if Path(name).is_file():
        return Path(name)
    raise ValueError(f"no configuration and no file {name!r}; {nearest(name, names())}")


def nearest(word: str, choices: Sequence[str]) -> str:
    """The end of an error message: what was probably meant, or else all that there is, or of much the beginning."""
    close = difflib.get_close_matches(word, choices, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    more = len(choices) - _SHOWN
    return f"choose from {', '.join(choices[:_SHOWN])}" + (f" and {more} more" if more > 0 else "")
