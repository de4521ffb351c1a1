"""Validation shared by every public function: it looks at shapes, dtypes and devices, never at values in tensors."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _dtype_names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def check_tensor(function: str, name: str, value: Any, *, ndim: int, layout: str) -> None:
    """A non-empty tensor with ``ndim`` dimensions, described to the user as ``layout``.

    Raises:
        TypeError: when it is no tensor, or its dtype is not a floating one that the kernels take.
        ValueError: when the number of dimensions is wrong or a dimension is empty.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} must be a tensor of shape {layout}, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{function}: {name} must be a dense tensor, got layout {value.layout}")
    if value.ndim != ndim:
        raise ValueError(f"{function}: {name} must have shape {layout}, got {tuple(value.shape)}")
    if 0 in value.shape:
        raise ValueError(f"{function}: {name} must not be empty, got shape {tuple(value.shape)}")
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"{function}: {name} must have one of the dtypes {_dtype_names(FLOAT_DTYPES)}, got {value.dtype}"
        )


def check_same(function: str, attribute: str, first: tuple[str, Tensor], second: tuple[str, Tensor]) -> None:
    """Two tensors of the same "shape", "dtype" or "device".

    Raises:
        ValueError: naming both arguments and what each was.
    """
    (name_a, tensor_a), (name_b, tensor_b) = first, second
    a, b = getattr(tensor_a, attribute), getattr(tensor_b, attribute)
    if a != b:
        a, b = (tuple(a), tuple(b)) if attribute == "shape" else (a, b)
        raise ValueError(f"{function}: {name_a} and {name_b} must have the same {attribute}, got {a} and {b}")


def check_positive_number(function: str, name: str, value: Any) -> float:
    """A finite number above zero, as a float.

    Raises:
        TypeError: when it is no number.
        ValueError: when it is not above zero and finite.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{function}: {name} must be a number, got {type(value).__name__}")
    number = float(value)
    if not 0 < number < math.inf:  # also false for NaN; isfinite would break a compiled graph
        raise ValueError(f"{function}: {name} must be finite and above 0, got {value}")
    return number


def check_number(function: str, name: str, value: Any) -> float:
    """A finite number, as a float.

    Raises:
        TypeError: when it is no number.
        ValueError: when it is not finite.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{function}: {name} must be a number, got {type(value).__name__}")
    number = float(value)
    if not -math.inf < number < math.inf:  # also false for NaN; isfinite would break a compiled graph
        raise ValueError(f"{function}: {name} must be finite, got {value}")
    return number


def check_temperature(function: str, name: str, value: Any) -> float:
    """The inverse of a temperature: of a finite number above zero, whose inverse is finite too.

    Raises:
        TypeError: when it is no number.
        ValueError: when it is not above zero and finite.
    """
    inverse = 1.0 / check_positive_number(function, name, value)
    return check_positive_number(function, f"1 / {name}", inverse)


def check_int(function: str, name: str, value: Any) -> int:
    """An int.

    Raises:
        TypeError: when it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{function}: {name} must be an int, got {type(value).__name__}")
    return value


def check_count(function: str, name: str, value: Any, *, minimum: int) -> int:
    """An int of at least ``minimum``.

    Raises:
        TypeError: when it is no int.
        ValueError: when it is below.
    """
    if check_int(function, name, value) < minimum:
        raise ValueError(f"{function}: {name} must be at least {minimum}, got {value}")
    return value


def check_range(function: str, name: str, value: Any, *, maximum: float = math.inf) -> float:
    """A finite number from 0 to ``maximum``, as a float.

    Raises:
        TypeError: when it is no number.
        ValueError: when it is outside.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{function}: {name} must be a number, got {type(value).__name__}")
    number = float(value)
    if not (0 <= number <= maximum and number < math.inf):
        wanted = "finite and at least 0" if maximum == math.inf else f"from 0 to {maximum}"
        raise ValueError(f"{function}: {name} must be {wanted}, got {value}")
    return number


def check_number_tensor(function: str, name: str, value: Any) -> None:
    """A dense tensor of a floating dtype.

    Raises:
        TypeError: when it is something else.
    """
    if not isinstance(value, Tensor) or value.dtype not in FLOAT_DTYPES or value.layout != torch.strided:
        got = f"{value.layout} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{function}: {name} must be a dense tensor with a floating dtype, got {got}")


def check_group(function: str, group: Any) -> None:
    """None, or a process group.

    Raises:
        TypeError: when it is something else; ranks outside a group hold such a thing.
    """
    if group is not None and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        raise TypeError(f"{function}: group must be a process group of which this rank is a member, got {group!r}")


def check_scalar_tensor(function: str, name: str, value: Tensor, *, device: torch.device) -> Tensor:
    """A floating tensor with one element on ``device``, as shape []. Its value is not read.

    Raises:
        TypeError: when the dtype is not a floating one.
        ValueError: when it has more than one element or lies elsewhere.
    """
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{function}: {name} must have a floating dtype, got {value.dtype}")
    if value.numel() != 1:
        raise ValueError(f"{function}: {name} must have one element, got shape {tuple(value.shape)}")
    if value.device != device:
        raise ValueError(f"{function}: {name} must be on {device} like the embeddings, got {value.device}")
    return value.reshape(())


def check_choice(function: str, name: str, value: Any, choices: Sequence[str]) -> None:
    """One of a few words.

    Raises:
        ValueError: naming the choices.
    """
    if value not in choices:
        raise ValueError(f"{function}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_is_tensor(function: str, name: str, value: Any, layout: str = "") -> None:
    """A tensor, described to the user as ``layout``.

    Raises:
        TypeError: when it is none.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} must be a tensor{layout and ' '}{layout}, got {type(value).__name__}")


def check_samples(function: str, index: Tensor, **counters: int) -> None:
    """What names the samples of a keyed draw: int64 [B], B at least 1; epoch and view in [0, 2^32).

    Raises:
        ValueError: naming the argument that is not.
    """
    if index.dtype != torch.int64 or index.ndim != 1 or len(index) == 0:
        raise ValueError(f"{function}: index must be int64 [B], B at least 1, got {index.dtype} {tuple(index.shape)}")
    for name, value in counters.items():
        if not 0 <= value < 2**32:
            raise ValueError(f"{function}: {name} must be in [0, 2^32), got {value}")


def philox_key(function: str, *, seed: Any, epoch: Any, view: Any) -> dict[str, int]:
    """The key of a draw as operators take it: the seed as the signed number with the same bits.

    Raises:
        TypeError: when one is no int.
        ValueError: when the seed is outside [0, 2^64).
    """
    if not 0 <= check_int(function, "seed", seed) < 2**64:
        raise ValueError(f"{function}: seed must be in [0, 2^64), got {seed}")
    signed = seed if seed < 2**63 else seed - 2**64
    return {"seed": signed, "epoch": check_int(function, "epoch", epoch), "view": check_int(function, "view", view)}


def check_keys(function: str, name: str, value: Any, *, length: int, device: torch.device) -> None:
    """An int64 tensor [length] on ``device``.

    Raises:
        TypeError: when it is no int64 tensor.
        ValueError: when its shape or device is wrong.
    """
    if not isinstance(value, Tensor) or value.dtype != torch.int64:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{function}: {name} must be an int64 tensor of shape ({length},), got {got}")
    if value.shape != (length,):
        raise ValueError(f"{function}: {name} must have shape ({length},), got {tuple(value.shape)}")
    if value.device != device:
        raise ValueError(f"{function}: {name} must be on {device} like the embeddings, got {value.device}")
