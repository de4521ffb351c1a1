"""Views are a function of (seed, epoch, index) and of nothing else: not of the batch, workers or generators."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from fastssl.augment import (
    ColorJitter,
    Compose,
    EvalTransform,
    GaussianBlur,
    GaussianNoise,
    MultiViewTransform,
    Normalize,
    RandomApply,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
)

VIEW = Compose([
    RandomResizedCrop(16),
    RandomHorizontalFlip(),
    ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
    RandomGrayscale(0.2),
    RandomApply([GaussianBlur(3), GaussianNoise()]),
    Normalize(),
])  # fmt: skip
TRANSFORM = MultiViewTransform([VIEW, VIEW])


def pictures(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 24, 20), generator=generator, dtype=torch.uint8)


IMAGES = pictures(6)
INDEX = torch.tensor([5, 0, 17, 3, 2**31, 9])


def same(a, b) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_same_key_gives_the_same_views_and_no_generator_is_touched():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    views = TRANSFORM(IMAGES, seed=1, epoch=4, index=INDEX)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert same(TRANSFORM(IMAGES, seed=1, epoch=4, index=INDEX), views)
    assert same(copy.deepcopy(TRANSFORM)(IMAGES, seed=1, epoch=4, index=INDEX), views)


@pytest.mark.parametrize("change", [dict(seed=2), dict(seed=1 + 2**63), dict(epoch=5), dict(index=INDEX + 1)])
def test_another_key_gives_other_views(change):
    key = dict(seed=1, epoch=4, index=INDEX)
    for a, b in zip(TRANSFORM.sample(IMAGES, **key), TRANSFORM.sample(IMAGES, **key | change), strict=True):
        assert (a.records != b.records).any(1).all()


def test_every_image_and_every_view_is_drawn_on_its_own():
    one = IMAGES[:1].expand(6, -1, -1, -1)
    x = torch.cat(TRANSFORM(one, seed=0, epoch=0, index=INDEX)).flatten(1)
    assert torch.cdist(x, x).fill_diagonal_(1e9).min() > 1


@pytest.mark.parametrize("chosen", [[4, 1], [2], [5, 4, 3, 2, 1, 0], [3, 3]])
def test_views_depend_neither_on_the_batch_nor_on_its_order(chosen):
    views = TRANSFORM(IMAGES, seed=1, epoch=4, index=INDEX)
    part = TRANSFORM(IMAGES[chosen], seed=1, epoch=4, index=INDEX[chosen])
    for view, alone in zip(views, part, strict=True):
        torch.testing.assert_close(alone, view[chosen], atol=1e-5, rtol=0)


def test_views_do_not_depend_on_which_other_views_are_made():
    views = TRANSFORM(IMAGES, seed=1, epoch=4, index=INDEX)
    torch.testing.assert_close(VIEW(IMAGES, seed=1, epoch=4, index=INDEX), views[0], atol=1e-5, rtol=0)


class Views(Dataset):
    """The views of an image, made in the loader's process, batch by batch."""

    def __len__(self):
        return 12

    def __getitems__(self, indices):
        index = torch.tensor(indices)
        return [(index, *TRANSFORM(pictures(12)[index], seed=3, epoch=2, index=index))]


def _first(batch):
    return batch[0]


@pytest.mark.filterwarnings("ignore:.*worker processes")
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("batch_size", [4, 5])
def test_views_do_not_depend_on_loader_processes(workers, batch_size):
    order = torch.Generator().manual_seed(workers + batch_size)
    loader = DataLoader(Views(), batch_size, shuffle=True, num_workers=workers, collate_fn=_first, generator=order)
    expected = TRANSFORM(pictures(12), seed=3, epoch=2, index=torch.arange(12))
    seen = []
    for index, *views in loader:
        seen += index.tolist()
        for view, whole in zip(views, expected, strict=True):
            torch.testing.assert_close(view, whole[index], atol=1e-5, rtol=0)
    assert sorted(seen) == list(range(12))


