"""Cached features: used again without running the encoder, never stale, nor half written, nor trusted if damaged."""

import logging
import os

import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("lightning")
pytest.importorskip("safetensors")
from fastssl.data import ImageData, TensorImages
from fastssl.data.pictures import Files, Pictures
from fastssl.evaluate.cache import FeatureCache, fingerprint_encoder, fingerprint_images
from fastssl.models.encoder import Architecture, Encoder


class Counting(nn.Module):
    num_features = 5

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 8 * 8, 5)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x.flatten(1))


def encoder(seed=0, size=8, projection=True) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(Counting(), Architecture("counting"), size, nn.Linear(5, 2) if projection else None)


def loader(images):
    data = ImageData(batch_size=4)
    data.train = data.test = images
    return data.test_dataloader()


def images(seed=0, n=10):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return TensorImages(image, torch.arange(n) % 3 - 1)


def same(a, b):
    return (
        torch.equal(a.h.x, b.h.x)
        and torch.equal(a.h.label, b.h.label)
        and torch.equal(a.z.x, b.z.x)
        and torch.equal(a.index, b.index)
    )


def test_the_second_call_runs_no_encoder(tmp_path):
    first, again = encoder(), encoder()
    computed = FeatureCache(tmp_path).both(first, loader(images()))
    assert first.backbone.calls == 3
    found = FeatureCache(tmp_path).both(again, loader(images()))
    assert again.backbone.calls == 0
    assert same(computed, found)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


@pytest.mark.parametrize(
    "change",
    [
        lambda: (encoder(seed=1), images()),
        lambda: (encoder(size=4), images()),
        lambda: (encoder(projection=False), images()),
        lambda: (encoder(), images(seed=1)),
        lambda: (encoder(), images(n=9)),
    ],
    ids=["weights", "size", "projection", "pixels", "number"],
)
def test_whatever_features_depend_on_makes_others(tmp_path, change):
    cache = FeatureCache(tmp_path)
    cache.both(encoder(), loader(images()))
    other, data = change()
    if other.size == 4:
        other.backbone.layer = nn.Linear(3 * 4 * 4, 5)
    cache.both(other, loader(data))
    assert other.backbone.calls > 0
    assert len(list(tmp_path.iterdir())) == 2


def test_a_changed_label_buffer_or_normalisation_changes_the_fingerprint():
    labels = images()
    before = fingerprint_images(labels)
    labels.labels[3] = 2
    assert fingerprint_images(labels) != before
    norm = encoder()
    norm.backbone.norm = nn.BatchNorm1d(5)
    before = fingerprint_encoder(norm)
    norm.backbone.norm.running_mean += 1
    assert fingerprint_encoder(norm) != before
    other = Encoder(norm.backbone, norm.architecture, 8, norm.projection, statistics=((0, 0, 0), (1, 1, 1)))
    assert fingerprint_encoder(other) != fingerprint_encoder(norm)


def test_a_changed_file_makes_other_features(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"{name}.png")
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    pictures = Pictures(Files(files), [0, 1])
    before = fingerprint_images(pictures)
    assert fingerprint_images(Pictures(Files(files), [0, 1])) == before
    assert fingerprint_images(Pictures(Files(files), [0, -1])) != before
    assert fingerprint_images(Pictures(Files(files, size=4), [0, 1])) != before
    os.utime(files[0], ns=(1, 1))
    assert fingerprint_images(pictures) != before


@pytest.mark.parametrize("damage", ["cut", "flipped", "other", "empty"])
def test_damaged_features_are_computed_again(tmp_path, damage, caplog):
    cache = FeatureCache(tmp_path)
    computed = cache.both(encoder(), loader(images()))
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[-5] ^= 1
    else:
        content = bytearray(b"no features" if damage == "other" else b"")
    path.write_bytes(content)
    again = encoder()
    with caplog.at_level(logging.WARNING):
        assert same(cache.both(again, loader(images())), computed)
    assert again.backbone.calls == 3
    assert "are damaged" in caplog.text and str(path) in caplog.text
    again = encoder()
    assert same(cache.both(again, loader(images())), computed)
    assert again.backbone.calls == 0


def test_a_folder_that_cannot_be_written_costs_only_the_cache(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    found = FeatureCache(tmp_path / "file" / "features").both(encoder(), loader(images()))
    assert found.h.x.shape == (10, 5)
    assert "cannot keep features" in caplog.text


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch, caplog):
    import fastssl.evaluate.cache as module

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "replace", full)
    FeatureCache(tmp_path).both(encoder(), loader(images()))
    assert list(tmp_path.iterdir()) == []
    assert "No space left on device" in caplog.text


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        model = encoder()
        FeatureCache(None).both(model, loader(images()))
        assert model.backbone.calls == 3
    assert list(tmp_path.iterdir()) == []


def test_pixels_of_files_are_cached_and_those_in_memory_are_not(tmp_path):
    cache = FeatureCache(tmp_path / "features")
    assert cache.pixels(loader(images())).x.shape == (10, 192)
    assert not (tmp_path / "features").exists()
    file = tmp_path / "a.png"
    Image.effect_noise((40, 40), 50).convert("RGB").save(file)
    pictures = Pictures(Files([file]), [0])
    computed = cache.pixels(loader(pictures))
    pictures.source.read = None  # nothing is decoded any more
    assert torch.equal(cache.pixels(loader(pictures)).x, computed.x)


def test_a_data_set_of_another_kind_may_say_what_it_is(tmp_path):
    class Other(torch.utils.data.Dataset):
        def __len__(self):
            return 10

        def __getitems__(self, indices):
            return images().__getitems__(indices)

    cache = FeatureCache(tmp_path)
    cache.both(encoder(), loader(Other()))
    assert list(tmp_path.iterdir()) == []
    Other.fingerprint = lambda self: b"ten images"
    cache.both(encoder(), loader(Other()))
    again = encoder()
    cache.both(again, loader(Other()))
    assert again.backbone.calls == 0
