"""Tar files of samples, as WebDataset writes them, and an index of what lies where in them.

Members whose names are equal up to the first dot of the last part are one sample: ``000/17.jpg`` and ``000/17.cls``.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from fastssl.configs import nearest
from fastssl.data.decode import UnreadableImage
from fastssl.data.pictures import Encoded

_PICTURES = ("jpg", "jpeg", "png", "webp")
_FORMAT = 1  # of the stored index


class Shard(NamedTuple):
    """What lies where in a tar file.

    Attributes:
        keys: bytes [N], name of each sample that has a picture.
        names: bytes [N], of the picture's member.
        places: int64 [N, 2], first byte of the picture, and how many there are.
        labels: int64 [N], -1 where there is none.
        broken: str [M, 2], names of what could not be read, and why.
    """

    keys: np.ndarray
    names: np.ndarray
    places: np.ndarray
    labels: np.ndarray
    broken: np.ndarray

    @classmethod
    def of(
        cls, samples: Sequence[tuple[bytes, bytes, int, int, int]] = (), broken: Sequence[tuple[str, str]] = ()
    ) -> Shard:
        """From key, name, first byte, length and label of each sample."""
        keys, names, starts, sizes, labels = zip(*samples, strict=True) if samples else ((),) * 5
        return cls(
            np.array(keys, np.bytes_),
            np.array(names, np.bytes_),
            np.array([starts, sizes], np.int64).T,
            np.array(labels, np.int64),
            np.array(broken, np.str_).reshape(-1, 2),
        )


def expand(argument: str, patterns: str | Sequence[str]) -> list[Path]:
    """Files of patterns with braces, ``{000..127}`` or ``{a,b}``, and wildcards; in order.

    Args:
        argument: its name, for messages.
        patterns: one or several.

    Raises:
        ValueError: if a pattern is the address of something that is not a file here, or matches nothing twice.
        FileNotFoundError: if a file is missing, or a wildcard matches none.
    """
    found: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if re.match(r"(\w+://|pipe:)", pattern):
            raise ValueError(f"WebDataset: {argument} must be files on this machine, got {pattern!r}")
        for name in _braces(os.path.expanduser(pattern)):
            matches = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]
            if not matches or not Path(matches[0]).is_file():
                folder = Path(name).parent
                others = sorted(path.name for path in folder.glob("*.tar")) if folder.is_dir() else []
                hint = f"; {nearest(Path(name).name, others)}" if others else f", nor any .tar file in {folder}"
                raise FileNotFoundError(f"WebDataset: {argument}: there is no file {name}{hint}")
            found += map(Path, matches)
    if len(set(found)) < len(found):
        raise ValueError(f"WebDataset: {argument} must name each file once, got {patterns!r}")
    return found


def _braces(pattern: str) -> list[str]:
    """``a{0..2}b{x,y}`` in full, from left to right; a range keeps its leading zeros."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if bounds is not None:
        first, last = (int(bound) for bound in bounds.groups())
        words = [str(number).zfill(len(bounds[1])) for number in range(first, last + 1)]
    else:
        words = match[1].split(",")
    return [rest for word in words for rest in _braces(pattern[: match.start()] + word + pattern[match.end() :])]


def index(path: Path, cache: Path) -> Shard:
    """What lies in a tar file: as found earlier, or from the headers of all members.

    Args:
        path: of the tar file, which must not be compressed.
        cache: folder where the index is kept for the next time, until the file's size or time of change is another.

    Raises:
        UnreadableImage: if it is no tar file, or a compressed one.
    """
    about = path.stat()
    known = f"{_FORMAT}\0{path.resolve()}\0{about.st_size}\0{about.st_mtime_ns}"
    stored = cache / f"{path.stem}-{hashlib.sha256(known.encode()).hexdigest()[:16]}.shard.npz"
    try:
        with np.load(stored, allow_pickle=False) as file:
            return Shard(*(file[field] for field in Shard._fields))
    except Exception:  # there is none, or it is damaged, which raises errors of many kinds
        pass
    shard = _scan(path)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache, suffix=".partial", delete=False) as partial:
            try:
                np.savez(partial, **shard._asdict())
                partial.flush()
                os.replace(partial.name, stored)
            except BaseException:
                os.unlink(partial.name)
                raise
    except OSError:  # then the next run reads the headers again
        pass
    return shard


def _scan(path: Path) -> Shard:
    samples: dict[str, dict[str, tuple[str, int, int]]] = {}  # member, first byte and length, by key and extension
    broken: list[tuple[str, str]] = []
    length = path.stat().st_size
    with open(path, "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    folder, _, last = member.name.rpartition("/")
                    stem, _, extension = last.partition(".")
                    if member.isfile() and stem and extension:
                        key = f"{folder}/{stem}" if folder else stem
                        place = (member.name, member.offset_data, member.size)
                        samples.setdefault(key, {})[extension.lower()] = place
        except tarfile.ReadError as error:
            if not samples:
                raise UnreadableImage(f"it is no uncompressed tar file ({error})") from None
            broken.append(("", f"it breaks off ({error})"))
        found = []
        for key, parts in samples.items():
            picture = next((parts[extension] for extension in _PICTURES if extension in parts), None)
            if picture is None:
                continue
            name, start, size = picture
            try:
                if start + size > length:
                    raise ValueError("the tar file breaks off within it")
                found.append((os.fsencode(key), os.fsencode(name), start, size, _label(file, parts)))
            except ValueError as error:
                broken.append((name, str(error)))
    return Shard.of(found, broken)


def _label(file: BinaryIO, parts: dict[str, tuple[str, int, int]]) -> int:
    """Of a sample: the number in its .cls, or that at "label" in its .json; -1 where there is neither."""
    extension = next((extension for extension in ("cls", "json") if extension in parts), None)
    if extension is None:
        return -1
    name, start, size = parts[extension]
    file.seek(start)
    try:
        content = file.read(size).decode()
        if extension == "cls":
            return int(content)
        about = json.loads(content)
        label = about.get("label") if isinstance(about, dict) else None
        return -1 if label is None else int(label)
    except (ValueError, TypeError):
        raise ValueError(f"its label in {name} is no whole number") from None


class ShardPictures(Encoded):
    """Pictures in tar files, read where they lie.

    Args:
        paths: of the tar files.
        shards: what lies where in each.
        chosen: bool [N], which of the samples of all of them are taken; None: all.
        size: see :func:`fastssl.data.decode.read_image`; `cap` likewise.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        shards: Sequence[Shard],
        chosen: np.ndarray | None = None,
        size: int | None = None,
        cap: bool = False,
    ) -> None:
        super().__init__(size, cap)
        self.paths = list(paths)
        taken = slice(None) if chosen is None else chosen
        self._shard = np.repeat(np.arange(len(shards)), [len(shard.labels) for shard in shards])[taken]
        self._name = np.concatenate([shard.names for shard in shards])[taken]
        self._place = np.concatenate([shard.places for shard in shards])[taken]

    def __len__(self) -> int:
        return len(self._shard)

    def path(self, number: int) -> Path:
        """Of the tar file, and the member in it."""
        return self.paths[self._shard[number]] / os.fsdecode(bytes(self._name[number]))

    def data(self, number: int) -> bytes:
        """The picture as in a file."""
        start, size = self._place[number].tolist()
        with open(self.paths[self._shard[number]], "rb", buffering=0) as file:
            file.seek(start)
            return file.read(size)
