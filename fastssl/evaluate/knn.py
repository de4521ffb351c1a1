"""Weighted k-nearest-neighbour classification (Wu et al. 2018, "Unsupervised feature learning via non-parametric
instance discrimination", section 3.4), as the papers of the field report it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.evaluate.features import Features


@torch.no_grad()
def knn_predict(
    bank: Features,
    queries: Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    block: int = 4096,
) -> Tensor:
    """Classify by a vote of the nearest neighbours in cosine similarity c, each with weight exp(c / temperature).

    Args:
        bank: labelled features, [N, D].
        queries: floating point [M, D], on the same device.
        num_classes: labels are 0 to num_classes - 1.
        k: neighbours that vote; all of the bank where it holds fewer.
        temperature: above 0; the smaller, the more the nearest count.
        block: rows of queries and of the bank that meet at a time; memory is O(block^2), never O(M N).

    Returns:
        int64 [M].

    Raises:
        ValueError: if shapes do not fit or a number is out of range.
    """
    if bank.x.ndim != 2 or queries.ndim != 2 or bank.x.shape[1] != queries.shape[1] or not len(bank.x):
        raise ValueError(
            f"knn_predict: bank and queries must be [N >= 1, D] and [M, D], "
            f"got {tuple(bank.x.shape)} and {tuple(queries.shape)}"
        )
    for name, value in (("num_classes", num_classes), ("k", k), ("block", block)):
        if value < 1:
            raise ValueError(f"knn_predict: {name} must be at least 1, got {value}")
    if not temperature > 0:
        raise ValueError(f"knn_predict: temperature must be above 0, got {temperature}")
    if bank.label.min() < 0 or bank.label.max() >= num_classes:
        raise ValueError(
            f"knn_predict: labels of the bank must be in [0, {num_classes}), "
            f"got {int(bank.label.min())} to {int(bank.label.max())}"
        )
    keys = F.normalize(bank.x, dim=1)
    predictions = []
    for rows in F.normalize(queries, dim=1).split(block):
        best = rows.new_empty(len(rows), 0)
        labels = bank.label.new_empty(len(rows), 0)
        for part, part_labels in zip(keys.split(block), bank.label.split(block), strict=True):
            # The best of what was found so far and of this block.
            candidates = torch.cat([best, rows @ part.T], dim=1)
            candidate_labels = torch.cat([labels, part_labels.expand(len(rows), -1)], dim=1)
            best, position = candidates.topk(min(k, candidates.shape[1]), dim=1)
            labels = candidate_labels.gather(1, position)
        # exp(c / temperature) up to a common factor, which cannot overflow.
        weights = ((best - best[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(rows), num_classes).scatter_add_(1, labels, weights)
        predictions.append(votes.argmax(1))
    return torch.cat(predictions) if predictions else bank.label.new_empty(0)


def knn_accuracy(train: Features, test: Features, num_classes: int, k: int = 20, temperature: float = 0.07) -> float:
    """Share of the test images, in [0, 1], that :func:`knn_predict` classifies rightly."""
    predicted = knn_predict(train, test.x, num_classes, k, temperature)
    return (predicted == test.label).float().mean().item()
