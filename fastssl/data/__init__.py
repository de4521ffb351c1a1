"""Readers of real images, and small real data that needs no download."""

from fastssl.data.base import Batch, ImageData, TensorImages
from fastssl.data.folder import Folder
from fastssl.data.photos import Photos

__all__ = ["Batch", "Folder", "ImageData", "Photos", "TensorImages"]
