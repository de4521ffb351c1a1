"""Decoded pictures of a small set, kept in memory or in one mapped file.

The file begins with 16 bytes of magic, 32 of a fingerprint of what is cached, 8 of the number N of pictures (int64,
as all numbers here in the machine's byte order), then N heights and widths, 0 and 0 for a picture that cannot be read.
From the next multiple of 4096 on, the pixels [H, W, 3] of one picture follow those of the other.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from fastssl.data import decode
from fastssl.data.decode import UnreadableImage
from fastssl.data.pictures import Files

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_MAGIC = b"fastssl images 1"
_PAGE = 4096
_BLOCK = 64 << 20  # bytes, of the pieces in which pictures lie in memory
_SAMPLE = 32  # pictures from whose size that of all is guessed
_CHUNK = 256  # pictures in flight between the threads that decode and what stores them

_log = logging.getLogger(__name__)


def cache_folder(chosen: str | None) -> Path:
    """Where caches lie: the folder `chosen`, or else fastssl in the user's cache folder."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(chosen or caches / "fastssl").expanduser()


class CachedPictures:
    """Pictures decoded before: a :class:`fastssl.data.pictures.Source` whose images are views of large blocks.

    Args:
        files: what was cached.
        blocks: uint8, one dimension each, filled with pictures [H, W, 3] in order.
        sizes: int64 [N, 2], height and width of each, 0 where it could not be read.
        counts: pictures in each block.
        reopen: makes the same object again in another process, where that is better than sending the blocks.
    """

    in_memory = True

    def __init__(
        self,
        files: Files,
        blocks: list[Tensor],
        sizes: np.ndarray,
        counts: list[int],
        reopen: tuple[Callable[..., CachedPictures], tuple[Any, ...]] | None = None,
    ) -> None:
        self.files, self.blocks, self.sizes, self.counts, self.reopen = files, blocks, sizes, counts, reopen
        lengths = sizes.prod(1) * 3
        starts = np.cumsum(lengths) - lengths
        self._block = np.repeat(np.arange(len(blocks)), counts)
        first = np.cumsum([0, *counts[:-1]]).clip(max=max(0, len(starts) - 1))
        self._start = starts - starts[first][self._block] if len(starts) else starts

    def __len__(self) -> int:
        return len(self.sizes)

    def path(self, number: int) -> Path:
        """Of the picture's file."""
        return self.files.path(number)

    def read(self, number: int) -> Tensor:
        """uint8 [3, H, W], a view of the cache; raises :class:`UnreadableImage`."""
        height, width = self.sizes[number].tolist()
        if not height:
            raise UnreadableImage(f"cannot read {self.path(number)}: it could not be when the cache was made")
        start = int(self._start[number])
        pixels = self.blocks[self._block[number]][start : start + 3 * height * width]
        return pixels.view(height, width, 3).permute(2, 0, 1)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.reopen is not None:
            return self.reopen
        return type(self), (self.files, self.blocks, self.sizes, self.counts)


def cache_in_memory(files: Files, *, skip: bool = False) -> CachedPictures:
    """Decode all pictures into memory.

    Args:
        files: the pictures.
        skip: whether a picture that cannot be read is noted as such, instead of raising.

    Raises:
        UnreadableImage: for a picture that cannot be read, unless `skip`.
        ValueError: if they will not fit into the memory that is free.
    """
    _check_room("ram", _bytes_needed(files), _free_memory(), "memory")
    _log.info("decoding %d pictures into memory", len(files))
    blocks: list[Tensor] = []
    counts: list[int] = []
    sizes = np.zeros((len(files), 2), np.int64)
    waiting: list[Tensor] = []
    waiting_bytes = count = 0
    for number, image in enumerate(_decoded(files, skip)):
        count += 1
        if image is not None:
            sizes[number] = image.shape[1:]
            waiting.append(image.permute(1, 2, 0).reshape(-1))
            waiting_bytes += image.numel()
        if waiting_bytes >= _BLOCK or number == len(files) - 1:
            blocks.append(torch.cat(waiting) if waiting else torch.empty(0, dtype=torch.uint8))
            counts.append(count)
            waiting, waiting_bytes, count = [], 0, 0
    return CachedPictures(files, blocks, sizes, counts)


