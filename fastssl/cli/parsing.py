"""What the commands share: one clear line for whatever is wrong, names for data sets and configurations."""

from __future__ import annotations

import importlib
import inspect
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import yaml

from fastssl.cli import UsageError
from fastssl.configs import nearest
from fastssl.data import DATA


class OneLine:
    """For parsers of jsonargparse: errors raise :class:`UsageError` with one line and the nearest options."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(one_line(message, self))  # type: ignore[arg-type]  # a parser, by inheritance


class Parser(OneLine, jsonargparse.ArgumentParser):
    """A parser whose errors are one line."""


def one_line(message: str, parser: jsonargparse.ArgumentParser) -> str:
    """jsonargparse's message on one line, with the nearest options where one is unknown."""
    line = " ".join(message.split())
    known = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    if unknown := re.search(r"nrecognized arguments?:? (--[^\s=]+)", line):
        return f"no option {unknown[1]!r}; {nearest(unknown[1], known)}"
    if (unknown := re.search(r"Option '([^']+)' is not accepted", line)) and 'key "data"' in line:
        return f"no option '--data.{unknown[1]}'; {nearest(f'--data.{unknown[1]}', _data_options(line))}"
    if (missing := re.search(r"the following arguments are required: (\w+(?:, \w+)*)", line)) and 'key "data"' in line:
        return f"this data set needs {' and '.join(f'--data.{name}' for name in missing[1].split(', '))}"
    if unknown := re.search(r"Key '([^']+)' is not expected|No action for key \"([^\"]+)\"", line):
        key = unknown[1] or unknown[2]
        return f"no option {key!r} in the configuration; {nearest(f'--{key}', known)}"
    return line


def _data_options(line: str) -> list[str]:
    """Options of the reader that the message is about; of all of them if it does not say."""
    paths = [path for path in DATA.values() if path in line] or list(DATA.values())
    found = {name for path in paths for name in inspect.signature(class_of(path)).parameters}
    return [f"--data.{name}" for name in sorted(found)]


def class_of(path: str) -> Any:
    """The class at a dotted path.

    Raises:
        UsageError: if there is none.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"--data: cannot import {path!r}: {error}") from None


def option(arguments: Sequence[str], name: str) -> str | None:
    """Value of the last `--name value` or `--name=value`."""
    found = None
    for word, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        if word == f"--{name}":
            found = following
        elif word.startswith(f"--{name}="):
            found = word.partition("=")[2]
    return found


def replace_option(arguments: Sequence[str], name: str, value: str) -> list[str]:
    """The arguments with another value for every `--name`."""
    inline = [f"--{name}={value}" if word.startswith(f"--{name}=") else word for word in arguments]
    pairs = zip(["", *inline], inline, strict=False)
    return [value if before == f"--{name}" else word for before, word in pairs]


def data_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments with the class in the place of a short name: `--data folder` means fastssl.data.Folder.

    Raises:
        UsageError: if it is neither a name nor the path of a class, with the names that come near.
    """
    word = option(arguments, "data")
    if word is None:
        return list(arguments)
    if word in DATA:
        return replace_option(arguments, "data", DATA[word])
    by_class = {path.rpartition(".")[2]: path for path in DATA.values()}
    if word in by_class:
        return replace_option(arguments, "data", by_class[word])
    if "." not in word or "/" in word or Path(word).exists():
        hint = "; for a folder of pictures: --data folder --data.root FOLDER" if Path(word).is_dir() else ""
        raise UsageError(f"--data must be the name of a data set, got {word!r}; {nearest(word, list(DATA))}{hint}")
    class_of(word)
    return list(arguments)


@contextmanager
def without_data_options(config: Path, data: str | None) -> Iterator[Path]:
    """A configuration to be used with another data set: without the options of its own, but those that all have.

    Otherwise options of the same name and another meaning would remain, such as the size of an image.

    Args:
        config: YAML file.
        data: path of the class that replaces its data set; None or the same: the file as it is.
    """
    try:
        recipe = yaml.safe_load(config.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--config: cannot read {str(config)!r}: {' '.join(str(error).split())}") from None
    if not isinstance(recipe, dict):
        raise UsageError(f"--config must be a YAML file with options, {str(config)!r} holds {type(recipe).__name__}")
    own = recipe.get("data") or {}
    if data is None or not isinstance(own, dict) or own.get("class_path") in (None, data):
        yield config
        return
    from fastssl.data import ImageData

    common = inspect.signature(ImageData).parameters
    kept = {name: value for name, value in (own.get("init_args") or {}).items() if name in common}
    recipe["data"] = {"class_path": data, "init_args": kept}
    with tempfile.TemporaryDirectory(prefix="fastssl-") as folder:
        path = Path(folder) / config.name
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        yield path


def instantiate(parser: jsonargparse.ArgumentParser, config: jsonargparse.Namespace) -> Any:
    """The objects that a configuration describes.

    Raises:
        UsageError: where a constructor refuses an argument.
    """
    try:
        # The first name since jsonargparse 4.49, the second before.
        return (getattr(parser, "instantiate", None) or parser.instantiate_classes)(config)
    except (TypeError, ValueError, OSError, NotImplementedError) as error:
        raise UsageError(" ".join(str(error).split())) from None
