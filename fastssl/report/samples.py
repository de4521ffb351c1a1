"""Images of a data set by the row that their features have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from fastssl.data.base import ImageData


def images_of(
    data: ImageData, half: Literal["bank", "test"], rows: Sequence[int], total: int | None = None
) -> dict[int, Tensor]:
    """Images, uint8 [C, H, W] each, by row.

    Args:
        data: after ``setup``.
        half: "bank" for the training images or "test".
        rows: which, counted as :func:`fastssl.evaluate.extract` counts them: in order, without those that cannot be
            read.
        total: how many rows there are; None: as many as images.

    Raises:
        ValueError: if the rows cannot be told from each other.
    """
    images: Any = data.train if half == "bank" else data.test
    wanted = sorted(set(rows))
    if not hasattr(images, "__getitems__"):  # a stream
        return _from_stream(data.bank_dataloader() if half == "bank" else data.test_dataloader(), wanted)
    places = _places(images, total)
    batch = images.__getitems__([places[row] for row in wanted])
    if batch.index.tolist() != [places[row] for row in wanted]:
        raise ValueError("pictures can no longer be read that could before")
    return dict(zip(wanted, batch.image, strict=True))


def _places(images: Any, total: int | None) -> Sequence[int]:
    """The place in the data set of each row."""
    if total is None or total == len(images):
        return range(len(images))
    unreadable = set(getattr(images, "unreadable", []))
    places = [place for place in range(len(images)) if not unreadable or images.source.path(place) not in unreadable]
    if len(places) != total:
        raise ValueError(f"there are features of {total} images, and {len(places)} images that can be read")
    return places


def _from_stream(batches: Any, wanted: Sequence[int]) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    seen: set[int] = set()
    missing = set(wanted)
    for batch in batches:
        for image, index in zip(batch.image, batch.index.tolist(), strict=True):
            if index in seen:
                continue
            row = len(seen)
            seen.add(index)
            if row in missing:
                found[row] = image
                missing.remove(row)
        if not missing:
            return found
    raise ValueError(f"there are {len(seen)} images, of row {min(missing)} there is none")
