"""Evaluation: k-NN and linear probe as scikit-learn computes them, features in order."""

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("lightning")
pytest.importorskip("sklearn")
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from fastssl.augment import EvalTransform
from fastssl.data.base import Batch
from fastssl.evaluate import (
    Features,
    LinearProbe,
    extract,
    extract_both,
    knn,
    knn_accuracies,
    knn_accuracy,
    knn_predict,
    linear_accuracy,
    pixels,
    recompute_batch_statistics,
)
from fastssl.models.encoder import Architecture, Encoder


def blobs(n: int, seed: int, dim: int = 12, classes: int = 5) -> Features:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    label = torch.randint(classes, (n,), generator=generator)
    return Features(centres[label] + 1.2 * torch.randn(n, dim, generator=generator), label)


@pytest.mark.parametrize("k", [1, 5, 20, 150])
def test_knn_is_sklearns(k):
    train, test = blobs(203, 0), blobs(57, 1)
    peer = KNeighborsClassifier(k, weights=lambda d: np.exp((1 - d) / 0.07), metric="cosine", algorithm="brute")
    expected = peer.fit(train.x.numpy(), train.label.numpy()).predict(test.x.numpy())
    assert knn_predict(train, test.x, 5, k, 0.07).tolist() == expected.tolist()


def test_knn_accuracy_is_the_share_of_right_answers():
    train, test = blobs(203, 0), blobs(57, 1)
    right = (knn_predict(train, test.x, 5) == test.label).sum().item()
    assert knn_accuracy(train, test, 5) == pytest.approx(right / 57)
    assert knn_accuracy(train, train, 5, k=1) == 1


def test_one_search_gives_every_k():
    train, test = blobs(203, 0), blobs(57, 1)
    assert knn_accuracies(train, test, 5, [1, 20, 100]) == {k: knn_accuracy(train, test, 5, k) for k in (1, 20, 100)}


def test_knn_does_not_depend_on_how_many_rows_meet_at_a_time(monkeypatch):
    train, test = blobs(203, 0), blobs(57, 1)
    expected = knn_predict(train, test.x, 5)
    monkeypatch.setattr(knn, "_GATHERED", 5 * 20 * 12)
    assert torch.equal(knn_predict(train, test.x, 5), expected)
    assert knn_predict(train, test.x[:0], 5).shape == (0,)


def test_knn_votes_with_the_whole_of_a_small_bank():
    bank = Features(torch.tensor([[1.0, 0], [0, 1], [0, 1]]), torch.tensor([0, 1, 1]))
    assert knn_predict(bank, torch.tensor([[1.0, 0.1], [0.1, 1]]), 2, k=20).tolist() == [0, 1]


def test_knn_weights_do_not_overflow():
    train = blobs(50, 0)
    assert knn_accuracy(train, train, 5, k=3, temperature=1e-4) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(k=0), "k must be at least 1, got 0"),
        (dict(temperature=0), "temperature must be above 0, got 0"),
        (dict(num_classes=4), r"labels of the bank must be in \[0, 4\), got 0 to 4"),
        (dict(queries=torch.zeros(2, 3)), r"got \(50, 12\) and \(2, 3\)"),
    ],
)
def test_knn_names_a_bad_argument(change, message):
    train = blobs(50, 0)
    with pytest.raises(ValueError, match=message):
        knn_predict(**(dict(bank=train, queries=train.x, num_classes=5) | change))


def test_linear_probe_is_sklearns_logistic_regression():
    train, test = blobs(300, 0), blobs(200, 1)
    scaler = StandardScaler().fit(train.x.numpy())
    peer = LogisticRegression(C=1 / (300 * 1e-2), max_iter=2000, tol=1e-8)
    peer.fit(scaler.transform(train.x.numpy()), train.label.numpy())
    probe = LinearProbe(12, 5).fit(train, l2=1e-2, max_iterations=500)
    expected = peer.predict_proba(scaler.transform(test.x.numpy()))
    assert np.abs(probe(test.x).softmax(1).detach().numpy() - expected).max() < 2e-3


def test_linear_probe_ignores_scale_offset_and_constant_features():
    train, test = blobs(300, 0), blobs(200, 1)
    expected = linear_accuracy(train, test, 5)
    assert expected > 0.8

    def change(features: Features) -> Features:
        x = features.x * torch.logspace(-2, 2, 12) + 30
        return Features(torch.cat([x, torch.full((len(x), 1), 7.0)], 1), features.label)

    assert linear_accuracy(change(train), change(test), 5) == pytest.approx(expected, abs=0.011)


def test_linear_probe_is_deterministic():
    train, test = blobs(100, 0), blobs(50, 1)
    a, b = (LinearProbe(12, 5).fit(train)(test.x) for _ in range(2))
    assert torch.equal(a, b)


