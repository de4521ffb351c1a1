"""fastssl: fused kernels, losses and methods for self-supervised learning.

Importing the package imports neither torch nor CUDA nor any extra: submodules load when they are first used, so that
``fastssl --help`` answers at once.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .backends import backend

if TYPE_CHECKING:
    from pathlib import Path

    from . import augment, functional, losses, ops
    from .models import Encoder

__all__ = ["__version__", "augment", "backend", "functional", "load", "losses", "ops", "release_workspaces"]

_SUBMODULES = {"augment", "functional", "losses", "ops"}


def load(path: str | Path) -> Encoder:
    """The encoder that ``fastssl fit`` trained or ``fastssl export`` wrote, ready to be used: on the CPU, in evaluation
    mode, with parameters that want no gradient.

    Args:
        path: of a run's folder (its last.ckpt is taken), a checkpoint .ckpt, or an exported .safetensors or .pth.

    Returns:
        A module: ``encoder(x)`` is the representation h, float32 [B, encoder.num_features], of what
        ``encoder.transform(images)`` makes of uint8 images, [B, C, H, W] or [B, H, W, C], or of a list of images of any
        sizes. ``encoder.backbone`` is timm's model. To train it further: ``encoder.requires_grad_(True).train()``.

    Raises:
        ImportError: where the training extra is missing.
        ValueError: on one line, if there is no such file, or it is damaged or of another kind.

    Example:
        >>> encoder = fastssl.load("runs/simclr_photos/1")
        >>> h = encoder(encoder.transform(images))
    """
    from importlib.util import find_spec

    missing = [module for module in ("lightning", "safetensors", "timm") if find_spec(module) is None]
    if missing:
        raise ImportError(
            f'fastssl.load needs the training extra: pip install "fastssl[train]" (missing: {", ".join(missing)})'
        )
    from .models.encoder import read_encoder

    return read_encoder(path).requires_grad_(False)


def release_workspaces() -> None:
    """Give the memory that the CPU kernels keep between calls back to the system: scratch, and large outputs that no
    tensor uses any more."""
    from ._extension import load

    outputs = sys.modules.get("fastssl.ops.outputs")
    if outputs is not None:
        outputs.release()
    extension = load()
    if extension is not None:
        extension.release_workspaces()


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"fastssl.{name}")
    raise AttributeError(f"module 'fastssl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
