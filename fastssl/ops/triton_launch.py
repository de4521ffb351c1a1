"""What every family's Triton launchers need to know about the device, and the options that all launches share."""

from __future__ import annotations

import contextlib
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

# Under Triton's interpreter (TRITON_INTERPRET=1) kernels run on CPU tensors: so they are tested without a GPU.
INTERPRETED: bool = triton.knobs.runtime.interpret
SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Triton 3.10 changes the default; the kernels are written for fused multiply-add.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    """Why Triton kernels cannot serve such tensors here; None if they can."""
    if dtype not in SUPPORTED_DTYPES:
        return f"the Triton kernels take float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    if device_type == "cuda":
        if INTERPRETED:
            return None
        if not torch.cuda.is_available():
            return "PyTorch sees no CUDA device"
        if torch.version.hip is not None:
            return "the Triton kernels are written for NVIDIA GPUs"
        major, minor = torch.cuda.get_device_capability()
        if major < 8:
            return f"the Triton kernels need compute capability 8.0 or newer, this GPU has {major}.{minor}"
        return None
    if device_type == "cpu":
        return None if INTERPRETED else "Triton serves CPU tensors only under its interpreter (TRITON_INTERPRET=1)"
    return f"the Triton kernels do not serve {device_type} tensors"


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a device; the interpreter stands for Hopper."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


@cache
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a device; 1 under the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def on_device_of(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device; tensors may live on another."""
    if x.device.type != "cuda" or x.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(x.device)
