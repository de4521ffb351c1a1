"""`Folder`: one's own pictures, with a folder per class or without classes, whole and decoded when they are needed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal, NamedTuple

from fastssl.configs import nearest
from fastssl.data.base import ImageData
from fastssl.data.cache import cache_folder, cache_in_memory, cache_on_disk
from fastssl.data.pictures import Files, Labels, OnError, Pictures, Source, check_choice, check_options, held_out

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


def nearest_folder(path: Path) -> str:
    """The end of a message about a folder that is missing: which there are, in the place where its path breaks off."""
    here = path.absolute()
    wanted = here.name
    while not here.is_dir() and here != here.parent:
        here, wanted = here.parent, here.name
    try:
        names = sorted(entry.name for entry in here.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        names = []
    return f"in {here}, {nearest(wanted, names)}" if names else f"in {here} there are none"


class _Listed(NamedTuple):
    """Files of one half, and the folder that each is in, right below that half; "" for none."""

    files: list[str]
    folders: list[str]

    @classmethod
    def below(cls, folder: Path) -> _Listed:
        files = find_pictures(folder)
        start = len(os.path.join(folder, ""))
        parts = (file[start:].rpartition(os.sep)[0].partition(os.sep)[0] for file in files)
        return cls(files, list(parts))

    def where(self, chosen: list[bool], equals: bool) -> _Listed:
        picked = [
            pair
            for pair, choice in zip(zip(self.files, self.folders, strict=True), chosen, strict=True)
            if choice == equals
        ]
        return _Listed([file for file, _ in picked], [folder for _, folder in picked])


class Folder(ImageData):
    """Pictures in a folder, at any depth. Links are followed, names that begin with a dot left out.

    What is below `root` says how it is read:

    - ``train`` and ``test`` (or ``val``): these halves.
    - Nothing of the kind, or ``train`` alone: about a share of `test_share` is kept from training, to test on. A hash
      of its path below `root` chooses a picture, so that those added later move none.
    - ``<class>/...`` right below, or right below ``train``, at least two: classes. Pictures beside them have no label.

    Batches hold whole pictures of different sizes, see :class:`fastssl.data.pictures.Pictures`: views are cropped from
    all of a picture, as in the papers.

    Args:
        root: the folder.
        size: in pixels. A picture is decoded at 1/2, 1/4 or 1/8 as long as its short side stays at least so long, which
            takes down to half the time; twice the side of the views loses nothing that can be seen. None: always whole.
        batch_size: images per step and process.
        num_workers: processes that decode; none with a cache.
        seed: key of the order of the training images.
        cap: whether a short side still longer than `size` is resized to it. None: where pictures are cached.
        cache: keep decoded pictures: "none", in memory ("ram", of each process), or in a file ("disk") that the next
            run uses again, until a picture is changed, added or removed.
        cache_dir: folder of that file; None takes fastssl in the user's cache folder.
        on_error: a picture that cannot be read: "skip" names it in a warning, lists it in `unreadable` and takes
            another one in its place; "raise" names it and ends.
        labels: "auto" takes folders for classes, see above; "none" takes all pictures without a label.
        test_share: share of the pictures to test on, where they have no folder of their own.

    Raises:
        FileNotFoundError: if the folder is missing, or there is no picture to train or to test on.
        ValueError: if an option is out of range, a test class is no training class, or a cache has no room.
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
        on_error: OnError = "skip",
        labels: Labels = "auto",
        test_share: float = 0.1,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self._name = type(self).__name__
        check_options(self._name, size, on_error, test_share)
        check_choice(self._name, "cache", cache, Cache)
        check_choice(self._name, "labels", labels, Labels)
        self.root, self.size, self.cache, self.on_error = Path(root).expanduser(), size, cache, on_error
        self.labels, self.test_share = labels, test_share
        self.cap = cache != "none" if cap is None else cap
        self.cache_dir = cache_folder(cache_dir)

    def setup(self, stage: str | None = None) -> None:
        """List the files, and fill or find their cache; once."""
        if hasattr(self, "train"):
            return
        listed = self._list()
        # Listed both before one is decoded, which may take long.
        train, test = (self._pictures(half) for half in listed)
        for pictures, half in ((train, "train"), (test, "test")):
            pictures.source = self._cached(pictures.source, half)
        self.train, self.test = train, test

    def _list(self) -> tuple[_Listed, _Listed]:
        """What to train and to test on; finds the classes."""
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"{self._name}: root must be a folder of pictures, there is no folder {self.root}; "
                f"{nearest_folder(self.root)}"
            )
        train = self.root / "train"
        test = next((self.root / name for name in ("test", "val") if (self.root / name).is_dir()), None)
        if test is not None and not train.is_dir():
            raise FileNotFoundError(f"{self._name}: {self.root} has a folder {test.name}, but none with the name train")
        folders = [entry.name for entry in self.root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
        halves = test is not None or folders == ["train"]  # or "train" is a class, of railways
        listed = _Listed.below(train if halves else self.root)
        names = sorted({*listed.folders} - {""})
        self.class_names = names if self.labels == "auto" and len(names) > 1 else []
        if test is not None:
            tested = _Listed.below(test)
            if unknown := sorted({*tested.folders} - {"", *names}) if self.class_names else []:
                raise ValueError(f"{self._name}: {test} has classes that {train} lacks: {unknown[:5]}")
        else:
            keys = [Path(file).relative_to(self.root).as_posix() for file in listed.files]
            chosen = held_out(keys, self.test_share)
            tested, listed = listed.where(chosen, True), listed.where(chosen, False)
        for half, where in ((tested, test or self.root), (listed, train if halves else self.root)):
            if not half.files:
                one = "" if half is tested or test is not None else " to train on beside the one to test on"
                raise FileNotFoundError(f"{self._name}: no picture ({', '.join(_ENDINGS)}) in {where}{one}")
        return listed, tested

    def _pictures(self, listed: _Listed) -> Pictures:
        label_of = {name: label for label, name in enumerate(self.class_names)}
        labels = [label_of.get(folder, -1) for folder in listed.folders]
        return Pictures(Files(listed.files, self.size, self.cap), labels, self.on_error, self._name)

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
            raise type(error)(f"{self._name}: {error}") from None
        except OSError as error:
            raise OSError(f"{self._name}: {error.strerror}") from None
