"""ViewLoader: the same views for any number of workers, processes and threads; data sets of others; clean ends."""

import itertools
import threading

import numpy as np
import pytest
import torch
from drawn_pictures import draw
from PIL import Image
from torch.utils.data import Dataset

pytest.importorskip("lightning")
from fastssl.augment import DINOTransform, SimCLRTransform
from fastssl.data import Files, ImageList, Pictures, TensorImages, UnreadableImage, ViewLoader
from fastssl.data.folder import find_pictures

TRANSFORM = SimCLRTransform(16)


@pytest.fixture
def pictures(root):
    files = find_pictures(root / "train")
    return Pictures(Files(files), [int("dog" in file) for file in files])


def stack(count=10):
    images = torch.stack([torch.tensor(draw(20, 24, seed)).permute(2, 0, 1) for seed in range(count)])
    return TensorImages(images, torch.arange(count) % 3)


def epochs(loader, count=2):
    """All batches of some epochs, by the images' places."""
    return [
        {
            int(i): [*(view[b] for view in views), label[b]]
            for views, label, index in loader
            for b, i in enumerate(index)
        }
        for _ in range(count)
    ]


def equal(a, b):
    return all(
        one.keys() == other.keys()
        and all(torch.equal(x, y) for key in one for x, y in zip(one[key], other[key], strict=True))
        for one, other in zip(a, b, strict=True)
    )


@pytest.mark.filterwarnings("ignore:.*suggested max number of worker")
@pytest.mark.parametrize(
    "options",
    [{"num_workers": 1}, {"num_workers": 3}, {"prefetch": 1}, {"num_workers": 1, "prefetch": 3}, {"batch_size": 2}],
    ids=str,
)
def test_views_depend_on_seed_epoch_and_place_only(pictures, options):
    expected = epochs(ViewLoader(pictures, TRANSFORM, 5, seed=3, prefetch=0))
    assert [len(epoch) for epoch in expected] == [10, 10]
    assert not equal(expected[:1], expected[1:])
    assert equal(epochs(ViewLoader(pictures, TRANSFORM, **({"batch_size": 5, "seed": 3} | options))), expected)
    assert not equal(epochs(ViewLoader(pictures, TRANSFORM, 5, seed=4)), expected)


def test_several_processes_share_the_views_of_one(pictures):
    one = epochs(ViewLoader(pictures, TRANSFORM, 4, seed=1, drop_last=False))
    ranks = [epochs(ViewLoader(pictures, TRANSFORM, 2, seed=1, rank=rank, world_size=2)) for rank in range(2)]
    both = [first | second for first, second in zip(*ranks, strict=True)]
    assert all(len(epoch) == 8 for epoch in both)  # five each, of which the last is no whole batch
    assert all(
        torch.equal(x, y)
        for a, b in zip(both, one, strict=True)
        for key in a
        for x, y in zip(a[key], b[key], strict=True)
    )


