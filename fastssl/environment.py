"""What this process runs on: versions, machine, threads, allocator. For ``fastssl info`` and for benchmark records.

Nothing here imports an optional package to learn its version, and CUDA is only asked when a device is there.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ._version import __version__

OPTIONAL_PACKAGES = (
    "triton", "lightning", "timm", "torchvision", "torchmetrics", "jsonargparse", "scikit-learn", "scikit-image",
    "lightly", "pytorch-metric-learning", "kornia", "albumentations", "opencv-python-headless", "simplejpeg", "psutil",
)  # fmt: skip
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "KMP_AFFINITY")
INSTRUCTION_SETS = (  # flags of /proc/cpuinfo that decide which kernel is fastest
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_bf16", "avx512_fp16", "amx_bf16",
    "asimd", "bf16", "sve",
)  # fmt: skip


def versions() -> dict[str, str | None]:
    """Version of each package by name; None where it is not installed."""
    found: dict[str, str | None] = {
        "fastssl": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for package in ("numpy", *OPTIONAL_PACKAGES):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def machine() -> dict[str, Any]:
    """Platform, processor, memory and, where one is there, the CUDA device."""
    return {
        "platform": platform.platform(),
        "architecture": platform.machine(),
        "cpu": _cpu_field("model name") or platform.processor() or None,
        "cpu_instructions": _cpu_instructions(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "cuda": cuda_device(),
    }


def cuda_device() -> dict[str, Any] | None:
    """The current CUDA device, or None. A process without a device creates no CUDA context by asking."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "runtime": torch.version.cuda,
        "count": torch.cuda.device_count(),
    }


def threads() -> dict[str, Any]:
    """Threads that PyTorch uses, what the environment says about them, and which OpenMP runtimes are loaded."""
    return {
        "torch": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        "openmp": _openmp_runtimes(),
    }


def allocator() -> dict[str, str]:
    """Environment variables that change how memory is allocated: they can make large eager operations 4x faster."""
    names = ("GLIBC_TUNABLES", "LD_PRELOAD", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    return {name: value for name, value in os.environ.items() if name.startswith("MALLOC_") or name in names}


def keep_pages() -> bool:
    """Let this process keep the memory that it frees, for whole training runs on a CPU.

    glibc gives large blocks back to the system and takes every page of the next one anew, which is up to half of a
    training step. Nothing is changed where the environment sets an allocator up, nor where there is no glibc.

    Returns:
        Whether pages are kept.
    """
    if not sys.platform.startswith("linux") or allocator():
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD of malloc.h; 1 says that it took the value.
    return all([set_option(-3, 1 << 30) == 1, set_option(-1, (1 << 31) - 1) == 1, set_option(-2, 1 << 28) == 1])


def extension() -> dict[str, Any]:
    """The compiled CPU kernels: what they say about themselves, or why they are missing."""
    from . import _extension

    built = _extension.build_info()
    about = {name: built.get(name) for name in ("compiler", "flags")}
    module = _extension.load()
    if module is None:
        return {"available": False, "reason": _extension.why_missing(), **about}
    return {"available": True, **module.info(), **about}


def commit() -> dict[str, Any] | None:
    """Git commit of the checkout that this package runs from and whether its sources differ; None outside of one."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None  # installed somewhere inside an unrelated checkout
        sources = ("csrc", "kernels", "fastssl", "benchmarks/*.py", "setup.py", "pyproject.toml")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", *sources))}
    except (OSError, subprocess.SubprocessError):
        return None


def record() -> dict[str, Any]:
    """All of the above, for a JSON record."""
    return {
        "versions": versions(),
        "commit": commit(),
        "machine": machine(),
        "threads": threads(),
        "allocator": allocator(),
        "extension": extension(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def _cpu_field(field: str) -> str | None:
    """The first value of a field in /proc/cpuinfo."""
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == field:
                    return value.strip()
    except OSError:
        pass
    return None


def _cpu_instructions() -> list[str]:
    flags = set((_cpu_field("flags") or _cpu_field("Features") or "").split())
    return [name for name in INSTRUCTION_SETS if name in flags]


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _openmp_runtimes() -> list[str] | None:
    """Files of the OpenMP runtimes in this process (two of them cost threads and can hang); None where unknown.

    Of those that packages bring, the path within site-packages: results are published, and where somebody keeps an
    environment is nobody's business.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        with open("/proc/self/maps") as lines:
            files = {line.split(maxsplit=5)[5].strip() for line in lines if len(line.split(maxsplit=5)) == 6}
    except OSError:
        return None
    files = {file for file in files if any(name in Path(file).name for name in ("libgomp", "libiomp", "libomp"))}
    return sorted(file.rpartition("/site-packages/")[2] for file in files)
