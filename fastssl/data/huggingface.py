"""`huggingface`: any data set of images that the package datasets reads, from disk or, when asked for, from the Hub."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastssl.configs import nearest
from fastssl.data.base import ImageData
from fastssl.data.pictures import Encoded, Labels, OnError, Pictures, check_choice, check_options, held_out

if TYPE_CHECKING:
    from datasets import Dataset

_TEST_SPLITS = ("test", "validation", "val", "valid")

_log = logging.getLogger(__name__)


class TablePictures(Encoded):
    """Pictures in a column of a table.

    Args:
        table: of which no picture is decoded yet.
        column: with the pictures.
        rows: the numbers of those that are taken.
        where: what the table is called.
        size: see :func:`fastssl.data.decode.read_image`; `cap` likewise.
    """

    def __init__(
        self, table: Dataset, column: str, rows: np.ndarray, where: Path, size: int | None = None, cap: bool = False
    ) -> None:
        super().__init__(size, cap)
        self.table, self.column, self.rows, self.where = table, column, rows, where

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, number: int) -> Path:
        """Name of the table, and number of the row."""
        return self.where / str(self.rows[number])

    def data(self, number: int) -> bytes:
        """The picture as in a file, from the table or from a file that it names."""
        cell = self.table[int(self.rows[number])][self.column] or {}
        if cell.get("bytes") is None and cell.get("path") is None:
            raise ValueError("there is no picture in the row")
        return cell["bytes"] if cell.get("bytes") is not None else Path(cell["path"]).read_bytes()


class HuggingFace(ImageData):
    """Images of a data set of the package datasets (extra "hf").

    Pictures stay encoded and are decoded as those of :class:`fastssl.data.Folder` are, in loader processes; batches
    hold whole pictures of different sizes.

    Args:
        path: folder written by ``save_to_disk``, folder of files that ``load_dataset`` reads (Parquet, pictures, ...),
            or name on the Hub.
        name: configuration, where a data set has several.
        train_split: to train on.
        test_split: to test on; None takes "test" or "validation", or else keeps a share of `test_share` from training,
            by a hash of each row's number.
        image_column: None takes the one with images.
        label_column: of class labels, whole numbers or words; None takes the one of class labels, if there is one.
        size: a picture is decoded at 1/2, 1/4 or 1/8 as long as its short side stays at least so long; None: whole.
        batch_size: images per step and process.
        num_workers: processes that decode.
        seed: key of the order of the training images.
        cap: whether a short side still longer than `size` is resized to it.
        on_error: a picture that cannot be read: "skip" names it in a warning, lists it in `unreadable` and takes
            another one in its place; "raise" names it and ends.
        labels: "none" leaves the labels out.
        test_share: share of the pictures to test on, where they have no split of their own.
        download: whether a data set that is not on this machine is fetched from the Hub, with a line in the log about
            it. Without, nothing is asked of the network.

    Raises:
        ImportError: from ``setup`` without the extra.
        FileNotFoundError: from ``setup``, if the data set is not on this machine or cannot be fetched.
        ValueError: if an option is out of range; from ``setup``, if there is no such split or column.
        UnreadableImage: for a picture that cannot be read, with "raise".
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        train_split: str = "train",
        test_split: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        size: int | None = 448,
        batch_size: int = 128,
        num_workers: int = 2,
        seed: int = 0,
        cap: bool = False,
        on_error: OnError = "skip",
        labels: Labels = "auto",
        test_share: float = 0.1,
        download: bool = False,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        check_options("HuggingFace", size, on_error, test_share)
        check_choice("HuggingFace", "labels", labels, Labels)
        self.path, self.config, self.train_split, self.test_split = path, name, train_split, test_split
        self.image_column, self.label_column = image_column, label_column
        self.size, self.cap, self.on_error, self.labels = size, cap, on_error, labels
        self.test_share, self.download = test_share, download

    def setup(self, stage: str | None = None) -> None:
        """Open the data set, and find its images and labels; once."""
        if hasattr(self, "train"):
            return
        if find_spec("datasets") is None:
            raise ImportError('HuggingFace needs the package datasets: pip install "fastssl[hf]"')
        splits = self._load()
        test = self.test_split or next((split for split in _TEST_SPLITS if split in splits), None)
        for argument, split in (("train_split", self.train_split), ("test_split", test)):
            if split is not None and split not in splits:
                hint = nearest(split, list(splits))
                raise ValueError(f"HuggingFace: {argument} must be a split of {self.path}, got {split!r}; {hint}")
        table = splits[self.train_split]
        image, label = self._columns(table)
        labels = _Labels.of(table, label)
        self.class_names = labels.names
        rows = np.arange(len(table))
        chosen = np.array(held_out([str(row) for row in rows], self.test_share) if test is None else rows < 0)
        halves = [(self.train_split, rows[~chosen])]
        halves += [(self.train_split, rows[chosen]) if test is None else (test, np.arange(len(splits[test])))]
        if not all(len(numbers) for _, numbers in halves):
            raise ValueError(f"HuggingFace: {self.path} must have a picture to train and one to test on")
        self.train, self.test = (
            self._pictures(splits[split], split, image, labels, numbers) for split, numbers in halves
        )

    def _pictures(self, table: Dataset, split: str, image: str, labels: _Labels, rows: np.ndarray) -> Pictures:
        import datasets

        if image not in table.column_names:
            raise ValueError(
                f"HuggingFace: the split {split!r} must have the column {image!r}, it has {table.column_names}"
            )
        values = labels.read(table)[rows]
        table = table.select_columns([image]).cast_column(image, datasets.Image(decode=False)).with_format(None)
        source = TablePictures(table, image, rows, Path(self.path) / split, self.size, self.cap)
        return Pictures(source, values, self.on_error, "HuggingFace")

    def _columns(self, table: Dataset) -> tuple[str, str | None]:
        """Names of the column with images, and of that with labels, if there is one."""
        import datasets

        def find(argument: str, chosen: str | None, kind: type) -> str | None:
            fitting = [name for name, feature in table.features.items() if isinstance(feature, kind)]
            if chosen is not None:
                if chosen not in table.features:
                    hint = nearest(chosen, list(table.features))
                    raise ValueError(f"HuggingFace: {argument} must be a column of {self.path}, got {chosen!r}; {hint}")
                return chosen
            if len(fitting) > 1:
                raise ValueError(f"HuggingFace: {argument} must be one of {', '.join(fitting)}, got None")
            return fitting[0] if fitting else None

        image = find("image_column", self.image_column, datasets.Image)
        if image is None or not isinstance(table.features[image], datasets.Image):
            about = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in table.features.items())
            raise ValueError(f"HuggingFace: {self.path} must have a column of type Image, it has {about}")
        if self.labels == "none":
            return image, None
        return image, find("label_column", self.label_column, datasets.ClassLabel)

    def _load(self) -> dict[str, Dataset]:
        """All splits."""
        import datasets

        folder = Path(self.path).expanduser()
        try:
            if folder.is_dir():
                with _offline():
                    if any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
                        found = datasets.load_from_disk(str(folder))
                    else:
                        found = datasets.load_dataset(str(folder), self.config)
            else:
                found = self._from_hub()
        except ImportError:
            raise
        except Exception as error:  # of many kinds
            raise FileNotFoundError(f"HuggingFace: cannot load {self.path!r}: {' '.join(str(error).split())}") from None
        return dict(found) if isinstance(found, dict) else {self.train_split: found}

    def _from_hub(self) -> Any:
        import datasets

        try:
            with _offline():
                return datasets.load_dataset(self.path, self.config)
        except Exception as error:
            if not self.download:
                raise FileNotFoundError(
                    "there is no such folder, and no copy of such a data set from the Hub on this machine; "
                    f"download=True (--data.download=true) fetches it from {datasets.config.HF_ENDPOINT} ({error})"
                ) from None
        size = datasets.load_dataset_builder(self.path, self.config).info.download_size
        words = f"{size / 1e6:,.0f} MB" if size else "of unknown size"
        address = f"{datasets.config.HF_ENDPOINT}/datasets/{self.path}"
        _log.warning("HuggingFace: downloading %s (%s) to %s", address, words, datasets.config.HF_DATASETS_CACHE)
        return datasets.load_dataset(self.path, self.config)