def test_extract_keeps_order_and_restores_the_mode():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.BatchNorm1d(3))
    images = torch.randint(0, 256, (10, 3, 2, 2), dtype=torch.uint8)
    label = torch.arange(10)
    batches = [Batch(images[i], label[i], i) for i in torch.arange(10).split(4)]
    encoder.train()
    features = extract(encoder, lambda x: x.float() / 255, batches)
    assert encoder.training
    assert encoder[2].num_batches_tracked == 0
    assert torch.equal(features.label, label)
    assert not features.x.requires_grad
    torch.testing.assert_close(features.x, encoder.eval()(images.float() / 255).detach())
    assert torch.equal(pixels(batches).x, images.flatten(1).float() / 255)
    with pytest.raises(ValueError, match="at least one batch"):
        extract(encoder, lambda x: x, [])


def test_large_images_are_averaged_before_they_are_features():
    generator = torch.Generator().manual_seed(0)

    def features(height, width):
        image = torch.randint(0, 256, (2, 3, height, width), generator=generator, dtype=torch.uint8)
        return image.float() / 255, pixels([Batch(image, torch.zeros(2, dtype=torch.int64), torch.arange(2))]).x

    image, x = features(64, 64)
    assert torch.equal(x, image.flatten(1))
    image, x = features(256, 96)
    torch.testing.assert_close(x, image.unflatten(2, (32, 8)).unflatten(4, (32, 3)).mean((3, 5)).flatten(1))
    assert features(65, 20)[1].shape == (2, 3 * 32 * 20)


def test_recomputed_batch_statistics_are_those_of_the_images():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 4, 4), generator=generator, dtype=torch.uint8)
    batches = [
        Batch(part, torch.zeros(len(part), dtype=torch.int64), torch.arange(len(part))) for part in images.split(4)
    ]
    norm = nn.BatchNorm2d(3).train()
    recompute_batch_statistics(nn.Sequential(norm), torch.Tensor.float, batches)
    torch.testing.assert_close(norm.running_mean, images.float().mean((0, 2, 3)))
    expected = torch.stack([part.float().transpose(0, 1).flatten(1).var(1) for part in images.split(4)]).mean(0)
    torch.testing.assert_close(norm.running_var, expected)
    assert norm.training and norm.momentum == 0.1
    assert torch.equal(norm.weight, torch.ones(3))


def test_images_of_different_sizes_are_evaluated_like_their_central_squares():
    whole = [torch.randint(256, shape, dtype=torch.uint8) for shape in ((3, 70, 50), (3, 50, 90), (3, 50, 50))]
    squares = [whole[0][:, 10:60], whole[1][:, :, 20:70], whole[2]]
    label, index = torch.tensor([0, 1, 2]), torch.arange(3)
    encoder = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
    lists, stacks = [Batch(whole, label, index)], [Batch(torch.stack(squares), label, index)]
    expected = extract(encoder, EvalTransform(32), stacks)
    assert torch.allclose(extract(encoder, EvalTransform(32), lists).x, expected.x, atol=1e-5)
    expected = torch.stack([nn.functional.adaptive_avg_pool2d(x / 255, 32).flatten() for x in squares])
    assert torch.allclose(pixels(lists).x, expected)


def test_an_image_that_comes_twice_counts_once():
    x = torch.arange(5 * 3 * 4).reshape(5, 3, 2, 2).byte()
    places = torch.tensor([3, 0, 3, 1, 0])
    features = pixels([Batch(x[:3], places[:3], places[:3]), Batch(x[3:], places[3:], places[3:])])
    assert features.label.tolist() == [3, 0, 1]
    assert torch.equal(features.x, (x.float() / 255).flatten(1)[[0, 1, 3]])


def test_one_pass_gives_representation_and_projection():
    class Tiny(nn.Module):
        num_features = 5

        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return self.layers(x)

    images = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8)
    label, index = torch.tensor([0, 1, -1, 2, 0, 1]), torch.tensor([4, 7, 9, 4, 1, 2])
    encoder = Encoder(Tiny(), Architecture("tiny"), 8, nn.Linear(5, 2))
    batches = [Batch(images[i], label[i], index[i]) for i in torch.arange(6).split(4)]
    h, z, places = extract_both(encoder, batches)
    assert encoder.backbone.calls == 2
    assert places.tolist() == [4, 7, 9, 1, 2]  # the second 4 is the same image
    torch.testing.assert_close(h.x, encoder(encoder.transform(images))[[0, 1, 2, 4, 5]].detach())
    torch.testing.assert_close(z.x, encoder.project(h.x).detach())
    assert torch.equal(z.label, h.label)
    assert h.known().label.tolist() == [0, 1, 0, 1]
    assert torch.equal(h.known().x, h.x[[0, 1, 3, 4]])
    assert extract_both(Encoder(Tiny(), Architecture("tiny"), 8), batches).z is None
