"""Small data sets in the format of published ones, written here; nothing is downloaded."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import torchvision.datasets


def _md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(root, monkeypatch, *, classes=10, images=8):
    """The files of CIFAR-10 or -100 with `images` in each, which torchvision then takes for the published ones."""
    published = torchvision.datasets.CIFAR10 if classes == 10 else torchvision.datasets.CIFAR100
    folder = Path(root) / published.base_folder
    folder.mkdir(parents=True)
    random = np.random.default_rng(classes)
    for files in ("train_list", "test_list"):
        sums = []
        for name, _ in getattr(published, files):
            labels = (np.arange(images) % classes).tolist()
            content = {"data": random.integers(0, 256, (images, 3072), np.uint8)}
            content["labels" if classes == 10 else "fine_labels"] = labels
            (folder / name).write_bytes(pickle.dumps(content, 2))
            sums.append([name, _md5(folder / name)])
        monkeypatch.setattr(published, files, sums)
    names = [f"class {number}" for number in range(classes)]
    meta = folder / published.meta["filename"]
    meta.write_bytes(pickle.dumps({published.meta["key"]: names}, 2))
    monkeypatch.setattr(published, "meta", {**published.meta, "md5": _md5(meta)})
    return folder


def write_stl10(root, *, labelled=20, unlabelled=30):
    """The files of STL-10: each image [3, width, height], labels from 1 on."""
    folder = Path(root) / "stl10_binary"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for half, count in (("train", labelled), ("test", labelled), ("unlabeled", unlabelled)):
        random.integers(0, 256, (count, 3, 96, 96), np.uint8).tofile(folder / f"{half}_X.bin")
        if half != "unlabeled":
            (np.arange(count) % 10 + 1).astype(np.uint8).tofile(folder / f"{half}_y.bin")
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n")
    return folder
