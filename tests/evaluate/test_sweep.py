"""The linear sweep: each rate as trained alone by torch.optim, the choice made on held-out images only."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("lightning")
from fastssl.evaluate import Features
from fastssl.evaluate.subset import hold_out, label_subset
from fastssl.evaluate.sweep import LinearSweep, linear_sweep


def blobs(n: int, seed: int, dim: int = 12, classes: int = 5, noise: float = 1.2) -> Features:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    label = torch.randint(classes, (n,), generator=generator)
    return Features(centres[label] + noise * torch.randn(n, dim, generator=generator), label)


@pytest.mark.parametrize("dim", [12, 90], ids=["more images", "more features"])
def test_each_rate_is_what_torchs_sgd_makes_of_it_alone(dim):
    train, test, rates, steps = blobs(70, 0, dim), blobs(30, 1, dim), [0.01, 0.3, 3.0], 23
    sweep = LinearSweep(rates, steps, batch_size=16, seed=3).fit(train, 5)
    mean, std = train.x.mean(0), train.x.std(0, correction=0)
    x, queries = ((part.x - mean) / std for part in (train, test))
    for place, rate in enumerate(rates):
        model = nn.Linear(dim, 5)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate * 16 / 256, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        generator = torch.Generator().manual_seed(3)
        order = torch.cat([torch.randperm(70, generator=generator)[:64] for _ in range(6)])
        for batch in order.split(16)[:steps]:
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), train.label[batch]).backward()
            optimizer.step()
            schedule.step()
        assert model.weight.abs().max() > 1e-3
        torch.testing.assert_close(sweep.logits(test.x)[:, place], model(queries).detach(), rtol=1e-3, atol=1e-4)


def test_a_rate_that_is_too_small_is_not_chosen():
    def halves(seed):
        generator = torch.Generator().manual_seed(seed)
        label, shared = torch.arange(300) % 2, torch.randn(300, generator=generator)
        # The means differ in the first feature, but only the difference of both tells the classes apart.
        x = torch.stack([shared + label - 0.5, shared], 1) + 0.05 * torch.randn(300, 2, generator=generator)
        return Features(x, label)

    result = linear_sweep(halves(0), halves(1), 2, LinearSweep([1e-7, 3.0], steps=300))
    assert list(result.validation) == [1e-7, 3.0]
    assert result.validation[1e-7] < 0.85 < 0.95 < result.validation[3.0]
    assert result.lr == 3.0 and result.accuracy > 0.95


def test_of_equally_accurate_rates_that_of_the_smaller_loss_is_chosen():
    train, test = blobs(300, 0, noise=0.05), blobs(100, 1, noise=0.05)
    result = linear_sweep(train, test, 5, LinearSweep([1e-3, 1e-1, 1e-2], steps=100))
    assert set(result.validation.values()) == {1.0}
    assert result.lr == 1e-1


def test_the_choice_does_not_see_the_test_images():
    train, test = blobs(300, 0), blobs(100, 1)
    wrong = Features(test.x, (test.label + 1) % 5)
    a, b = (linear_sweep(train, half, 5, LinearSweep(steps=50)) for half in (test, wrong))
    assert (a.lr, a.validation) == (b.lr, b.validation)
    assert a.accuracy > b.accuracy


def test_the_scale_of_features_does_not_matter():
    train, test = blobs(300, 0), blobs(100, 1)
    expected = linear_sweep(train, test, 5, LinearSweep(steps=100))
    scaled = [Features(1000 * half.x + 7, half.label) for half in (train, test)]
    assert linear_sweep(*scaled, 5, LinearSweep(steps=100)).accuracy == pytest.approx(expected.accuracy, abs=0.011)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rates=[]), r"rates must be one or more numbers above 0, got \[\]"),
        (dict(rates=[0.1, math.inf]), r"rates must be one or more numbers above 0, got \[0.1, inf\]"),
        (dict(steps=0), "steps must be at least 1, got 0"),
        (dict(batch_size=0), "batch_size must be at least 1, got 0"),
    ],
)
def test_a_bad_argument_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        LinearSweep(**options)


# Parts of the labels


@pytest.mark.parametrize("seed", [0, 1])
def test_a_subset_holds_the_share_of_every_class_and_at_least_one(seed):
    label = torch.cat([torch.full((n,), c) for c, n in ((0, 200), (1, 50), (2, 3), (-1, 40))])
    label = label[torch.randperm(len(label), generator=torch.Generator().manual_seed(7))]
    for fraction, expected in ((0.01, [2, 1, 1]), (0.1, [20, 5, 1]), (1.0, [200, 50, 3])):
        places = label_subset(label, fraction, seed)
        assert label[places].bincount().tolist() == expected
        assert places.tolist() == sorted(set(places.tolist()))
        assert torch.equal(places, label_subset(label, fraction, seed))
    assert set(label_subset(label, 0.01, seed).tolist()) <= set(label_subset(label, 0.1, seed).tolist())
    assert not torch.equal(label_subset(label, 0.1, seed), label_subset(label, 0.1, seed + 2))


def test_held_out_images_and_the_rest_are_all_known_ones():
    label = torch.cat([torch.full((n,), c) for c, n in ((0, 30), (1, 2), (2, 1), (-1, 5))])
    rest, held = hold_out(label, 0.1)
    assert sorted([*rest.tolist(), *held.tolist()]) == list(range(33))
    assert label[held].bincount(minlength=3).tolist() == [3, 1, 0]


def test_subsets_name_what_is_wrong():
    with pytest.raises(ValueError, match="fraction must be above 0 and at most 1, got 0"):
        label_subset(torch.zeros(3).long(), 0)
    with pytest.raises(ValueError, match="label must hold known labels, got 2 unknown ones"):
        label_subset(torch.tensor([-1, -1]), 0.5)
    with pytest.raises(ValueError, match="at least two images with a label, none has"):
        hold_out(torch.tensor([0, 1, -1]), 0.1)
