"""k-means against every assignment of clusters, t-SNE and UMAP keep neighbours together."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
from fastssl.evaluate import Features, maps
from fastssl.evaluate.kmeans import compare, kmeans
from fastssl.evaluate.subset import spread


def rings(n: int, seed: int, classes: int = 4) -> Features:
    """Classes that differ in direction and not in length."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.eye(8)[:classes]
    label = torch.arange(n) % classes
    x = centres[label] + 0.1 * torch.randn(n, 8, generator=generator)
    return Features(x * torch.logspace(-1, 1, n)[torch.randperm(n, generator=generator)][:, None], label)


def test_matched_accuracy_is_the_best_of_all_assignments():
    generator = torch.Generator().manual_seed(0)
    label, cluster = (torch.randint(4, (60,), generator=generator) for _ in range(2))
    best = max(
        (torch.tensor(order)[cluster] == label).double().mean().item() for order in itertools.permutations(range(4))
    )
    assert compare(label, cluster).accuracy == pytest.approx(best)


def test_the_measures_are_their_definitions():
    label, cluster = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([1, 1, 0, 0, 0, 2])

    def entropy(*columns):
        shares = np.unique(np.stack(columns, 1), axis=0, return_counts=True)[1] / 6
        return -(shares * np.log(shares)).sum()

    pairs = list(itertools.combinations(range(6), 2))
    a, b = ({pair for pair in pairs if x[pair[0]] == x[pair[1]]} for x in (label, cluster))
    expected = len(a) * len(b) / len(pairs)
    result = compare(label, cluster)
    information = entropy(label) + entropy(cluster) - entropy(label, cluster)
    assert result.nmi == pytest.approx(2 * information / (entropy(label) + entropy(cluster)))
    assert result.ari == pytest.approx((len(a & b) - expected) / ((len(a) + len(b)) / 2 - expected))
    renamed = compare(label, torch.tensor([7, 7, 3, 3, 3, 9]))
    assert renamed == pytest.approx(result)
    assert compare(label, label) == pytest.approx((1, 1, 1))


def test_kmeans_finds_directions_of_any_length_without_labels():
    train, test = rings(80, 0), rings(41, 1)
    found = kmeans(train, test, 4)
    assert found == pytest.approx((1, 1, 1))
    shuffled = Features(train.x, train.label[torch.randperm(80, generator=torch.Generator().manual_seed(0))])
    assert kmeans(shuffled, test, 4) == found
    assert kmeans(train, test, 4, most=20).accuracy > 0.9


def test_kmeans_names_what_is_wrong():
    with pytest.raises(ValueError, match="train must hold at least 4 features for so many clusters, got 3"):
        kmeans(rings(3, 0), rings(3, 1), 4)
    with pytest.raises(ValueError, match="starts must be at least 1, got 0"):
        kmeans(rings(8, 0), rings(8, 1), 4, starts=0)


@pytest.mark.parametrize("name", ["tsne", pytest.param("umap", marks=pytest.mark.exhaustive)])  # it compiles
def test_a_map_keeps_neighbours_and_repeats(name):
    if name == "umap":
        pytest.importorskip("umap")
    make = getattr(maps, name)
    x, label = rings(60, 0)
    x = torch.nn.functional.normalize(x, dim=1)
    placed = make(x, seed=3)
    assert placed.dtype == np.float64 and placed.shape == (60, 2)
    distance = np.linalg.norm(placed[:, None] - placed, axis=2) + np.diag(np.full(60, math.inf))
    nearest = label.numpy()[distance.argmin(1)]
    assert (nearest == label.numpy()).mean() > 0.9
    assert np.array_equal(make(x, seed=3), placed)


@pytest.mark.exhaustive
def test_umap_leaves_the_number_of_threads():
    pytest.importorskip("umap")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        maps.umap(rings(30, 0).x)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("n", [4, 5, 12])
def test_a_map_of_few_points(n):
    assert np.isfinite(maps.tsne(torch.randn(n, 60, generator=torch.Generator().manual_seed(0)))).all()


def test_maps_name_what_is_wrong(monkeypatch):
    with pytest.raises(ValueError, match=r"tsne: x must be \[N, D\] with N at least 4, got \(3, 2\)"):
        maps.tsne(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="tsne: x must be finite"):
        maps.tsne(torch.full((5, 2), math.nan))
    monkeypatch.setitem(sys.modules, "umap", None)
    monkeypatch.setattr(maps, "find_spec", lambda name: None)
    with pytest.raises(maps.MissingUMAP, match=r'needs umap-learn: pip install "fastssl\[umap\]"'):
        maps.umap(torch.zeros(5, 2))


def test_points_are_spread_over_all():
    assert spread(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert spread(101, 5).tolist() == [0, 25, 50, 75, 100]
    assert spread(12, 3).tolist() == [0, 6, 11] and spread(9, 1).tolist() == [0] and spread(0, 4).tolist() == []