def test_views_and_labels_are_those_of_the_transform(pictures):
    loader = ViewLoader(pictures, DINOTransform(16, local_crop_size=8), 4, seed=2, shuffle=False, drop_last=False)
    assert len(loader) == 3
    batches = list(loader)
    assert [batch.index.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    expected = loader.transform(pictures[9].image, seed=2, epoch=0, index=torch.tensor([9]))
    assert len(batches[2].views) == 8
    assert all(torch.equal(view[1:], other) for view, other in zip(batches[2].views, expected, strict=True))
    assert torch.cat([batch.label for batch in batches]).tolist() == [0] * 5 + [1] * 5


def test_each_pass_is_the_next_epoch_and_set_epoch_says_which():
    loader = ViewLoader(stack(), TRANSFORM, 5)
    first, second, third = epochs(loader, 3)
    loader.set_epoch(1)
    assert equal(epochs(loader), [second, third])
    order = [[batch.index.tolist() for batch in loader] for _ in range(2)]
    assert order[0] != order[1]
    assert not equal([first], [second])


def test_a_generators_state_changes_nothing():
    torch.manual_seed(0)
    expected = epochs(ViewLoader(stack(), TRANSFORM, 5))
    torch.manual_seed(1)
    assert equal(epochs(ViewLoader(stack(), TRANSFORM, 5)), expected)


class Items(Dataset):
    """A data set as others have it."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, place):
        return self.items[place]


ARRAYS = [draw(20 + n, 30, seed=n) for n in range(4)]


@pytest.mark.parametrize(
    "item",
    [
        lambda a: (Image.fromarray(a), 5),
        lambda a: [a, np.int64(5), "more"],
        lambda a: (torch.tensor(a).permute(2, 0, 1), torch.tensor(5)),
        lambda a: (Image.fromarray(a).convert("RGBA"), 5),
        lambda a: Image.fromarray(a),
    ],
)
def test_data_sets_of_others_are_taken(item):
    seen = []
    loader = ViewLoader(
        Items([item(a) for a in ARRAYS]), lambda images, **key: seen.append((images, key)), 4, shuffle=False
    )
    (batch,) = loader
    images, key = seen[0]
    assert type(images) is ImageList
    assert all(np.array_equal(image.permute(1, 2, 0), a) for image, a in zip(images, ARRAYS, strict=True))
    assert key["seed"] == key["epoch"] == 0 and key["index"].tolist() == [0, 1, 2, 3]
    assert batch.label.tolist() in ([5] * 4, [-1] * 4)


def test_images_of_one_size_come_as_a_stack():
    seen = []
    items = [(Image.fromarray(ARRAYS[0][:20]).convert("L"), 0), (Image.fromarray(ARRAYS[1][:20]).convert("L"), 1)]
    list(ViewLoader(Items(items), lambda images, **key: seen.append(images), 2, shuffle=False))
    assert seen[0].shape == (2, 1, 20, 30)
    list(ViewLoader(stack(), lambda images, **key: seen.append(images), 2, shuffle=False))
    assert torch.equal(seen[1], stack().images[:2])


def test_a_part_of_a_data_set_keeps_its_own_numbers(pictures):
    batches = list(ViewLoader(torch.utils.data.Subset(pictures, [7, 2, 4]), TRANSFORM, 3, shuffle=False))
    assert batches[0].index.tolist() == [7, 2, 4] and batches[0].label.tolist() == [1, 0, 0]


@pytest.mark.parametrize("options", [{"prefetch": 0}, {"prefetch": 2}, {"prefetch": 1, "num_workers": 2}])
def test_a_loop_that_is_left_leaves_no_thread_and_the_next_one_is_whole(pictures, options):
    loader = ViewLoader(pictures, TRANSFORM, 2, **options)
    for _ in loader:
        break
    assert not [thread for thread in threading.enumerate() if thread.name == "ViewLoader"]
    assert sum(len(batch.index) for batch in loader) == 10
    assert not [thread for thread in threading.enumerate() if thread.name == "ViewLoader"]


@pytest.mark.parametrize("options", [{"prefetch": 0}, {"prefetch": 2}, {"prefetch": 1, "num_workers": 1}])
def test_an_error_reaches_the_loop(pictures, options, root):
    (root / "train" / "dog" / "deeper" / "1.jpg").write_text("no picture")
    with pytest.raises(UnreadableImage, match=r"dog/deeper/1\.jpg: it is no picture"):
        list(ViewLoader(pictures, TRANSFORM, 2, **options))

    def fail(*_, **__):
        raise RuntimeError("of the transform")

    with pytest.raises(RuntimeError, match="of the transform"):
        list(ViewLoader(stack(), fail, 2, **options))


def test_batches_are_made_ahead_but_not_more_than_asked_for():
    made, go = [], threading.Event()

    def transform(images, *, index, **_):
        made.append(len(made))
        if len(made) == 3:
            go.set()

    batches = iter(ViewLoader(stack(20), transform, 2, prefetch=2))
    next(batches)
    assert go.wait(10)  # the first was taken, and two are ready
    assert made == [0, 1, 2]
    assert len(list(itertools.islice(batches, 9))) == 9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ViewLoader(stack(), TRANSFORM, 0), "ViewLoader: batch_size must be at least 1, got 0"),
        (lambda: ViewLoader(stack(), TRANSFORM, 2, num_workers=-1), "num_workers must be at least 0, got -1"),
        (lambda: ViewLoader(stack(), TRANSFORM, 2, prefetch=-1), "prefetch must be at least 0, got -1"),
        (lambda: ViewLoader(stack(), TRANSFORM, 2, seed=-1), "seed must be at least 0, got -1"),
        (lambda: ViewLoader(stack(), TRANSFORM, 11), "batch_size must be at most 10, .* got 11"),
        (lambda: ViewLoader(stack(), TRANSFORM, 6, rank=0, world_size=2), "batch_size must be at most 5, .* got 6"),
        (lambda: ViewLoader(stack(), TRANSFORM, 2).set_epoch(-1), "epoch must be at least 0, got -1"),
        (
            lambda: list(ViewLoader(Items([torch.zeros(3, 8, 8)] * 2), TRANSFORM, 2)),
            r"images must be uint8, .* got torch.float32 \(3, 8, 8\) at [01]; leave transforms to the loader",
        ),
    ],
)
def test_a_bad_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
