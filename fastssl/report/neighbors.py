"""Test images and their nearest images of the bank: what a representation takes for alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastssl.data.base import ImageData
from fastssl.evaluate.features import Features
from fastssl.evaluate.subset import spread
from fastssl.report.drawing import RIGHT, WRONG, picture_of
from fastssl.report.grid import Cell, picture_grid
from fastssl.report.samples import images_of

_QUERIES, _NEIGHBORS = 8, 8
_SIDE = 104  # pixels of a picture
_BLOCK = 65536  # rows of the bank at a time


def nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k rows of the bank with the largest cosine to each query.

    Args:
        queries: float [Q, D].
        bank: float [N, D].
        k: at most N are found.

    Returns:
        Positions int64 [Q, k] and cosines [Q, k], from the largest on.
    """
    queries = F.normalize(queries.float(), dim=1)
    best, place = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    for first in range(0, len(bank), _BLOCK):
        cosine = queries @ F.normalize(bank[first : first + _BLOCK].float(), dim=1).T
        best = torch.cat([best, cosine], 1)
        place = torch.cat([place, torch.arange(first, first + cosine.shape[1]).expand(len(queries), -1)], 1)
        best, order = best.topk(min(k, best.shape[1]), dim=1)
        place = place.gather(1, order)
    return place, best


def gallery(data: ImageData, bank: Features, test: Features, class_names: Sequence[str]) -> Image.Image:
    """Queries evenly spread over the test images, each with its nearest images of the bank.

    Raises:
        ValueError: if there are no images, or a feature of all of them is not finite.
    """
    usable = test.x.isfinite().all(1).nonzero()[:, 0]
    if not len(usable) or not len(bank.x) or not bank.x.isfinite().any():
        raise ValueError("there are no features that are finite numbers")
    queries = usable[spread(len(usable), _QUERIES)]
    # A row that is not finite is nobody's neighbour.
    keys = torch.where(bank.x.isfinite().all(1, keepdim=True), bank.x, 0.0)
    places, cosines = nearest(test.x[queries], keys, _NEIGHBORS)
    asked = images_of(data, "test", queries.tolist(), len(test.x))
    found = images_of(data, "bank", places.flatten().tolist(), len(bank.x))
    rows = []
    known = right = 0
    for number, query in enumerate(queries.tolist()):
        truth = int(test.label[query])
        cells = [Cell(thumbnail(asked[query]), [_name(truth, class_names)])]
        for place, cosine in zip(places[number].tolist(), cosines[number].tolist(), strict=True):
            label = int(bank.label[place])
            frame = None
            if truth >= 0 and label >= 0:
                frame = RIGHT if label == truth else WRONG
                known, right = known + 1, right + (label == truth)
            cells.append(Cell(thumbnail(found[place]), [f"{cosine:.3f} {_name(label, class_names)}".rstrip()], frame))
        rows.append(cells)
    count = places.shape[1]
    note = "The number is the cosine of the two representations h."
    if known:
        note += f" Green: of the same class ({right} of {known}), orange: of another."
    heads = ["test image", *(f"neighbour {number + 1}" for number in range(count))]
    return picture_grid("Nearest training images", heads, rows, note)


def _name(label: int, class_names: Sequence[str]) -> str:
    return "" if label < 0 else class_names[label] if label < len(class_names) else str(label)


def thumbnail(image: Tensor) -> np.ndarray:
    """uint8 [C, H, W] to fit into a square: large ones reduced, small ones enlarged by a whole factor."""
    picture = picture_of(image)
    longest = max(picture.size)
    if longest <= _SIDE // 2:
        zoom = _SIDE // longest
        return np.asarray(picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST))
    width, height = (max(1, round(side * _SIDE / longest)) for side in picture.size)
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0))
