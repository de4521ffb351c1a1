"""Parts of a data set: places spread evenly over it, or a share of each class."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def spread(count: int, most: int) -> Tensor:
    """Places of at most `most` of `count` things, spread evenly from the first to the last: int64, ascending."""
    if count <= most:
        return torch.arange(count)
    return torch.from_numpy(np.linspace(0, count - 1, most).round().astype(np.int64))


def label_subset(label: Tensor, fraction: float, seed: int = 0) -> Tensor:
    """Places of a class-balanced share of the images, as SimCLR's semi-supervised protocol wants it.

    Of a class with n images, `fraction` n rounded to the nearest number is taken, at least one. Which ones depends on
    the labels and the seed alone, and a smaller share is part of a larger one of the same seed.

    Args:
        label: int64 [N], -1 where it is unknown: those are never taken.
        fraction: above 0, at most 1.
        seed: which images.

    Returns:
        int64, ascending.

    Raises:
        ValueError: if `fraction` is out of range or no label is known.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"label_subset: fraction must be above 0 and at most 1, got {fraction}")
    if not (label >= 0).any():
        raise ValueError(f"label_subset: label must hold known labels, got {len(label)} unknown ones")
    chosen = [places[: max(1, _share(fraction, len(places)))] for places in _shuffled_classes(label, seed)]
    return torch.cat(chosen).sort().values


def hold_out(label: Tensor, fraction: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Split known labels: places of the rest and of those held out, a share of each class, both ascending int64.

    Of a class with two or more images at least one is held out and at least one is not; a single image is not.

    Raises:
        ValueError: if `fraction` is not between 0 and 1, or nothing can be held out.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"hold_out: fraction must be between 0 and 1, got {fraction}")
    rest, held = [], []
    for places in _shuffled_classes(label, seed):
        count = min(max(1, _share(fraction, len(places))), len(places) - 1)
        held.append(places[:count])
        rest.append(places[count:])
    if not sum(map(len, held)):
        raise ValueError("hold_out: a class must have at least two images with a label, none has")
    return torch.cat(rest).sort().values, torch.cat(held).sort().values


def _share(fraction: float, count: int) -> int:
    return int(fraction * count + 0.5)


def _shuffled_classes(label: Tensor, seed: int) -> list[Tensor]:
    """Places of each class's images, in random order."""
    label = label.cpu()
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(seed))
    order = order[label[order] >= 0]
    by_class = order[label[order].argsort(stable=True)]
    return list(by_class.split(label[label >= 0].unique(return_counts=True)[1].tolist()))
