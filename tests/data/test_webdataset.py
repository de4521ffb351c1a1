"""Shards: which samples are found in them, where they lie, and what happens with damaged ones."""

import io
import json
import pickle
import socket
import tarfile

import numpy as np
import pytest
import torch
from drawn_pictures import draw
from PIL import Image

pytest.importorskip("lightning")
from fastssl.data import UnreadableImage, WebDataset, decode_image, shards
from fastssl.data.shards import expand


def encoded(number, form="JPEG"):
    file = io.BytesIO()
    Image.fromarray(draw(20 + number % 7, 30, seed=number)).save(file, form)
    return file.getvalue()


def write(path, members, **options):
    """A tar file of (name, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def sample(number, label=None):
    """Members of one sample, as WebDataset names them."""
    yield f"{number:06d}.jpg", encoded(number)
    if label is not None:
        yield f"{number:06d}.cls", str(label).encode()


def numbered(root, half, count, per_shard, **options):
    for first in range(0, count, per_shard):
        members = [part for n in range(first, min(count, first + per_shard)) for part in sample(n, n % 3)]
        write(root / f"{half}-{first // per_shard:03d}.tar", members, **options)


@pytest.fixture
def root(tmp_path):
    numbered(tmp_path, "train", 10, 4)
    numbered(tmp_path, "test", 4, 4)
    return tmp_path


@pytest.fixture
def set_up(tmp_path):
    def set_up(train, test=None, **options):
        options = {"batch_size": 2, "num_workers": 0, "cache_dir": str(tmp_path / "cache")} | options
        data = WebDataset(str(train), None if test is None else str(test), **options)
        data.setup("fit")
        return data

    return set_up


def images_of(loader):
    return [image for batch in loader for image in batch.image]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("pattern", ["train-{000..002}.tar", "train-*.tar", "tr{ain-000,ain-001,ain-002}.tar"])
def test_samples_are_found_in_the_order_of_the_shards(root, set_up, pattern, workers):
    data = set_up(root / pattern, root / "test-000.tar", num_workers=workers)
    assert (data.class_names, len(data.train), len(data.test)) == (["0", "1", "2"], 10, 4)
    batches = list(data.bank_dataloader())
    assert torch.cat([batch.label for batch in batches]).tolist() == [number % 3 for number in range(10)]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(10))
    for number, image in enumerate(image for batch in batches for image in batch.image):
        assert torch.equal(image, decode_image(encoded(number)))
    assert data.train.source.path(5) == root / "train-001.tar" / "000005.jpg"
    assert torch.equal(pickle.loads(pickle.dumps(data.train))[7].image[0], decode_image(encoded(7)))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_make_samples_as_in_webdataset(tmp_path, set_up, form):
    long = "x" * 120
    write(
        tmp_path / "a.tar",
        [
            ("some/folder.with.dots/one.jpg", encoded(1)),
            ("some/folder.with.dots/one.json", json.dumps({"label": 4, "caption": "a"}).encode()),
            ("elsewhere/one.PNG", encoded(2, "PNG")),
            ("elsewhere/one.cls", b" 2\n"),
            ("two.seg.png", encoded(3, "PNG")),
            ("two.txt", b"no picture"),
            ("two.cls", b"no number, of no picture"),
            (f"{long[:60]}/{long[:90]}.webp", encoded(4, "WEBP")),
            ("three.json", json.dumps({"caption": "no label"}).encode()),
            ("three.jpeg", encoded(5)),
            ("four.json", b"[1, 2]"),
            ("four.jpg", encoded(6)),
            ("four.cls", b"0"),
            (".hidden", b""),
        ],
        format=form,
    )
    data = set_up(tmp_path / "a.tar", tmp_path / "a.tar")
    assert data.train.labels.tolist() == [4, 2, -1, -1, 0]
    assert data.class_names == ["0", "1", "2", "3", "4"] and data.unreadable == []
    for number, image in zip((1, 2, 4, 5, 6), images_of(data.bank_dataloader()), strict=True):
        form = {2: "PNG", 4: "WEBP"}.get(number, "JPEG")
        assert torch.equal(image, decode_image(encoded(number, form)))
    assert set_up(tmp_path / "a.tar", labels="none").class_names == []


def test_shards_without_labels_have_no_classes(tmp_path, set_up):
    write(tmp_path / "a.tar", [part for number in range(30) for part in sample(number)])
    data = set_up(tmp_path / "a.tar")
    assert data.class_names == [] and data.num_classes == 0
    assert data.train.labels.unique().tolist() == [-1] == data.test.labels.unique().tolist()


def test_a_share_of_the_samples_is_kept_to_test_on_and_more_shards_move_none(tmp_path, set_up):
    def halves(data):
        return [{str(half.source.path(n)) for n in range(len(half))} for half in (data.train, data.test)]

    numbered(tmp_path, "all", 40, 20)
    data = set_up(tmp_path / "all-*.tar", test_share=0.25)
    before = halves(data)
    assert len(before[0] | before[1]) == 40 and not before[0] & before[1] and 3 <= len(before[1]) <= 18
    for half in (data.train, data.test):
        for n in range(0, len(half), 4):
            number = int(half.source.path(n).stem)
            assert torch.equal(half[n].image[0], decode_image(encoded(number))) and half.labels[n] == number % 3
    numbered(tmp_path, "all", 60, 20)
    after = halves(set_up(tmp_path / "all-*.tar", test_share=0.25))
    assert before[0] < after[0] and before[1] < after[1]


def test_headers_are_read_once_and_again_when_a_shard_changes(root, set_up, monkeypatch):
    scanned = []
    scan = shards._scan
    monkeypatch.setattr(shards, "_scan", lambda path: (scanned.append(path.name), scan(path))[1])
    names = [f"train-00{number}.tar" for number in range(3)]
    first = set_up(root / "train-*.tar")
    assert scanned == names
    again = set_up(root / "train-*.tar")
    assert scanned == names
    assert all(
        torch.equal(a, b)
        for a, b in zip(images_of(first.bank_dataloader()), images_of(again.bank_dataloader()), strict=True)
    )
    write(root / "train-001.tar", [part for number in range(5, 8) for part in sample(number, 7)])
    assert len(set_up(root / "train-*.tar").class_names) == 8 and scanned == [*names, "train-001.tar"]
    for stored in (root / "cache").iterdir():
        stored.write_bytes(stored.read_bytes()[:50])
    assert len(set_up(root / "train-*.tar").class_names) == 8 and scanned[4:] == names
    assert all(stored.suffix == ".npz" for stored in (root / "cache").iterdir())


def test_an_index_that_cannot_be_kept_does_not_matter(root, set_up):
    assert len(set_up(root / "train-*.tar", root / "test-000.tar", cache_dir="/dev/null/x").train) == 10


def test_what_is_broken_is_left_out_and_listed(root, set_up):
    whole = (root / "train-002.tar").read_bytes()
    write(root / "train-000.tar", [*sample(0, 0), *sample(1, "cat"), ("000002.jpg", b"no picture"), *sample(3, 2)])
    (root / "train-001.tar").write_bytes(b"no tar file" * 100)
    (root / "train-002.tar").write_bytes(whole[: whole.index(encoded(9)) + 40])
    with pytest.warns(UserWarning) as warned:
        data = set_up(root / "train-*.tar", root / "test-000.tar", batch_size=4)
    messages = [str(warning.message) for warning in warned]
    for message, end in zip(
        messages,
        (
            "train-000.tar/000001.jpg: its label in 000001.cls is no whole number; left out",
            r"train-001.tar: it is no uncompressed tar file (",
            r"train-002.tar: it breaks off (unexpected end of data); left out",
            "train-002.tar/000009.jpg: the tar file breaks off within it; left out",
        ),
        strict=True,
    ):
        assert message.startswith("WebDataset: cannot read ") and end in message
    assert len(data.train) == 4
    with pytest.warns(UserWarning, match=r"cannot read .*000002.jpg: it is no picture of a known format; another"):
        batch = next(iter(data.bank_dataloader()))
    assert batch.index.tolist() == [0, 2, 2, 3] and batch.label.tolist() == [0, 2, 2, 2]
    names = [path.relative_to(root).as_posix() for path in data.unreadable]
    assert names == [
        *("train-000.tar/000001.jpg", "train-001.tar", "train-002.tar", "train-002.tar/000009.jpg"),
        "train-000.tar/000002.jpg",
    ]
    with pytest.raises(
        UnreadableImage, match=r"WebDataset: cannot read .*train-001.tar: it is no uncompressed tar file"
    ):
        set_up(root / "train-001.tar", on_error="raise")
    with pytest.warns(UserWarning), pytest.raises(FileNotFoundError, match=r"no picture .* to test in 1 tar files"):
        set_up(root / "train-001.tar")


def test_a_compressed_shard_is_refused(tmp_path, set_up):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.add(__file__, "x.jpg")
    with pytest.raises(UnreadableImage, match=r"a.tar: it is no uncompressed tar file \("):
        set_up(tmp_path / "a.tar", on_error="raise")


def test_braces_and_wildcards(tmp_path):
    for name in ("a-08", "a-09", "a-10", "b-x-1", "b-y-1"):
        (tmp_path / f"{name}.tar").touch()

    def names(*patterns):
        return [path.stem for path in expand("train", [f"{tmp_path}/{pattern}.tar" for pattern in patterns])]

    assert names("a-{08..10}") == ["a-08", "a-09", "a-10"] == names("a-*")
    assert names("b-{y,x}-{1..1}") == ["b-y-1", "b-x-1"]
    assert names("b-*", "a-{10,08}") == ["b-x-1", "b-y-1", "a-10", "a-08"]
    for pattern, message in (
        ("a-{08..12}", r"train: there is no file .*a-11.tar; did you mean a-10.tar"),
        ("c-*", r"train: there is no file .*c-\*.tar; did you mean "),
        ("nowhere/a", r"there is no file .*nowhere/a.tar, nor any .tar file in .*nowhere"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            names(pattern)
    with pytest.raises(ValueError, match="WebDataset: train must name each file once"):
        names("a-08", "a-*")


@pytest.mark.parametrize("address", ["https://host/{0..9}.tar", "s3://bucket/a.tar", "pipe:cat a.tar"])
def test_addresses_are_refused(set_up, monkeypatch, address):
    monkeypatch.setattr(socket.socket, "connect", None)
    with pytest.raises(ValueError) as raised:
        set_up(address)
    assert str(raised.value) == f"WebDataset: train must be files on this machine, got {address!r}"


def test_order_is_a_function_of_seed_and_epoch(root, set_up):
    def order(seed, epoch):
        loader = set_up(root / "train-*.tar", root / "test-000.tar", seed=seed).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return np.concatenate([batch.index for batch in loader]).tolist()

    assert order(0, 1) == order(0, 1) != order(0, 2)
    assert order(1, 1) != order(0, 1)
