"""Readers of real images, and small real data that needs no download."""

from fastssl.data.base import ImageData
from fastssl.data.decode import UnreadableImage, decode_image, read_image
from fastssl.data.folder import Folder
from fastssl.data.images import Batch, ImageList, TensorImages
from fastssl.data.loader import ViewLoader, Views
from fastssl.data.photos import Photos
from fastssl.data.pictures import Files, Pictures

__all__ = [
    "Batch",
    "Files",
    "Folder",
    "ImageData",
    "ImageList",
    "Photos",
    "Pictures",
    "TensorImages",
    "UnreadableImage",
    "ViewLoader",
    "Views",
    "decode_image",
    "read_image",
]
