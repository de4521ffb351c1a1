"""Readers of real images, and small real data that needs no download.

Importing this package imports neither torch nor Lightning: the command line lists the readers from here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastssl.data.base import ImageData
    from fastssl.data.decode import UnreadableImage, decode_image, read_image
    from fastssl.data.digits import Digits
    from fastssl.data.folder import Folder
    from fastssl.data.huggingface import HuggingFace
    from fastssl.data.imagenette import Imagenette
    from fastssl.data.images import Batch, ImageList, TensorImages
    from fastssl.data.loader import ViewLoader, Views
    from fastssl.data.photos import Photos
    from fastssl.data.pictures import Files, Pictures
    from fastssl.data.torchvision_sets import CIFAR10, CIFAR100, STL10
    from fastssl.data.webdataset import WebDataset

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "DATA",
    "STL10",
    "Batch",
    "Digits",
    "Files",
    "Folder",
    "HuggingFace",
    "ImageData",
    "ImageList",
    "Imagenette",
    "Photos",
    "Pictures",
    "TensorImages",
    "UnreadableImage",
    "ViewLoader",
    "Views",
    "WebDataset",
    "decode_image",
    "read_image",
]

DATA: dict[str, str] = {
    "photos": "fastssl.data.Photos",
    "digits": "fastssl.data.Digits",
    "folder": "fastssl.data.Folder",
    "cifar10": "fastssl.data.CIFAR10",
    "cifar100": "fastssl.data.CIFAR100",
    "stl10": "fastssl.data.STL10",
    "imagenette": "fastssl.data.Imagenette",
    "huggingface": "fastssl.data.HuggingFace",
    "webdataset": "fastssl.data.WebDataset",
}
"""Readers by the short names that the command line takes, with the path of their class."""

_MODULES = {
    "base": ("ImageData",),
    "decode": ("UnreadableImage", "decode_image", "read_image"),
    "digits": ("Digits",),
    "folder": ("Folder",),
    "huggingface": ("HuggingFace",),
    "imagenette": ("Imagenette",),
    "images": ("Batch", "ImageList", "TensorImages"),
    "loader": ("ViewLoader", "Views"),
    "photos": ("Photos",),
    "pictures": ("Files", "Pictures"),
    "torchvision_sets": ("CIFAR10", "CIFAR100", "STL10"),
    "webdataset": ("WebDataset",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
