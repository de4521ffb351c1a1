"""Published data sets: read from their files, and downloaded only when that was asked for."""

import functools
import hashlib
import http.server
import logging
import multiprocessing
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets
from drawn_pictures import make_folder
from published_sets import write_cifar, write_stl10

pytest.importorskip("lightning")
from fastssl.data import CIFAR10, CIFAR100, DATA, STL10, Digits, Imagenette
from fastssl.data.download import Archive, find_or_fetch


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    connect = socket.socket.connect

    def refuse(self, address):
        if address[0] != "127.0.0.1":
            raise AssertionError(f"the network was asked: {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


def set_up(data):
    data.setup("fit")
    return data


def test_readers_are_listed_without_importing_any():
    code = (
        "import sys, fastssl.data\nprint(len(fastssl.data.DATA), 'torch' in sys.modules, 'lightning' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{len(DATA)} False False\n"


def test_each_reader_is_found_by_its_short_name():
    import fastssl.data

    for name, path in DATA.items():
        module, _, cls = path.rpartition(".")
        assert module == "fastssl.data" and cls.lower() == name
        assert issubclass(getattr(fastssl.data, cls), fastssl.data.ImageData)
    assert [name for name in fastssl.data.__all__ if not hasattr(fastssl.data, name)] == []
    with pytest.raises(AttributeError, match=r"'fastssl.data' has no attribute 'Pohtos'"):
        fastssl.data.Pohtos  # noqa: B018


# Digits


def test_digits_are_all_there_once():
    import sklearn.datasets

    originals, labels = sklearn.datasets.load_digits(return_X_y=True)
    data = set_up(Digits(size=8))
    assert (len(data.train), len(data.test), data.num_classes) == (1437, 360, 10)
    images = torch.cat([data.train.images, data.test.images])
    assert images.shape == (1797, 3, 8, 8) and images.dtype == torch.uint8
    assert (images[:, 0] == images[:, 1]).all() and (images[:, 0] == images[:, 2]).all()
    # 17 levels in 256: rounding loses nothing.
    assert np.array_equal((images[:, 0].reshape(-1, 64).double() * 16 / 255).round().numpy(), originals)
    assert torch.cat([data.train.labels, data.test.labels]).tolist() == labels.tolist()


def test_digits_are_enlarged_and_stay_legible():
    data, small = set_up(Digits()), set_up(Digits(size=8))
    assert data.train.images.shape == (1437, 3, 32, 32)
    back = torch.nn.functional.avg_pool2d(data.train.images.float(), 4)
    assert (back - small.train.images.float()).abs().mean() < 16  # of 255
    assert (data.train.images.amax((1, 2, 3)) > 200).all() and (data.train.images.amin((1, 2, 3)) == 0).all()
    with pytest.raises(ValueError, match="Digits: size must be at least 8, that of the originals, got 4"):
        Digits(size=4)


# CIFAR


@pytest.mark.parametrize(("reader", "classes", "count"), [(CIFAR10, 10, 40), (CIFAR100, 100, 8)])
def test_cifar_is_read_from_its_files(tmp_path, monkeypatch, reader, classes, count):
    folder = write_cifar(tmp_path, monkeypatch, classes=classes)
    for root in (tmp_path, folder):
        data = set_up(reader(str(root), batch_size=8))
        assert (len(data.train), len(data.test), data.num_classes) == (count, 8, classes)
        assert data.class_names[3] == "class 3" and data.unreadable == []
    published = (torchvision.datasets.CIFAR10 if classes == 10 else torchvision.datasets.CIFAR100)(str(tmp_path))
    batch = next(iter(data.train_dataloader()))
    assert batch.image.shape == (8, 3, 32, 32) and batch.image.dtype == torch.uint8
    for image, label, number in zip(*batch, strict=True):
        picture, expected = published[number]
        assert np.array_equal(image.permute(1, 2, 0), np.asarray(picture)) and label == expected


def test_cifar_files_that_are_missing_or_changed_are_not_read(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError) as raised:
        set_up(CIFAR10(str(tmp_path / "nowhere")))
    assert str(raised.value) == (
        f"CIFAR10: there is no {tmp_path}/nowhere/cifar-10-batches-py; download=True (--data.download=true) fetches it "
        "from https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    )
    assert not (tmp_path / "nowhere").exists()
    folder = write_cifar(tmp_path, monkeypatch)
    (folder / "data_batch_3").write_bytes((folder / "data_batch_3").read_bytes()[:-1])
    for download in (False, True):
        with pytest.raises(ValueError, match=r"must hold data_batch_1, .*batches.meta with the published MD5, one of"):
            set_up(CIFAR10(str(tmp_path), download=download))


# STL-10


def test_stl10_trains_without_labels_and_evaluates_with_them(tmp_path):
    write_stl10(tmp_path)
    data = set_up(STL10(str(tmp_path), batch_size=7))
    assert (len(data.train), len(data.bank), len(data.test), data.num_classes) == (50, 20, 20, 10)
    batches = [torch.cat(parts) for parts in zip(*data.train_dataloader(), strict=True)]
    image, label, index = (part[batches[2].argsort()] for part in batches)
    known = torch.cat([torch.cat([batch.label for batch in data.bank_dataloader()]), torch.full((30,), -1)])
    assert len(index.unique()) == 49 and torch.equal(label, known[index])
    for half, start in (("train", 0), ("unlabeled", 20)):
        stored = np.fromfile(tmp_path / "stl10_binary" / f"{half}_X.bin", np.uint8).reshape(-1, 3, 96, 96)
        for number, picture in zip(index.tolist(), image, strict=True):
            if start <= number < start + len(stored):
                assert np.array_equal(picture.transpose(1, 2), stored[number - start])
    assert [len(batch.image) for batch in data.bank_dataloader()] == [7, 7, 6]
    alone = set_up(STL10(str(tmp_path), unlabeled=False, batch_size=7))
    assert len(alone.train) == 20 and torch.equal(next(iter(alone.bank_dataloader())).label, torch.arange(7))


def test_stl10_files_that_are_missing_or_cut_off_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"STL10: there is no .*stl10_binary; download=True"):
        set_up(STL10(str(tmp_path)))
    folder = write_stl10(tmp_path)
    (folder / "unlabeled_X.bin").rename(tmp_path / "kept")
    set_up(STL10(str(tmp_path), unlabeled=False))
    with pytest.raises(FileNotFoundError, match=r"STL10: .*stl10_binary lacks unlabeled_X.bin$"):
        set_up(STL10(str(tmp_path)))
    (folder / "unlabeled_X.bin").write_bytes((tmp_path / "kept").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"the length of .*unlabeled_X.bin must be a multiple of 27648 bytes, it is"):
        set_up(STL10(str(tmp_path)))
    (folder / "test_y.bin").write_bytes(b"\0" * 20)
    with pytest.raises(ValueError, match=r"test_y.bin must hold 20 labels from 1 to 10, one per image, it has 20"):
        set_up(STL10(str(tmp_path), unlabeled=False))


# Imagenette


def make_imagenette(folder):
    make_folder(folder)
    (folder / "test").rename(folder / "val")
    for half in ("train", "val"):
        for name, wnid in (("cat", "n03394916"), ("dog", "n01440764")):
            (folder / half / name).rename(folder / half / wnid)
    return folder


def test_imagenette_has_names_for_its_classes(tmp_path):
    folder = make_imagenette(tmp_path / "imagenette2-160")
    for root, options in ((tmp_path, {"version": "160px"}), (folder, {})):
        data = set_up(Imagenette(str(root), batch_size=2, num_workers=0, **options))
        assert data.class_names == ["tench", "French horn"] and (len(data.train), len(data.test)) == (10, 6)
        assert data.train.source.path(0).parts[-3] == "n01440764" and data.train.labels[0] == 0
    (folder / "train" / "n01440764").rename(folder / "train" / "n99999999")
    (folder / "val" / "n01440764").rename(folder / "val" / "n99999999")
    assert set_up(Imagenette(str(folder), num_workers=0)).class_names == ["French horn", "n99999999"]


def test_imagenette_that_is_missing_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"Imagenette: there is no .*imagenette2-320; download=True .*-320.tgz$"
    ):
        set_up(Imagenette(str(tmp_path)))
    with pytest.raises(ValueError, match='Imagenette: version must be "full" or "320px" or "160px", got \'64px\''):
        Imagenette(str(tmp_path), version="64px")


# Downloads, from a server in this process


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def archive(tmp_path):
    """A small STL-10, packed and served."""
    folder = write_stl10(tmp_path / "made", labelled=10, unlabelled=1)
    file = shutil.make_archive(str(tmp_path / "served" / "published"), "gztar", folder.parent, folder.name)
    handler = functools.partial(QuietHandler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.handle_error = lambda *arguments: None  # torchvision hangs up once it knows that there is no redirection
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/published.tar.gz"
        yield Archive(url, hashlib.md5(Path(file).read_bytes()).hexdigest(), folder.name)
        server.shutdown()


def test_a_download_is_announced_and_done_once(tmp_path, monkeypatch, caplog, archive):
    published = torchvision.datasets.STL10
    monkeypatch.setattr(published, "url", archive.url)
    monkeypatch.setattr(published, "tgz_md5", archive.md5)
    root = tmp_path / "new" / "root"
    with caplog.at_level(logging.WARNING):
        data = set_up(STL10(str(root), download=True))
        set_up(STL10(str(root), download=True))
    assert len(data.train) == 11
    assert [record.message for record in caplog.records] == [f"STL10: downloading {archive.url} (1 MB) to {root}"]
    assert sorted(path.name for path in root.iterdir()) == ["published.tar.gz", "stl10_binary"]


def test_a_failed_download_is_one_line_and_leaves_no_data_set(tmp_path, archive):
    for wrong in (archive._replace(url=archive.url + "x"), archive._replace(md5="0" * 32)):
        with pytest.raises(OSError, match=r"STL10: cannot download http://.* to .*root: ") as raised:
            find_or_fetch("STL10", wrong, tmp_path / "root", download=True)
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "root" / "stl10_binary").exists()


def test_processes_that_start_together_download_once(tmp_path, archive):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    barrier = context.Barrier(3)

    def fetch():
        records = []
        logging.getLogger("fastssl.data.download").addFilter(records.append)
        barrier.wait()
        find_or_fetch("STL10", archive, tmp_path / "root", download=True)
        results.put(len(records))

    processes = [context.Process(target=fetch) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sorted(results.get(timeout=10) for _ in range(3)) == [0, 0, 1]


def test_the_reader_that_the_documentation_shows_can_be_trained_on():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    namespace = {}
    exec(page.partition("```python\n")[2].partition("```")[0], namespace)
    data = set_up(namespace["Shapes"](batch_size=10, count=40))
    batch = next(iter(data.train_dataloader()))
    assert batch.image.shape == (10, 3, 32, 32) and batch.image.unique().tolist() == [0, 255]
    assert (batch.label == batch.index % 2).all()
    discs, squares = (batch.image[batch.label == label].sum((1, 2, 3)).unique() for label in (1, 0))
    assert len(discs) == len(squares) == 1 and discs < squares
