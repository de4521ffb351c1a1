"""Data sets of the package datasets, written here: what is found in them, and that nothing asks the network."""

import io
import pickle
import socket

import numpy as np
import pytest
import torch
from drawn_pictures import draw
from PIL import Image

pytest.importorskip("lightning")
pytest.importorskip("datasets")
import datasets

from fastssl.data import HuggingFace, UnreadableImage, decode_image


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise AssertionError("the network was asked")

    connect = socket.socket.connect
    local = socket.AF_UNIX  # what loader processes talk through
    monkeypatch.setattr(socket.socket, "connect", lambda s, to: connect(s, to) if s.family == local else refuse())
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def encoded(number, form="PNG"):
    file = io.BytesIO()
    Image.fromarray(draw(20 + number % 7, 30, seed=number)).save(file, form)
    return file.getvalue()


def table(count, labels=("cat", "dog"), start=0, **columns):
    """Pictures of different sizes, with labels in turn."""
    content = {"picture": [{"bytes": encoded(start + number), "path": None} for number in range(count)]}
    features = {"picture": datasets.Image()}
    if labels:
        content["animal"] = [number % len(labels) for number in range(count)]
        features["animal"] = datasets.ClassLabel(names=list(labels))
    for name, (values, feature) in columns.items():
        content[name], features[name] = values, feature
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


def set_up(path, **options):
    data = HuggingFace(str(path), **({"batch_size": 2, "num_workers": 0} | options))
    data.setup("fit")
    return data


def images_of(loader):
    return [image for batch in loader for image in batch.image]


@pytest.fixture
def saved(tmp_path):
    halves = {"train": table(10), "validation": table(4, start=10)}
    datasets.DatasetDict(halves).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_saved_data_set_is_found_and_decoded_as_files_are(saved, workers):
    data = set_up(saved, num_workers=workers)
    assert (data.class_names, len(data.train), len(data.test)) == (["cat", "dog"], 10, 4)
    for loader, start in ((data.bank_dataloader(), 0), (data.test_dataloader(), 10)):
        images = images_of(loader)
        for number, image in enumerate(images):
            assert torch.equal(image, decode_image(encoded(start + number)))
        assert [label for batch in loader for label in batch.label.tolist()] == [0, 1] * (len(images) // 2)
    assert sum(len(batch.image) for batch in data.train_dataloader()) == 10
    assert torch.equal(pickle.loads(pickle.dumps(data.train))[3].image[0], data.train[3].image[0])


def test_large_pictures_are_decoded_smaller(saved):
    assert set_up(saved, size=10).train[0].image[0].shape == (3, 10, 15)
    assert set_up(saved, size=12, cap=True).train[0].image[0].shape == (3, 12, 18)


@pytest.mark.parametrize("form", ["parquet", "folder"])
def test_files_that_datasets_can_read_are_read(tmp_path, form):
    root = tmp_path / "files"
    if form == "parquet":
        root.mkdir()
        table(6).to_parquet(root / "train-00000.parquet")
        table(4, start=6).to_parquet(root / "test-00000.parquet")
    else:
        for half, count in (("train", 6), ("test", 4)):
            for number in range(count):
                path = root / half / ("cat", "dog")[number % 2] / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded(number))
    data = set_up(root)
    assert (data.class_names, len(data.train), len(data.test)) == (["cat", "dog"], 6, 4)
    images = images_of(data.bank_dataloader())
    order = range(6) if form == "parquet" else (0, 2, 4, 1, 3, 5)
    assert all(torch.equal(image, decode_image(encoded(number))) for image, number in zip(images, order, strict=True))


def test_one_table_keeps_a_share_of_its_rows_to_test_on(tmp_path):
    table(60).save_to_disk(tmp_path / "one")
    data = set_up(tmp_path / "one", test_share=0.25)
    assert len(data.train) + len(data.test) == 60 and 6 <= len(data.test) <= 24
    rows = [int(half.source.path(number).name) for half in (data.train, data.test) for number in range(len(half))]
    assert sorted(rows) == list(range(60))
    for half in (data.train, data.test):
        for number in range(0, len(half), 5):
            row = int(half.source.path(number).name)
            assert torch.equal(half[number].image[0], decode_image(encoded(row)))
            assert half.labels[number] == row % 2


def test_labels_of_other_kinds_and_none(tmp_path):
    rows = {
        "word": (["b", "a", None, "b", "a", "b"], datasets.Value("string")),
        "year": ([1999, 2005, 1999, -1, 2005, 2005], datasets.Value("int32")),
        "weight": ([0.5] * 6, datasets.Value("float32")),
    }
    both = table(6, labels=(), **rows)
    datasets.DatasetDict({"train": both, "test": both}).save_to_disk(tmp_path / "saved")
    words, years = (set_up(tmp_path / "saved", label_column=column) for column in ("word", "year"))
    assert words.class_names == ["a", "b"] and words.test.labels.tolist() == [1, 0, -1, 1, 0, 1]
    assert years.class_names == ["1999", "2005"] and years.train.labels.tolist() == [0, 1, 0, -1, 1, 1]
    for options in ({}, {"label_column": "word", "labels": "none"}):
        data = set_up(tmp_path / "saved", **options)
        assert data.class_names == [] and data.train.labels.unique().tolist() == [-1]
    with pytest.raises(ValueError, match="label_column must hold class labels, whole numbers or words, 'weight' is"):
        set_up(tmp_path / "saved", label_column="weight")


