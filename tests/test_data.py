"""The photographs: real, offline, labelled, and no pixel in both halves."""

import socket

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("lightning")
from fastssl.data import Photos, TensorImages
from fastssl.data import photos as module
from fastssl.data.photos import find_photos, half_of, load_photos, windows


@pytest.mark.parametrize("shape", [(191, 384), (660, 550), (64, 64), (101, 101)])
def test_halves_share_no_pixel_and_cover_the_picture(shape):
    pixels = np.arange(np.prod(shape)).reshape(shape)  # each pixel carries its own name
    train, test = half_of(pixels, "train"), half_of(pixels, "test")
    assert not np.intersect1d(train, test).size
    assert train.size + test.size == pixels.size
    assert abs(train.size - test.size) <= max(shape)


def test_no_pixel_of_a_picture_is_in_training_and_test_windows(monkeypatch, tmp_path):
    # Pictures whose colours name the pixel: red and green are the coordinates, blue the picture.

    paths = {}
    for blue, (height, width) in enumerate([(100, 200), (240, 90)]):
        y, x = np.mgrid[:height, :width]
        rgb = np.stack([y, x, np.full_like(y, blue)], -1).astype(np.uint8)
        paths[f"p{blue}"] = tmp_path / f"p{blue}.png"
        Image.fromarray(rgb).save(paths[f"p{blue}"])
    monkeypatch.setattr(module, "find_photos", lambda: paths)
    (train, train_labels), (test, test_labels) = (load_photos(half, 32, 16) for half in ("train", "test"))

    def places(images):
        return {tuple(pixel) for pixel in images.movedim(1, -1).reshape(-1, 3).tolist()}

    assert places(train) and places(test)
    assert not places(train) & places(test)
    assert torch.equal(train[:, 2, 0, 0].long(), train_labels)
    assert torch.equal(test[:, 2, 0, 0].long(), test_labels)


def test_windows_lie_on_the_grid():
    picture = np.arange(10 * 13).reshape(10, 13)
    cut = windows(picture, 4, 3)
    assert cut.shape == (3 * 4, 4, 4)
    assert np.array_equal(cut[5], picture[3:7, 3:7])


def test_photographs_are_found_on_disk_and_need_no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    find_photos.cache_clear()
    images, labels = load_photos("train")
    assert images.dtype == torch.uint8
    assert images.shape[1:] == (3, 64, 64)
    assert labels.dtype == torch.int64
    assert labels.unique().tolist() == list(range(len(find_photos())))
    assert len(find_photos()) >= 15
    gray = images[labels == list(find_photos()).index("brick")]
    assert torch.equal(gray[:, 0], gray[:, 2])


def test_a_missing_picture_is_left_out_with_a_warning(monkeypatch):
    package, folder, files = module._SOURCES[0]
    monkeypatch.setattr(module, "_SOURCES", ((package, folder, (*files[:3], "nowhere.png")),))
    find_photos.cache_clear()
    with pytest.warns(UserWarning, match=r"left out, not in the installed packages: skimage/data/nowhere.png"):
        assert list(find_photos()) == ["astronaut", "brick", "camera"]
    monkeypatch.setattr(module, "_SOURCES", (("no_such_package", folder, files),))
    find_photos.cache_clear()
    with pytest.raises(FileNotFoundError, match="found 0 of 17"):
        find_photos()
    find_photos.cache_clear()


@pytest.fixture(autouse=True, scope="module")
def fresh_cache():
    yield
    find_photos.cache_clear()


def test_the_largest_picture_does_not_dominate():
    _, labels = load_photos("train", per_picture=20)
    assert labels.bincount().max() == 20


def test_batches_are_uint8_with_labels_and_indices():
    data = Photos(batch_size=8, per_picture=3)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch.image.shape == (8, 3, 64, 64)
    assert batch.image.dtype == torch.uint8
    assert torch.equal(batch.image, data.train.images[batch.index])
    assert torch.equal(batch.label, data.train.labels[batch.index])
    bank = torch.cat([batch.index for batch in data.bank_dataloader()])
    assert bank.tolist() == list(range(len(data.train)))


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        data = Photos(batch_size=8, per_picture=3, seed=seed)
        data.setup()
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return torch.cat([batch.index for batch in loader]).tolist()

    torch.manual_seed(0)
    first = order(0, 1)
    torch.manual_seed(1)
    assert order(0, 1) == first
    assert order(0, 2) != first
    assert order(1, 1) != first
    assert len(set(first)) == len(first)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: load_photos("all"), "half must be"),
        (lambda: load_photos("train", stride=0), "stride must be at least 1, got 0"),
        (lambda: load_photos("train", size=200), r"size must be at most \d+, since half of 'coins'"),
        (lambda: Photos(batch_size=0), "Photos: batch_size must be at least 1, got 0"),
        (lambda: TensorImages(torch.zeros(2, 3, 4, 4), torch.zeros(2).long()), "images must be uint8"),
        (lambda: TensorImages(torch.zeros(2, 3, 4, 4).byte(), torch.zeros(3).long()), r"labels must be int64 \[2\]"),
    ],
)
def test_a_bad_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_batch_larger_than_the_data_is_named():
    data = Photos(batch_size=500, per_picture=2)
    data.setup()
    with pytest.raises(ValueError, match=r"batch_size must be at most 38, .* got 500"):
        data.train_dataloader()
