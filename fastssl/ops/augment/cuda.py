"""Random views on CUDA devices by the compiled kernels: tensors in, addresses and a stream to ``csrc/cuda/augment``.

Nothing here waits for the device or reads a tensor's value, and a CUDA graph can hold all of it. Memory beyond the
views: where steps need whole views (``passes`` is not 0), one or two buffers in fp16 for as many images as
``WORKSPACE_BYTES`` hold, and at least for one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..cpp import DTYPES, address
from ..cuda import kernels, on_device_of, where_to_launch
from ..cuda import unsupported_reason as _unsupported_reason
from .record import HEADER, STEP, record_length, steps_of

__all__ = ["augment_views", "unsupported_reason", "view_parameters"]

# Views of more images take turns in the buffers.
WORKSPACE_BYTES = 256 << 20


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    """Why the CUDA kernels cannot serve here; None if they can. Inputs are integers: checked by the operators."""
    return _unsupported_reason(device_type)


def view_parameters(
    index: Tensor,
    sizes: Tensor | None,
    *,
    height: int,
    width: int,
    out_height: int,
    out_width: int,
    seed: int,
    epoch: int,
    view: int,
    program: Sequence[float],
) -> Tensor:
    """See ``reference.view_parameters``."""
    index, sizes = index.contiguous(), None if sizes is None else sizes.contiguous()
    records = torch.empty((len(index), record_length(steps_of(program))), dtype=torch.float32, device=index.device)
    with on_device_of(index):
        kernels().view_parameters(
            index=index.data_ptr(),
            sizes=address(sizes),
            batch=len(index),
            height=height,
            width=width,
            out_height=out_height,
            out_width=out_width,
            seed=seed & 0xFFFFFFFFFFFFFFFF,
            epoch=epoch,
            view=view,
            program=program,
            out=records.data_ptr(),
            **where_to_launch(index),
        )
    return records


def augment_views(
    images: Sequence[Tensor],
    parameters: Sequence[Tensor],
    *,
    heights: Sequence[int],
    widths: Sequence[int],
    bicubic: Sequence[bool],
    passes: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> list[Tensor]:
    """See ``reference.augment_views``."""
    first = images[0]
    batch, channels = parameters[0].shape[0], first.shape[-3]
    stacked = first.ndim == 4
    views = []
    with on_device_of(first):
        launch = where_to_launch(first)
        table = None if stacked else _table(images, launch)
        for records, height, width, cubic, rounds in zip(parameters, heights, widths, bicubic, passes, strict=True):
            records = records.contiguous()
            view = torch.empty((batch, channels, height, width), dtype=dtype, device=first.device)
            problem = kernels().AugmentProblem(
                table=address(table),
                data=first.data_ptr(),
                stack=(*first.shape[-2:], first.stride(0) if stacked else 0, *first.stride()[-3:]),
                batch=batch,
                channels=channels,
                parameters=records.data_ptr(),
                steps=(records.shape[1] - HEADER) // STEP,
                passes=rounds,
                height=height,
                width=width,
                bicubic=cubic,
                out=view.data_ptr(),
                dtype=DTYPES[dtype],
            )
            one = kernels().augment_workspace(problem, 1)
            size = min(kernels().augment_workspace(problem, batch), max(one, WORKSPACE_BYTES))
            workspace = torch.empty(size, dtype=torch.uint8, device=first.device)
            kernels().augment_view(
                problem, mean=mean, std=std, workspace=workspace.data_ptr(), workspace_bytes=size, **launch
            )
            views.append(view)
    return views


def _table(images: Sequence[Tensor], launch: dict[str, int]) -> Tensor:
    """Address, height, width and strides of each image of a list: int64 [B, 6] on the device."""
    rows = [(image.data_ptr(), *image.shape[-2:], *image.stride()) for image in images]
    table = torch.empty((len(rows), len(rows[0])), dtype=torch.int64, device=images[0].device)
    kernels().write_table(numbers=[number for row in rows for number in row], out=table.data_ptr(), **launch)
    return table
