"""Features on disk, used again by the next evaluation of the same encoder on the same images.

A file's name is the digest of all that its content depends on: the encoder's weights, buffers and architecture, how it
sees an image, the images themselves (their bytes in memory, or the names, sizes and times of change of their files)
and the version of fastssl. So a file is never stale. It may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader

from fastssl._version import __version__
from fastssl.data.cache import CachedPictures, fingerprint_files
from fastssl.data.images import Batch, TensorImages
from fastssl.data.pictures import Files, Pictures
from fastssl.evaluate.features import Both, Features, extract_both, pixels
from fastssl.models.encoder import Encoder

_FORMAT = "fastssl features 1"
_log = logging.getLogger(__name__)


def default_folder() -> Path:
    """Where features are kept unless told otherwise: in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fastssl" / "features"


class FeatureCache:
    """Features by encoder and images: from disk where they are there, else computed and kept.

    Args:
        folder: of the files, made when it is needed; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def both(self, encoder: Encoder, batches: DataLoader[Batch]) -> Both:
        """:func:`fastssl.evaluate.extract_both`, unless it was computed before."""

        def compute() -> dict[str, Tensor]:
            h, z, index = extract_both(encoder, batches)
            return {"h": h.x, "label": h.label, "index": index} | ({} if z is None else {"z": z.x})

        found = self._get(lambda: [fingerprint_encoder(encoder)], batches, compute)
        z = Features(found["z"], found["label"]) if "z" in found else None
        return Both(Features(found["h"], found["label"]), z, found["index"])

    def pixels(self, batches: DataLoader[Batch]) -> Features:
        """:func:`fastssl.evaluate.pixels`, unless it was computed before."""

        def compute() -> dict[str, Tensor]:
            return pixels(batches)._asdict()

        # Of images in memory the features are the images; a second copy on the disk saves nothing.
        in_memory = isinstance(batches.dataset, TensorImages)
        found = compute() if in_memory else self._get(lambda: [b"pixels"], batches, compute)
        return Features(found["x"], found["label"])

    def _get(
        self, about: Callable[[], list[bytes]], batches: DataLoader[Batch], compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        images = None if self.folder is None else fingerprint_images(batches.dataset)
        if self.folder is None or images is None:
            return compute()
        key = _digest([_FORMAT.encode(), __version__.encode(), images, *about()]).hex()
        path = self.folder / f"{key[:40]}.safetensors"
        found = _read(path)
        if found is None:
            found = compute()
            _write(path, found)
        return found


def fingerprint_encoder(encoder: Encoder) -> bytes:
    """Digest of weights, buffers and architecture, and of how the encoder sees an image."""
    plan = encoder.transform.view.plans()[0]
    parts: list[Any] = [repr((tuple(encoder.architecture), tuple(plan))).encode()]
    for name, value in encoder.state_dict().items():
        parts += [f"{name} {value.dtype} {tuple(value.shape)}".encode(), _bytes(value)]
    return _digest(parts)


def fingerprint_images(images: Any) -> bytes | None:
    """Digest of a data set's images and labels; None for a kind that cannot tell, which is then not cached.

    A data set of another kind, or a source of pictures, takes part with a method ``fingerprint() -> bytes``.
    """
    if hasattr(images, "fingerprint"):
        return images.fingerprint()
    if isinstance(images, TensorImages):
        return _digest([str(tuple(images.images.shape)).encode(), _bytes(images.images), _bytes(images.labels)])
    if isinstance(images, Pictures):
        source: Any = images.source
        if isinstance(source, CachedPictures):
            source = source.files
        if isinstance(source, Files):
            return _digest([fingerprint_files(source), _bytes(images.labels)])
        if hasattr(source, "fingerprint"):
            return _digest([source.fingerprint(), _bytes(images.labels)])
    return None


def _bytes(x: Tensor) -> Any:
    """The numbers of a tensor, as a buffer."""
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() if x.numel() else b""


def _digest(parts: list[Any]) -> bytes:
    """SHA-256 of buffers of bytes, each with its length before it."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def _content(tensors: dict[str, Tensor]) -> str:
    return _digest([part for name in sorted(tensors) for part in (name.encode(), _bytes(tensors[name]))]).hex()


def _read(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file, None unless they are all there as they were written."""
    try:
        with safe_open(path, framework="pt") as file:
            content = (file.metadata() or {}).get("content")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except Exception as error:  # of many kinds, depending on where a file is broken
        if path.exists():
            _log.warning("the cached features %s are damaged (%s) and computed again", path, type(error).__name__)
        return None
    if content != _content(tensors):
        _log.warning("the cached features %s are damaged and computed again", path)
        return None
    return tensors


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a file under another name until it is complete; features that find no room are not kept."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".partial")
        os.close(handle)
        tensors = {name: x.contiguous() for name, x in tensors.items()}
        safetensors.torch.save_file(tensors, temporary, metadata={"content": _content(tensors)})
        os.replace(temporary, path)
    except (OSError, safetensors.SafetensorError) as error:
        _log.warning("cannot keep features in %s: %s", path.parent, getattr(error, "strerror", None) or error)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
