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
    from . import augment, functional, losses, ops

__all__ = ["__version__", "augment", "backend", "functional", "losses", "ops", "release_workspaces"]

_SUBMODULES = {"augment", "functional", "losses", "ops"}


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
