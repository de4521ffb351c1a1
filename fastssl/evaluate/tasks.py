"""The evaluations of ``fastssl eval``, by name: what each takes, and what it gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from fastssl.data.base import ImageData
from fastssl.evaluate import maps
from fastssl.evaluate.features import Both, Features
from fastssl.evaluate.finetune import FewLabels, Recipe, classifier_accuracy, fine_tune
from fastssl.evaluate.kmeans import kmeans
from fastssl.evaluate.knn import knn_accuracies
from fastssl.evaluate.linear import linear_accuracy
from fastssl.evaluate.subset import label_subset, spread
from fastssl.evaluate.sweep import RATES, LinearSweep, linear_sweep
from fastssl.models.encoder import Encoder

_USUAL_K = 20


@dataclass(frozen=True)
class KNN:
    """k-nearest neighbours.

    Args:
        k: neighbours that vote, one accuracy for each number; tables show that of 20, or else of the first.
        temperature: a vote has the weight exp(cosine / temperature).

    Raises:
        ValueError: if a number is out of range.
    """

    k: list[int] = field(default_factory=lambda: [10, 20, 100, 200])
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1:
            raise ValueError(f"knn: k must be one or more numbers of at least 1, got {self.k}")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"knn: temperature must be above 0, got {self.temperature}")


@dataclass(frozen=True)
class Linear:
    """The sweep of linear probes.

    Args:
        rates: learning rates per 256 images, of which the best on held-out training images is taken.
        steps: of SGD.
        batch_size: images per step.

    Raises:
        ValueError: if a number is out of range.
    """

    rates: list[float] = field(default_factory=lambda: list(RATES))
    steps: int = 2500
    batch_size: int = 128

    def __post_init__(self) -> None:
        self.sweep(0)

    def sweep(self, seed: int) -> LinearSweep:
        """Ready to be trained."""
        return LinearSweep(self.rates, self.steps, self.batch_size, seed)


@dataclass(frozen=True)
class KMeans:
    """Clustering.

    Args:
        starts: how often k-means starts anew; the result of least inertia counts.
        most: at most so many training images are clustered.

    Raises:
        ValueError: if a number is below 1.
    """

    starts: int = 10
    most: int = 50_000

    def __post_init__(self) -> None:
        for name in ("starts", "most"):
            if getattr(self, name) < 1:
                raise ValueError(f"kmeans: {name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Map:
    """Maps in two dimensions.

    Args:
        points: at most so many test images, evenly spread over all.
        perplexity: of t-SNE.
        neighbors: of UMAP.

    Raises:
        ValueError: if a number is out of range.
    """

    points: int = 2000
    perplexity: float = 30.0
    neighbors: int = 15

    def __post_init__(self) -> None:
        for name, least in (("points", 4), ("perplexity", 1), ("neighbors", 2)):
            if not getattr(self, name) >= least:
                raise ValueError(f"map: {name} must be at least {least}, got {getattr(self, name)}")


class Options(NamedTuple):
    """Those of all tasks."""

    knn: KNN = KNN()
    linear: Linear = Linear()
    kmeans: KMeans = KMeans()
    map: Map = Map()
    finetune: Recipe = Recipe()
    semi: FewLabels = FewLabels()


# What `--tasks` takes. The first four are cheap and the default.
TASKS = {
    "knn": "k nearest neighbours",
    "linear": "linear probe, the best of several learning rates",
    "kmeans": "k-means: NMI, ARI and matched accuracy",
    "map": "t-SNE map of the test images",
    "umap": "UMAP map of the test images",
    "finetune": "fine-tuning with all labels",
    "semi": "fine-tuning and linear probe with 1 % and 10 % of the labels",
}
DEFAULT = ("knn", "linear", "kmeans", "map")
WITHOUT_LABELS = ("map", "umap")


class Measured(NamedTuple):
    """Results of one line on h or z.

    Attributes:
        values: what tables show, by name: "knn", "linear", "nmi", "ari", "matched", "finetune", "semi_1",
            "semi_1_linear", ...; accuracies in [0, 1].
        details: by task: accuracies for each k, the chosen rate and what the others reach, the number of labels.
    """

    values: dict[str, float]
    details: dict[str, Any]

    def add(self, other: Measured) -> None:
        """Take the results of further tasks in."""
        self.values.update(other.values)
        self.details.update(other.details)


def measure_features(
    train: Features, test: Features, num_classes: int, tasks: Collection[str], options: Options, seed: int
) -> Measured:
    """Tasks on features alone: "knn", "linear" and "kmeans", as far as they are among `tasks`.

    Args:
        train: float32 [N, D], labels -1 where they are unknown; at least one is known.
        test: likewise.
        num_classes: labels are 0 to num_classes - 1.
        tasks: names from TASKS.
        options: of the tasks.
        seed: of all that is random.
    """
    values: dict[str, float] = {}
    details: dict[str, Any] = {}
    known, test = train.known(), test.known()
    if "knn" in tasks:
        # More neighbours than there are images give the same vote as all of them.
        ks = sorted({k for k in options.knn.k if k <= len(known.x)} or {len(known.x)})
        found = knn_accuracies(known, test, num_classes, ks, options.knn.temperature)
        shown = _USUAL_K if _USUAL_K in found else options.knn.k[0] if options.knn.k[0] in found else ks[0]
        values["knn"] = found[shown]
        details["knn"] = {str(k): accuracy for k, accuracy in found.items()}
    if "linear" in tasks:
        result = linear_sweep(known, test, num_classes, options.linear.sweep(seed))
        values["linear"] = result.accuracy
        validation = {f"{rate:g}": accuracy for rate, accuracy in result.validation.items()}
        details["linear"] = {"lr": result.lr, "validation": validation}
    if "kmeans" in tasks:
        clustering = kmeans(train, test, num_classes, options.kmeans.starts, options.kmeans.most, seed)
        values |= {"nmi": clustering.nmi, "ari": clustering.ari, "matched": clustering.accuracy}
    return Measured(values, details)


def measure_few_labels(train: Features, test: Features, num_classes: int, options: Options, seed: int) -> Measured:
    """The linear probe of "semi": fitted on a share of the labels, on frozen features."""
    values, details = {}, {}
    test = test.known()
    for fraction in options.semi.fractions:
        places = label_subset(train.label, fraction, seed)
        part = Features(train.x[places], train.label[places])
        values[f"semi_{100 * fraction:g}_linear"] = linear_accuracy(part, test, num_classes)
        details[f"semi_{100 * fraction:g}"] = {"labels": len(places)}
    return Measured(values, details)


def measure_training(
    encoder: Encoder,
    train: Both,
    data: ImageData,
    tasks: Collection[str],
    options: Options,
    seed: int,
    progress: Callable[[str, int, int, float], None] | None = None,
) -> Measured:
    """Tasks that train the encoder: "finetune" and "semi", as far as they are among `tasks`.

    Args:
        encoder: it is not changed.
        train: of the training images; their labels and places count.
        data: after ``setup``.
        tasks: names from TASKS.
        options: of the tasks.
        seed: of all that is random.
        progress: called after each epoch with the name of the value, the epoch from 1 on, how many there are, and the
            mean loss.
    """
    wanted: dict[str, tuple[torch.Tensor, Recipe]] = {}
    if "finetune" in tasks:
        wanted["finetune"] = (train.index[train.h.label >= 0], options.finetune)
    if "semi" in tasks:
        for fraction in options.semi.fractions:
            places = label_subset(train.h.label, fraction, seed)
            wanted[f"semi_{100 * fraction:g}"] = (train.index[places], options.semi.recipe(fraction))
    images: Any = data.bank_dataloader().dataset
    workers = 0 if getattr(images, "in_memory", False) else data.num_workers
    values = {}
    for name, (places, recipe) in wanted.items():

        def report(epoch: int, epochs: int, loss: float, name: str = name) -> None:
            if progress is not None:
                progress(name, epoch, epochs, loss)

        tuned = fine_tune(
            encoder, images, places, data.num_classes, recipe, seed=seed, num_workers=workers, progress=report
        )
        values[name] = classifier_accuracy(tuned, data.test_dataloader())
    return Measured(values, {})


def make_maps(test: Both, on: Sequence[str], tasks: Collection[str], options: Map, seed: int) -> dict[str, np.ndarray]:
    """Maps of evenly spread test images, float64 [N, 2]: "tsne" and "umap" of h, "tsne_z" and "umap_z" of z.

    Raises:
        MissingUMAP: without umap-learn, if "umap" is among `tasks`.
        ValueError: if there are fewer than 4 images.
    """
    made = {}
    for name in on:
        x = (test.h if name == "h" else test.z).x  # type: ignore[union-attr]  # the caller asks for what there is
        x = x[spread(len(x), options.points)]
        suffix = "" if name == "h" else f"_{name}"
        if "map" in tasks:
            made[f"tsne{suffix}"] = maps.tsne(x, seed, options.perplexity)
        if "umap" in tasks:
            made[f"umap{suffix}"] = maps.umap(x, seed, options.neighbors)
    return made
