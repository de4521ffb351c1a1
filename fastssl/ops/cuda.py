"""What every family's launchers of the compiled CUDA kernels share."""

from __future__ import annotations

import contextlib
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import _extension

CAPABILITY = (8, 0)  # the oldest GPUs that the kernels are compiled for


@cache
def capability(device: int) -> tuple[int, int]:
    """Compute capability of a device."""
    return torch.cuda.get_device_capability(device)


def unsupported_reason(device_type: str) -> str | None:
    """Why the CUDA kernels cannot serve tensors on such a device here; None if they can."""
    if device_type != "cuda":
        return "the CUDA kernels run on CUDA devices"
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    if torch.version.hip is not None:
        return "the CUDA kernels are written for NVIDIA GPUs"
    if capability(torch.cuda.current_device()) < CAPABILITY:
        major, minor = capability(torch.cuda.current_device())
        return f"the CUDA kernels need compute capability 8.0 or newer, this GPU has {major}.{minor}"
    return _extension.why_missing("_CUDA")


def kernels() -> ModuleType:
    """The compiled module; a RuntimeError says why it is missing."""
    module = _extension.load("_CUDA")
    if module is None:
        raise RuntimeError(_extension.why_missing("_CUDA"))
    return module


def on_device_of(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Launches go to the current device; tensors may live on another."""
    if x.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(x.device)


def where_to_launch(x: Tensor) -> dict[str, int]:
    """Keywords of every launch: the device's number and the handle of the stream that is current there."""
    index = x.device.index
    return {"device": index, "stream": torch.cuda.current_stream(index).cuda_stream}
