"""`Folder`: one's own pictures, a folder per class, whole and decoded when they are needed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

from fastssl.data.base import ImageData
from fastssl.data.cache import cache_in_memory, cache_on_disk
from fastssl.data.pictures import Files, OnError, Pictures, Source

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

Cache = Literal["none", "ram", "disk"]


def find_pictures(folder: str | Path) -> list[str]:
    """Paths of the files below a folder, at any depth, whose ending is that of a picture; sorted.

    Links are followed. Names that begin with a dot are left out: among them are the notes that some systems put beside
    each picture, with its ending.
    """
    found: list[str] = []
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(here)) in seen:  # a link to where we are already
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(here, name) for name in files if name.lower().endswith(_ENDINGS) and name[0] != "."]
    return sorted(found)


class Folder(ImageData):
    """Pictures under ``root/train/<class>/`` and ``root/test/<class>/`` (or ``val``), at any depth below the class.

    Batches hold whole pictures of different sizes, see :class:`fastssl.data.pictures.Pictures`: views are cropped from
    all of a picture, as in the papers.

    Args:
        root: the folder that holds both.
        size: in pixels. A picture is decoded at 1/2, 1/4 or 1/8 as long as its short side stays at least so long, which
            takes down to half the time; twice the side of the views loses nothing that can be seen. None: always whole.
        batch_size: images per step and process.
        num_workers: processes that decode; none with a cache.
        seed: key of the order of the training images.
        cap: whether a short side still longer than `size` is resized to it. None: where pictures are cached.
        cache: keep decoded pictures: "none", in memory ("ram", of each process), or in a file ("disk") that the next
            run uses again, until a picture is changed, added or removed.
        cache_dir: folder of that file; None takes fastssl in the user's cache folder.
        on_error: a picture that cannot be read: "raise" names it and ends, "skip" names it in a warning and takes
            another one.

    Raises:
        FileNotFoundError: if a folder is missing or holds no picture.
        ValueError: if a number is out of range, a test class is not among the training classes, or a cache has no room.
        UnreadableImage: for a picture that cannot be read, with "raise".
        OSError: if a cache cannot be written.
    """

    def __init__(
        self,
        root: str,
        size: int | None = 448,
        batch_size: int = 128,
        num_workers: int = 2,
        seed: int = 0,
        cap: bool | None = None,
        cache: Cache = "none",
        cache_dir: str | None = None,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        if size is not None and size < 1:
            raise ValueError(f"Folder: size must be at least 1, got {size}")
        for name, value, choices in (("cache", cache, Cache), ("on_error", on_error, OnError)):
            if value not in choices.__args__:  # type: ignore[attr-defined]  # a Literal has them
                words = " or ".join(f'"{choice}"' for choice in choices.__args__)  # type: ignore[attr-defined]
                raise ValueError(f"Folder: {name} must be {words}, got {value!r}")
        self.root, self.size, self.cache, self.on_error = Path(root).expanduser(), size, cache, on_error
        self.cap = cache != "none" if cap is None else cap
        caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        self.cache_dir = Path(cache_dir or caches / "fastssl").expanduser()

    def setup(self, stage: str | None = None) -> None:
        """List the files of both halves, and fill or find their cache; once."""
        if hasattr(self, "train"):
            return
        test = next((name for name in ("test", "val") if (self.root / name).is_dir()), None)
        if not (self.root / "train").is_dir() or test is None:
            raise FileNotFoundError(
                f"Folder: root must hold the folders train and test (or val) with a folder per class, got {self.root}"
            )
        self.class_names = self._classes(self.root / "train")
        unknown = sorted(set(self._classes(self.root / test)) - set(self.class_names))
        if unknown:
            raise ValueError(f"Folder: {self.root / test} has classes that {self.root / 'train'} lacks: {unknown[:5]}")
        # Listed both before one is decoded, which may take long.
        train, self.test = (self._list(self.root / half) for half in ("train", test))
        for pictures, half in ((train, "train"), (self.test, test)):
            pictures.source = self._cached(pictures.source, half)
        self.train = train

    @staticmethod
    def _classes(folder: Path) -> list[str]:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))

    def _list(self, folder: Path) -> Pictures:
        files: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(self.class_names):
            here = find_pictures(folder / name)
            files += here
            labels += [label] * len(here)
        if not files:
            raise FileNotFoundError(f"Folder: no picture ({', '.join(_ENDINGS)}) in the class folders of {folder}")
        return Pictures(Files(files, self.size, self.cap), labels, self.on_error, "Folder")

    def _cached(self, source: Source, half: str) -> Source:
        if self.cache == "none":
            return source
        assert isinstance(source, Files)
        skip = self.on_error == "skip"
        try:
            if self.cache == "ram":
                return cache_in_memory(source, skip=skip)
            key = hashlib.sha256(f"{self.root.resolve()}\0{half}\0{self.size}\0{self.cap}".encode()).hexdigest()[:12]
            name = f"{self.root.resolve().name}-{half}-{key}.images"
            return cache_on_disk(source, self.cache_dir / name, skip=skip)
        except ValueError as error:
            raise type(error)(f"Folder: {error}") from None
        except OSError as error:
            raise OSError(f"Folder: {error.strerror}") from None