def test_views_do_not_depend_on_the_process():
    code = (
        "import torch; from fastssl.augment import SimCLRTransform; "
        "x = torch.arange(3 * 20 * 20).remainder(251).byte().view(1, 3, 20, 20); "
        "print([float(v.double().sum()) for v in SimCLRTransform(16)(x, seed=5, epoch=1, index=torch.tensor([3]))])"
    )
    first, second = (subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in "ab")
    assert first == second != b""


def test_without_a_key_the_global_generator_decides():
    torch.manual_seed(0)
    first, second = TRANSFORM(IMAGES), TRANSFORM(IMAGES)
    assert not same(first, second)
    torch.manual_seed(0)
    assert same(TRANSFORM(IMAGES), first)
    assert same(TRANSFORM(IMAGES), second)


def test_a_seed_alone_means_epoch_zero_and_the_positions_in_the_batch():
    expected = TRANSFORM(IMAGES, seed=3, epoch=0, index=torch.arange(6))
    assert same(TRANSFORM(IMAGES, seed=3), expected)
    assert same(TRANSFORM(IMAGES, seed=3, index=torch.arange(6)), expected)


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (dict(index=INDEX), ValueError, "seed must be given with index, else each call draws afresh"),
        (dict(epoch=0), ValueError, "seed must be given with epoch"),
        (dict(seed=0, index=INDEX[:2]), ValueError, r"index must have shape \(6,\) for 6 images, got \(2,\)"),
        (dict(seed=0, index=INDEX.int()), TypeError, r"index must be an int64 tensor .* got torch.int32"),
        (dict(seed=0, index=[0] * 6), TypeError, "got list"),
        (dict(seed=-1), ValueError, r"seed must be in \[0, 2\^64\), got -1"),
        (dict(seed=0.5), TypeError, "seed must be an int, got float"),
        (dict(seed=0, epoch=2**32), ValueError, r"epoch must be in \[0, 2\^32\), got 4294967296"),
    ],
)
def test_a_bad_key_is_named(key, error, message):
    with pytest.raises(error, match=message):
        TRANSFORM(IMAGES, **key)


def test_compiled_as_one_graph_the_views_are_the_same_for_every_key_without_compiling_anew():
    compiled = torch.compile(TRANSFORM, fullgraph=True)
    compiled(IMAGES, seed=1, epoch=3, index=INDEX)
    compiled(IMAGES, seed=8, epoch=4, index=INDEX)
    with torch.compiler.set_stance("fail_on_recompile"):
        for seed, epoch in ((2, 5), (9, 11), (2**40, 6)):
            key = dict(seed=seed, epoch=epoch, index=INDEX + epoch)
            for a, b in zip(compiled(IMAGES, **key), TRANSFORM(IMAGES, **key), strict=True):
                torch.testing.assert_close(a, b)


def test_parameters_can_be_drawn_and_given_in_a_compiled_graph():
    @torch.compile(fullgraph=True)
    def half(images, index):
        views, parameters = TRANSFORM(images, seed=0, epoch=1, index=index, return_parameters=True)
        again = TRANSFORM.apply(images, TRANSFORM.sample(images, seed=0, epoch=1, index=index))
        single = RandomGrayscale(0.5)(images, seed=0, index=index)
        return views, again, parameters[0].records, single

    views, again, records, single = half(IMAGES, INDEX)
    assert same(views, again)
    assert torch.equal(records, TRANSFORM.sample(IMAGES, seed=0, epoch=1, index=INDEX)[0].records)
    torch.testing.assert_close(single, RandomGrayscale(0.5)(IMAGES, seed=0, index=INDEX))


def test_autocast_rounds_nothing():
    key = dict(seed=0, epoch=0, index=INDEX)
    expected = [*TRANSFORM(IMAGES, **key), EvalTransform(24)(IMAGES)]
    with torch.autocast("cpu", torch.bfloat16):
        assert same([*TRANSFORM(IMAGES, **key), EvalTransform(24)(IMAGES)], expected)
