"""Archives of published data sets: fetched when they are asked for, with a line about it, and never else."""

from __future__ import annotations

import logging
import os
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)


class Archive(NamedTuple):
    """A published archive.

    Attributes:
        url: where it is.
        md5: of the file.
        folder: the one that it contains.
    """

    url: str
    md5: str
    folder: str


def find_or_fetch(name: str, archive: Archive, root: Path, *, download: bool) -> Path:
    """The folder of a data set: the one that is there, or else, only with `download`, that of the archive.

    It appears at once and complete, also when the process is killed in the middle; of several processes one fetches and
    the others wait.

    Args:
        name: how messages begin.
        archive: which holds the folder.
        root: where the folder is or will be; or the folder itself.
        download: whether the archive may be fetched. A warning in the log says so, with address and size.

    Raises:
        FileNotFoundError: if there is no such folder, without `download`.
        OSError: if it cannot be fetched or written.
    """
    root = root.parent if root.name == archive.folder and root.is_dir() else root
    folder = root / archive.folder
    if folder.is_dir():
        return folder
    if not download:
        raise FileNotFoundError(
            f"{name}: there is no {folder}; download=True (--data.download=true) fetches it from {archive.url}"
        )
    from torchvision.datasets.utils import download_url, extract_archive

    try:
        root.mkdir(parents=True, exist_ok=True)
        with _alone(root):
            if not folder.is_dir():
                _log.warning("%s: downloading %s (%s) to %s", name, archive.url, _size(archive.url), root)
                download_url(archive.url, str(root), md5=archive.md5)
                with tempfile.TemporaryDirectory(dir=root, prefix=".extracting-") as extracted:
                    extract_archive(str(root / Path(archive.url).name), extracted)
                    os.replace(Path(extracted) / archive.folder, folder)
    except (OSError, RuntimeError) as error:  # torchvision's, for a file with another MD5
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise OSError(f"{name}: cannot download {archive.url} to {root}: {reason}") from None
    return folder


def _size(url: str) -> str:
    """Of a file on a server, in words."""
    with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=60) as answer:
        length = answer.headers.get("Content-Length")
    return f"{int(length) / 1e6:,.0f} MB" if length else "of unknown size"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process in at a time."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # and with it the lock, as when the process is killed