def spoilt(tmp_path):
    pictures = [{"bytes": encoded(number), "path": None} for number in range(6)]
    pictures[1] = {"bytes": encoded(1)[:60], "path": None}
    pictures[3] = None
    pictures[4] = {"bytes": None, "path": str(tmp_path / "nowhere.png")}
    (tmp_path / "nowhere.png").touch()
    features = datasets.Features({"picture": datasets.Image()})
    broken = datasets.Dataset.from_dict({"picture": pictures}, features=features)
    datasets.DatasetDict({"train": broken, "test": table(2, labels=())}).save_to_disk(tmp_path / "broken")
    (tmp_path / "nowhere.png").unlink()
    return tmp_path / "broken"


def test_pictures_that_cannot_be_read_are_skipped_and_listed(tmp_path):
    path = spoilt(tmp_path)
    data = set_up(path)
    with pytest.warns(
        UserWarning, match="HuggingFace: cannot read .*broken/train/.*another picture takes its place"
    ) as w:
        batches = list(data.bank_dataloader())
    assert torch.cat([batch.index for batch in batches]).tolist() == [0, 2, 2, 5, 5, 5]
    assert data.unreadable == [path / "train" / row for row in ("1", "3", "4")] and len(w) == 3
    assert "there is no picture in the row" in str(w[1].message)
    with pytest.raises(UnreadableImage, match=r"HuggingFace: cannot read .*broken/train/1: "):
        list(set_up(path, on_error="raise").bank_dataloader())


def test_what_is_wrong_is_named(saved, tmp_path):
    for options, message in (
        ({"train_split": "trian"}, r"train_split must be a split of .*saved, got 'trian'; did you mean train\?"),
        ({"test_split": "test"}, r"test_split must be a split of .*saved, got 'test'; choose from train, validation"),
        ({"image_column": "pictures"}, r"image_column must be a column of .*, got 'pictures'; did you mean picture\?"),
        (
            {"image_column": "animal"},
            r"must have a column of type Image, it has picture \(Image\), animal \(ClassLabel\)",
        ),
        ({"label_column": "aminal"}, r"label_column must be a column of .*, got 'aminal'; did you mean animal\?"),
        ({"on_error": "ignore"}, 'HuggingFace: on_error must be "raise" or "skip"'),
        ({"labels": "all"}, 'HuggingFace: labels must be "auto" or "none"'),
    ):
        with pytest.raises(ValueError, match=message):
            set_up(saved, **options)
    two = table(4, second=([0] * 4, datasets.ClassLabel(names=["x"])))
    two.save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match="label_column must be one of animal, second, got None"):
        set_up(tmp_path / "two")
    other = table(4, labels=(), animal=(["cat", "eel", "cat", "cat"], datasets.Value("string")))
    first = table(4, labels=(), animal=(["cat", "dog", "cat", "cat"], datasets.Value("string")))
    datasets.DatasetDict({"train": first, "test": other}).save_to_disk(tmp_path / "other")
    with pytest.raises(ValueError, match=r"classes that the split to train on lacks: \['eel'\]"):
        set_up(tmp_path / "other", label_column="animal")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"HuggingFace: cannot load '.*empty': ") as raised:
        set_up(tmp_path / "empty")
    assert "\n" not in str(raised.value)


def test_nothing_is_fetched_unless_asked_for(monkeypatch, caplog):
    before = datasets.config.HF_HUB_OFFLINE
    with pytest.raises(FileNotFoundError) as raised:
        set_up("someone/animals")
    assert str(raised.value).startswith(
        "HuggingFace: cannot load 'someone/animals': there is no such folder, and no copy of such a data set from the "
        f"Hub on this machine; download=True (--data.download=true) fetches it from {datasets.config.HF_ENDPOINT}"
    )
    assert "\n" not in str(raised.value) and datasets.config.HF_HUB_OFFLINE is before

    class Builder:
        info = datasets.DatasetInfo(download_size=12_345_678)

    def load(path, name):
        if datasets.config.HF_HUB_OFFLINE:
            raise ConnectionError("offline")
        return datasets.DatasetDict({"train": table(4), "test": table(2)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda path, name: Builder)
    data = set_up("someone/animals", download=True)
    assert len(data.train) == 4 and data.train.source.path(0).as_posix() == "someone/animals/train/0"
    expected = f"HuggingFace: downloading {datasets.config.HF_ENDPOINT}/datasets/someone/animals (12 MB) to "
    assert [record.message.startswith(expected) for record in caplog.records] == [True]


def test_without_the_package_one_line_says_what_to_install(monkeypatch, saved):
    from fastssl.data import huggingface

    monkeypatch.setattr(huggingface, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'HuggingFace needs the package datasets: pip install "fastssl\[hf\]"'):
        set_up(saved)


def test_order_is_a_function_of_seed_and_epoch(saved):
    def order(seed, epoch):
        loader = set_up(saved, seed=seed).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return np.concatenate([batch.index for batch in loader]).tolist()

    assert order(0, 1) == order(0, 1) != order(0, 2)
    assert order(1, 1) != order(0, 1)
