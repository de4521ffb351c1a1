"""`imagenette`: ten classes of ImageNet that are easy to tell apart, in full size or small."""

from __future__ import annotations

from typing import Literal

from fastssl.data.download import Archive, find_or_fetch
from fastssl.data.folder import Cache, Folder
from fastssl.data.pictures import Labels, OnError, check_choice

Version = Literal["full", "320px", "160px"]

# As torchvision has them; the shorter side of the pictures of the small ones is 320 or 160 pixels.
_AT = "https://s3.amazonaws.com/fast-ai-imageclas"
_ARCHIVES = {
    "full": Archive(f"{_AT}/imagenette2.tgz", "fe2fc210e6bb7c5664d602c3cd71e612", "imagenette2"),
    "320px": Archive(f"{_AT}/imagenette2-320.tgz", "3df6f0d01a2c9592104656642f5e78a3", "imagenette2-320"),
    "160px": Archive(f"{_AT}/imagenette2-160.tgz", "e793b78cc4c9e9a4ccc0c1155377a412", "imagenette2-160"),
}
_NAMES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


class Imagenette(Folder):
    """Imagenette, or another data set laid out like ImageNet: ``root/train/<wnid>/`` and ``root/val/<wnid>/``.

    Args:
        root: the folder that holds train and val, or the one that holds imagenette2, imagenette2-320 or
            imagenette2-160, as torchvision has it.
        version: which of the three: "full", or with a shorter side of "320px" or "160px".
        size: see :class:`fastssl.data.Folder`; `cap`, `cache`, `cache_dir`, `on_error`, `labels` likewise.
        batch_size: images per step and process.
        num_workers: processes that decode; none with a cache.
        seed: key of the order of the training images.
        cap: see `size`.
        cache: see `size`.
        cache_dir: see `size`.
        on_error: see `size`.
        labels: see `size`.
        download: whether the files are fetched where they are missing, with a line in the log about it.

    Raises:
        OSError: from ``setup`` if there is no such folder, or it cannot be downloaded.
        ValueError: see :class:`fastssl.data.Folder`.
    """

    def __init__(
        self,
        root: str,
        version: Version = "320px",
        size: int | None = 448,
        batch_size: int = 128,
        num_workers: int = 2,
        seed: int = 0,
        cap: bool | None = None,
        cache: Cache = "none",
        cache_dir: str | None = None,
        on_error: OnError = "skip",
        labels: Labels = "auto",
        download: bool = False,
    ) -> None:
        super().__init__(root, size, batch_size, num_workers, seed, cap, cache, cache_dir, on_error, labels)
        check_choice("Imagenette", "version", version, Version)
        self.version, self.download = version, download

    def setup(self, stage: str | None = None) -> None:
        """Find the files, or fetch them, if that was asked for; then as :class:`fastssl.data.Folder`."""
        if hasattr(self, "train"):
            return
        if not (self.root / "train").is_dir():
            self.root = find_or_fetch("Imagenette", _ARCHIVES[self.version], self.root, download=self.download)
        super().setup(stage)
        self.class_names = [_NAMES.get(name, name) for name in self.class_names]
