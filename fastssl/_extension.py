"""The compiled modules, ``fastssl._C`` for CPUs and ``fastssl._CUDA``: loaded on first use, or why they are missing.

PyTorch is imported first: the first module and PyTorch then share one OpenMP runtime, the one that PyTorch brought.
"""

from __future__ import annotations

import importlib
import json
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

BUILD_INFO = Path(__file__).parent / "_build_info.json"
# What each is called, and what an installation needs to have it.
MODULES = {"_C": ("the C++ extension", "a C++ compiler is"), "_CUDA": ("the CUDA extension", "nvcc is")}


@cache
def _load(module: str) -> tuple[ModuleType | None, str | None]:
    import torch  # noqa: F401 - before the extension, see above

    name, need = MODULES[module]
    try:
        return importlib.import_module(f"fastssl.{module}"), None
    except ModuleNotFoundError:
        error = build_info(module).get("error") or f"install fastssl with pip where {need} available"
        return None, f"{name} was not built: {error}"
    except (ImportError, ValueError) as error:  # ValueError: FASTSSL_CPU_ISA names no instruction set
        return None, f"{name} cannot be loaded: {error}"


def load(module: str = "_C") -> ModuleType | None:
    """The module with the compiled kernels, or None where it is missing (``why_missing`` says why)."""
    return _load(module)[0]


def why_missing(module: str = "_C") -> str | None:
    """Why ``load`` returns None, in one sentence; None when it does not."""
    return _load(module)[1]


@cache
def warn_missing() -> None:
    """Say once per process that slower code serves because the extension is missing."""
    warnings.warn(
        f"fastssl: CPU tensors are served by plain PyTorch, several times slower, because {why_missing()}",
        RuntimeWarning,
        stacklevel=2,
    )


def build_info(module: str = "_C") -> dict[str, Any]:
    """What the build recorded of a module and, where it failed, the error.

    Of ``_C``: compiler, flags, instruction sets, OpenMP; of ``_CUDA``: version of nvcc, codes for GPUs.
    """
    try:
        built = json.loads(BUILD_INFO.read_text())
    except (OSError, ValueError):
        return {}
    return built if module == "_C" else built.get("cuda", {})
