"""Clustering without labels, compared with them: k-means with as many clusters as classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from torch import Tensor

from fastssl.evaluate.features import Features
from fastssl.evaluate.subset import spread


class Clustering(NamedTuple):
    """How well clusters agree with classes.

    Attributes:
        nmi: mutual information over the arithmetic mean of both entropies, in [0, 1].
        ari: adjusted Rand index: 0 for chance, 1 for the same partition.
        accuracy: share of the images, in [0, 1], whose cluster's class is theirs, under the assignment of clusters to
            different classes that makes it largest (Kuhn 1955).
    """

    nmi: float
    ari: float
    accuracy: float


def compare(label: Tensor, cluster: Tensor) -> Clustering:
    """Compare clusters, int64 [N], with known labels, int64 [N]; the numbers of neither matter."""
    pair = np.asarray(label.cpu()), np.asarray(cluster.cpu())
    counts = contingency_matrix(*pair)
    matched = counts[linear_sum_assignment(counts, maximize=True)].sum()
    return Clustering(
        float(normalized_mutual_info_score(*pair)),
        float(adjusted_rand_score(*pair)),
        float(matched / len(label)),
    )


def kmeans(
    train: Features, test: Features, num_classes: int, starts: int = 10, most: int = 50_000, seed: int = 0
) -> Clustering:
    """Fit k-means to the training features, assign the test features to its centres, and compare with their labels.

    Features are normalised to length 1, so that distances are those of the cosine. Labels of the training images play
    no part.

    Args:
        train: float32 [N, D], at least `num_classes` of them.
        test: labelled features.
        num_classes: clusters.
        starts: how often it starts from other centres (k-means++); the one of least inertia counts.
        most: at most so many training features are clustered, spread evenly over all.
        seed: of the starts.

    Raises:
        ValueError: if there are fewer training features than clusters, or a number is below 1.
    """
    for name, value in (("num_classes", num_classes), ("starts", starts), ("most", most)):
        if value < 1:
            raise ValueError(f"kmeans: {name} must be at least 1, got {value}")
    rows = F.normalize(train.x[spread(len(train.x), most)], dim=1).cpu().numpy()
    if len(rows) < num_classes:
        raise ValueError(
            f"kmeans: train must hold at least {num_classes} features for so many clusters, got {len(rows)}"
        )
    model = KMeans(num_classes, n_init=starts, random_state=seed).fit(rows)
    cluster = model.predict(F.normalize(test.x, dim=1).cpu().numpy())
    return compare(test.label, torch.from_numpy(cluster))
