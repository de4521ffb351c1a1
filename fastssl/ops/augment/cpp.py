"""Random views on the CPU: tensors in, addresses to the compiled kernels, tensors out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..cpp import DTYPES, address, kernels
from ..cpp import unsupported_reason as _unsupported_reason
from ..outputs import empty
from .record import HEADER, STEP, record_length, steps_of


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    """Why the compiled kernels cannot serve here; None if they can. Inputs are integers: checked by the operators."""
    return _unsupported_reason(device_type, torch.float32)


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
    records = torch.empty(len(index), record_length(steps_of(program)))
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
        threads=torch.get_num_threads(),
        records=records.data_ptr(),
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
    records = [each.contiguous() for each in parameters]
    views = [empty((batch, channels, h, w), dtype) for h, w in zip(heights, widths, strict=True)]
    kernels().augment_views(
        # Address, height, width, and bytes from channel to channel, row to row and pixel to pixel.
        images=[(image.data_ptr(), *image.shape[-2:], *image.stride()[-3:]) for image in images],
        batch=batch,
        image_stride=first.stride(0) if first.ndim == 4 else 0,
        channels=channels,
        views=[
            (each.data_ptr(), (each.shape[1] - HEADER) // STEP, *view.shape[-2:], cubic, view.data_ptr())
            for each, cubic, view in zip(records, bicubic, views, strict=True)
        ],
        mean=mean,
        std=std,
        dtype=DTYPES[dtype],
        threads=torch.get_num_threads(),
    )
    return views
