"""What every family's launchers of the compiled CPU kernels share."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from .. import _extension

# The numbers of the enum in csrc/cpu/dtype.h.
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    """Why the compiled kernels cannot serve such tensors here; None if they can."""
    if device_type != "cpu":
        return "the C++ kernels run on the CPU"
    if dtype not in DTYPES:
        return f"the C++ kernels do not take {dtype}"
    if _extension.load() is None:
        _extension.warn_missing()
        return _extension.why_missing()
    return None


def kernels() -> ModuleType:
    """The compiled module; a RuntimeError says why it is missing."""
    module = _extension.load()
    if module is None:
        raise RuntimeError(_extension.why_missing())
    return module


def address(tensor: Tensor | None) -> int:
    """Where a tensor's numbers lie; 0 for None. The tensor must outlive the number."""
    return 0 if tensor is None else tensor.data_ptr()


def allow_bfloat16_product() -> bool:
    """As for PyTorch's own float32 products: "medium" permits them in bfloat16."""
    return torch.get_float32_matmul_precision() == "medium"
