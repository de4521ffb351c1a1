"""The compiled CPU kernels ``fastssl._C``: loaded on first use, or the reason why they are missing.

PyTorch is imported first: extension and PyTorch then share one OpenMP runtime, the one that PyTorch brought.
"""

from __future__ import annotations

import importlib
import json
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType

BUILD_INFO = Path(__file__).parent / "_build_info.json"


@cache
def _load() -> tuple[ModuleType | None, str | None]:
    import torch  # noqa: F401 - before the extension, see above

    try:
        return importlib.import_module("fastssl._C"), None
    except ModuleNotFoundError:
        error = build_info().get("error")
        if error:
            return None, f"the C++ extension was not built: {error}"
        return None, "the C++ extension was not built: install fastssl with pip where a C++ compiler is available"
    except (ImportError, ValueError) as error:  # ValueError: FASTSSL_CPU_ISA names no instruction set
        return None, f"the C++ extension cannot be loaded: {error}"


def load() -> ModuleType | None:
    """The module with the compiled kernels, or None where it is missing (``why_missing`` says why)."""
    return _load()[0]


def why_missing() -> str | None:
    """Why ``load`` returns None, in one sentence; None when it does not."""
    return _load()[1]


@cache
def warn_missing() -> None:
    """Say once per process that slower code serves because the extension is missing."""
    warnings.warn(
        f"fastssl: CPU tensors are served by plain PyTorch, several times slower, because {why_missing()}",
        RuntimeWarning,
        stacklevel=2,
    )


def build_info() -> dict[str, object]:
    """What the build recorded: compiler, flags, instruction sets, OpenMP and, where it failed, the error."""
    try:
        return json.loads(BUILD_INFO.read_text())
    except (OSError, ValueError):
        return {}