def cache_on_disk(files: Files, path: Path, *, skip: bool = False) -> CachedPictures:
    """Map the decoded pictures of an earlier call, or decode them all into the file first.

    The file is used if it is complete and its fingerprint is that of the present files: their names, sizes and times
    of change, and the options of decoding. Otherwise it is written anew, under another name until it is complete; of
    several processes one writes and the others wait.

    Args:
        files: the pictures.
        path: of the file; its folder is made where it is missing.
        skip: whether a picture that cannot be read is noted as such, instead of raising.

    Raises:
        UnreadableImage: for a picture that cannot be read, unless `skip`.
        ValueError: if the pictures will not fit onto the disk, or the system has no locks on files.
        OSError: if the file cannot be written; nothing is left behind then.
    """
    if fcntl is None:
        raise ValueError('cache must be "none" or "ram" on this system, which has no locks on files, got "disk"')
    fingerprint = fingerprint_files(files)
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while (cached := _open(files, path, fingerprint)) is None:
            with open(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # waits for whoever is writing; a killed process holds no lock
                if not _is_at(file, partial):  # it was: finished or given up
                    continue
                try:
                    _write(file, files, fingerprint, skip, path)
                    os.replace(partial, path)  # before the lock ends
                except BaseException:
                    partial.unlink(missing_ok=True)
                    raise
    except OSError as error:
        reason = f"cannot write the cache {path}: {error.strerror}; choose another cache_dir"
        raise OSError(error.errno, reason) from None
    return cached


def _reopen(files: Files, path: Path, fingerprint: bytes) -> CachedPictures:
    """In a loader process that inherits nothing."""
    if (cached := _open(files, path, fingerprint)) is None:
        raise FileNotFoundError(f"the cache {path} was changed while it was in use")
    return cached


def _open(files: Files, path: Path, fingerprint: bytes) -> CachedPictures | None:
    """The cache in the file; None unless it is complete and of these pictures."""
    try:
        with open(path, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            if file.read(16) != _MAGIC or file.read(32) != fingerprint:
                return None
            if file.read(8) != np.int64(len(files)).tobytes():
                return None
            table = file.read(16 * len(files))
    except FileNotFoundError:
        return None
    if len(table) != 16 * len(files):
        return None
    sizes = np.frombuffer(table, np.int64).reshape(-1, 2).copy()
    start = _pixels_at(len(files))
    if length != start + int(sizes.prod(1).sum()) * 3:
        return None
    # A private mapping: pages are shared with all who read the file, and who writes to an image writes to a copy.
    whole = torch.from_file(str(path), shared=False, size=length, dtype=torch.uint8)
    return CachedPictures(files, [whole[start:]], sizes, [len(files)], (_reopen, (files, path, fingerprint)))


def _write(file: BinaryIO, files: Files, fingerprint: bytes, skip: bool, path: Path) -> None:
    _check_room("disk", _bytes_needed(files), shutil.disk_usage(path.parent).free, str(path.parent))
    _log.info("decoding %d pictures into %s", len(files), path)
    sizes = np.zeros((len(files), 2), np.int64)
    file.truncate(0)
    file.seek(_pixels_at(len(files)))
    for number, image in enumerate(_decoded(files, skip)):
        if image is not None:
            sizes[number] = image.shape[1:]
            file.write(image.permute(1, 2, 0).contiguous().numpy().data)
    file.truncate()  # where nothing was written
    file.seek(0)
    file.write(_MAGIC + fingerprint + np.int64(len(files)).tobytes() + sizes.tobytes())
    file.flush()
    os.fsync(file.fileno())  # or a power failure might leave the name and not the pixels


def _decoded(files: Files, skip: bool) -> Iterator[Tensor | None]:
    """All pictures in order, decoded in threads; None for one that cannot be read, if such are skipped."""

    def read(number: int) -> Tensor | None:
        try:
            return files.read(number)
        except UnreadableImage:
            if skip:
                return None
            raise

    with ThreadPoolExecutor(_processors()) as pool:
        for start in range(0, len(files), _CHUNK):
            yield from pool.map(read, range(start, min(start + _CHUNK, len(files))))


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pixels_at(count: int) -> int:
    return -(-(56 + 16 * count) // _PAGE) * _PAGE


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def fingerprint_files(files: Files) -> bytes:
    """Digest of what decoding depends on: names, sizes and times of change, and its options."""
    decoder = "Pillow" if decode.simplejpeg is None else "simplejpeg"
    digest = hashlib.sha256(json.dumps([files.size, files.cap, decoder]).encode())
    for number in range(len(files)):
        path = files.path(number)
        try:
            about = path.stat()
            known = (about.st_size, about.st_mtime_ns)
        except OSError:
            known = (-1, -1)
        digest.update(os.fsencode(path) + b"\0%d %d\n" % known)
    return digest.digest()


def _bytes_needed(files: Files) -> int:
    """Of all decoded pictures, guessed from a few."""
    lengths = []
    for number in {round(place) for place in np.linspace(0, len(files) - 1, min(_SAMPLE, len(files))).tolist()}:
        try:
            lengths.append(files.read(number).numel())
        except UnreadableImage:
            continue
    return int(np.mean(lengths) * len(files)) if lengths else 0


def _check_room(cache: str, needed: int, free: int | None, where: str) -> None:
    if free is not None and needed > free:
        raise ValueError(
            f'cache="{cache}" needs about {needed / 2**30:.1f} GiB of {where}, {free / 2**30:.1f} GiB are free; choose '
            "another cache or a smaller size"
        )


def _free_memory() -> int | None:
    """Bytes that processes can still get without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