class _Labels(NamedTuple):
    """How labels are read from tables.

    Attributes:
        column: of a table; None: there are no labels.
        names: of the classes.
        label_of: label of each value in the column.
    """

    column: str | None
    names: list[str]
    label_of: dict[Any, int]

    @classmethod
    def of(cls, table: Dataset, column: str | None) -> _Labels:
        """From the table to train on."""
        import datasets

        if column is None:
            return cls(None, [], {})
        feature = table.features[column]
        if isinstance(feature, datasets.ClassLabel):
            return cls(column, list(feature.names), {number: number for number in range(feature.num_classes)})
        values = sorted({value for value in _values(table, column) if value not in (None, -1)})
        if not all(isinstance(value, (int, str)) for value in values):
            raise ValueError(
                f"HuggingFace: label_column must hold class labels, whole numbers or words, {column!r} is {feature}"
            )
        return cls(column, [str(value) for value in values], {value: number for number, value in enumerate(values)})

    def read(self, table: Dataset) -> np.ndarray:
        """int64 [N], of each row: -1 for one that is empty or negative."""
        if self.column is None:
            return np.full(len(table), -1)
        known = self.label_of | {None: -1, -1: -1}
        values = _values(table, self.column)
        unknown = sorted({str(value) for value in values if value not in known})
        if unknown:
            raise ValueError(f"HuggingFace: there are classes that the split to train on lacks: {unknown[:5]}")
        return np.array([known[value] for value in values], np.int64)


def _values(table: Dataset, column: str) -> list[Any]:
    return table.select_columns([column]).with_format(None)[:][column]


@contextmanager
def _offline() -> Iterator[None]:
    """Let the package datasets ask nothing of the network, whatever the environment said when it was imported."""
    import datasets
    import huggingface_hub

    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
