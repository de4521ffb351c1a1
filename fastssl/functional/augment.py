"""Random views of a batch of images, in two steps: draw their numbers, make their pixels.

`fastssl.augment` builds on these two; call them directly to draw numbers elsewhere or to change them in between.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import backends, ops  # noqa: F401 - ops registers the operators
from ..ops import checks
from .precision import without_autocast


def view_parameters(
    index: Tensor,
    *,
    size: tuple[int, int] | Tensor,
    out_size: tuple[int, int],
    program: Sequence[float],
    seed: int,
    epoch: int = 0,
    view: int = 0,
) -> Tensor:
    """Draw the numbers of one random view of each image: a function of (seed, epoch, index, view) and nothing else.

    They depend neither on the batch in which an image comes, nor on workers, processes or the device, nor on any
    generator's state.

    Args:
        index: int64 [B], position of each image in its data set; the lowest 32 bits count.
        size: height and width of the images in pixels, one pair for all, or int64 [B, 2] on ``index``'s device.
        out_size: height and width of the view.
        program: the distribution, see ``fastssl/ops/augment/record.py``; the transforms in `fastssl.augment` make it.
        seed: of the run, 0 to 2^64 - 1.
        epoch: 0 to 2^32 - 1.
        view: number of the view: other numbers are independent draws. 0 to 2^32 - 1.

    Returns:
        Records, float32 [B, 8 + 6 steps], on ``index``'s device.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    name = "view_parameters"
    checks.check_is_tensor(name, "index", index, "int64 [B]")
    height, width = (1, 1) if isinstance(size, Tensor) else size
    return torch.ops.fastssl.view_parameters(
        index,
        size if isinstance(size, Tensor) else None,
        height=checks.check_int(name, "height", height),
        width=checks.check_int(name, "width", width),
        out_height=checks.check_int(name, "out_height", out_size[0]),
        out_width=checks.check_int(name, "out_width", out_size[1]),
        **checks.philox_key(name, seed=seed, epoch=epoch, view=view),
        program=program,
        backend=backends.forced(),
    )


def augment_views(
    images: Tensor | Sequence[Tensor],
    parameters: Sequence[Tensor],
    *,
    sizes: Sequence[tuple[int, int]],
    bicubic: bool | Sequence[bool] = False,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    passes: Sequence[int] | None = None,
) -> list[Tensor]:
    """Make the views that records describe: all views of all images in one call, from uint8 to normalised numbers.

    Operations are torchvision's, on images in [0, 1]. No gradient reaches the images.

    Args:
        images: uint8 [B, C, H, W] with any strides, so that [B, H, W, C] comes as ``x.permute(0, 3, 1, 2)``; or a list
            of B images [C, H, W] of any sizes. Not written to.
        parameters: per view its records, float32 [B, 8 + 6 steps], from :func:`view_parameters` or one's own: numbers
            that make no sense make a view that makes none, and nothing else.
        sizes: per view height and width in pixels.
        bicubic: whether a view is resized with bicubic instead of bilinear interpolation; antialiased both.
        mean: per channel, for values in [0, 1].
        std: per channel, above 0.
        dtype: of the views: float32, bfloat16 or float16.
        passes: per view, at most how many contrast and neighbourhood steps an image has: fewer launches on a GPU. An
            image that has more is filled with NaN. None: as many as there are steps.

    Returns:
        Per view [B, C, height, width], contiguous, ``(x - mean) / std``.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    name = "augment_views"
    stacked = isinstance(images, Tensor)
    if isinstance(images, Tensor) and images.ndim != 4:
        raise ValueError(f"{name}: images must be [B, C, H, W] or a list of [C, H, W], got {tuple(images.shape)}")
    if not stacked and not images:
        raise ValueError(f"{name}: images must not be empty")
    for each in (images,) if stacked else images:
        if not isinstance(each, Tensor):
            raise TypeError(f"{name}: images must be tensors, got {type(each).__name__}")
        if not stacked and each.ndim != 3:
            raise ValueError(f"{name}: each of a list of images must be [C, H, W], got {tuple(each.shape)}")
    count = len(parameters)
    with without_autocast(images if isinstance(images, Tensor) else images[0]):
        return torch.ops.fastssl.augment_views(
            [images] if stacked else list(images),
            list(parameters),
            heights=[height for height, _ in sizes],
            widths=[width for _, width in sizes],
            bicubic=[bicubic] * count if isinstance(bicubic, bool) else list(bicubic),
            passes=[-1] * count if passes is None else list(passes),
            mean=mean,
            std=std,
            dtype=dtype,
            backend=backends.forced(),
        )
