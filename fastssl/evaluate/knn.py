"""Weighted k-nearest-neighbour classification (Wu et al. 2018, "Unsupervised feature learning via non-parametric
instance discrimination", section 3.4), as the papers of the field report it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl import backends, ops  # noqa: F401 - ops registers the operators
from fastssl.evaluate.features import Features

_GATHERED = 1 << 24  # numbers of neighbours' features in memory at a time


@torch.no_grad()
def knn_predict(bank: Features, queries: Tensor, num_classes: int, k: int = 20, temperature: float = 0.07) -> Tensor:
    """Classify by a vote of the nearest neighbours in cosine similarity c, each with weight exp(c / temperature).

    Args:
        bank: labelled features, [N, D].
        queries: floating point [M, D], on the same device.
        num_classes: labels are 0 to num_classes - 1.
        k: neighbours that vote; all of the bank where it holds fewer.
        temperature: above 0; the smaller, the more the nearest count.

    Returns:
        int64 [M].

    Raises:
        ValueError: if shapes do not fit or a number is out of range.
    """
    return next(_predict(bank, queries, num_classes, [k], temperature))


def knn_accuracy(train: Features, test: Features, num_classes: int, k: int = 20, temperature: float = 0.07) -> float:
    """Share of the test images, in [0, 1], that :func:`knn_predict` classifies rightly."""
    return knn_accuracies(train, test, num_classes, [k], temperature)[k]


@torch.no_grad()
def knn_accuracies(
    train: Features, test: Features, num_classes: int, ks: Sequence[int] = (10, 20, 100, 200), temperature: float = 0.07
) -> dict[int, float]:
    """:func:`knn_accuracy` for several k, from one search for the most neighbours."""
    predicted = zip(ks, _predict(train, test.x, num_classes, ks, temperature), strict=True)
    return {k: (labels == test.label).float().mean().item() for k, labels in predicted}


def _predict(
    bank: Features, queries: Tensor, num_classes: int, ks: Sequence[int], temperature: float
) -> Iterator[Tensor]:
    """Predictions [M] for each of `ks`."""
    if bank.x.ndim != 2 or queries.ndim != 2 or bank.x.shape[1] != queries.shape[1] or not len(bank.x):
        raise ValueError(
            f"knn_predict: bank and queries must be [N >= 1, D] and [M, D], "
            f"got {tuple(bank.x.shape)} and {tuple(queries.shape)}"
        )
    for name, value in (("num_classes", num_classes), *(("k", k) for k in ks)):
        if value < 1:
            raise ValueError(f"knn_predict: {name} must be at least 1, got {value}")
    if not temperature > 0:
        raise ValueError(f"knn_predict: temperature must be above 0, got {temperature}")
    if bank.label.min() < 0 or bank.label.max() >= num_classes:
        raise ValueError(
            f"knn_predict: labels of the bank must be in [0, {num_classes}), "
            f"got {int(bank.label.min())} to {int(bank.label.max())}"
        )
    if not len(queries):  # the operator takes no empty ones
        yield from (bank.label.new_empty(0) for _ in ks)
        return
    keys, rows = F.normalize(bank.x, dim=1), F.normalize(queries, dim=1)
    # [M, most], nearest first. M x N products never exist, and two equally near ones come in the order of the bank.
    nearest = torch.ops.fastssl.nearest_neighbors(
        rows, keys, count=min(max(ks), len(keys)), exclude_self=False, row_offset=0, backend=backends.forced()
    )
    similarity = torch.cat(list(_similarities(rows, keys, nearest)))
    # exp(c / temperature) up to a common factor, which cannot overflow.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    labels = bank.label[nearest]
    for k in ks:
        votes = weights.new_zeros(len(rows), num_classes).scatter_add_(1, labels[:, :k], weights[:, :k])
        yield votes.argmax(1)


def _similarities(rows: Tensor, keys: Tensor, nearest: Tensor) -> Iterable[Tensor]:
    """Inner products of rows with their neighbours, a block of rows at a time."""
    block = max(1, _GATHERED // (nearest.shape[1] * rows.shape[1]))
    for some, places in zip(rows.split(block), nearest.split(block), strict=True):
        yield torch.einsum("md,mkd->mk", some, keys[places])
