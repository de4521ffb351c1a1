"""The images that transforms take: uint8 batches in either layout, and lists of images of different sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..ops import checks

Channels = Literal["first", "last"]
Images = Tensor | Sequence[Tensor]

_WANTED = "a uint8 tensor [B, C, H, W] or [B, H, W, C], or a list of [C, H, W] or [H, W, C]"


def channels_first(name: str, images: Any, channels: Channels | None) -> Tensor | list[Tensor]:
    """The images as [B, C, H, W] or a list of [C, H, W], without copying.

    Args:
        name: of the transform, for messages.
        images: uint8, a batch or a list.
        channels: where the channels are; None: where the only axis of 1 or 3 is.

    Raises:
        TypeError: if it is no uint8 tensor or list of such.
        ValueError: if the shapes do not fit, or the channels could be first or last.
    """
    if channels is not None:
        checks.check_choice(name, "channels", channels, ("first", "last"))
    stacked = isinstance(images, Tensor)
    if not stacked and not (isinstance(images, Sequence) and images):
        got = "an empty list" if isinstance(images, Sequence) else type(images).__name__
        raise TypeError(f"{name}: images must be {_WANTED}, got {got}")
    each = [images] if stacked else list(images)
    for number, image in enumerate(each):
        where = "images" if stacked else f"images[{number}]"
        if not isinstance(image, Tensor):
            raise TypeError(f"{name}: {where} must be a uint8 tensor, got {type(image).__name__}")
        if image.dtype != torch.uint8:
            gradient = "; views carry no gradient to the image" if image.requires_grad else ""
            raise TypeError(f"{name}: {where} must be uint8, values 0 to 255 as decoded, got {image.dtype}{gradient}")
        if image.ndim != 3 + stacked or 0 in image.shape:
            shape = "[B, C, H, W] or [B, H, W, C]" if stacked else "[C, H, W] or [H, W, C]"
            raise ValueError(f"{name}: {where} must be {shape} and not empty, got {tuple(image.shape)}")
    shapes = [tuple(image.shape[-3:]) for image in each]
    last = _channels_last(name, shapes) if channels is None else channels == "last"
    counts = [shape[2 if last else 0] for shape in shapes]
    for number, count in enumerate(counts):
        if count != counts[0]:
            raise ValueError(
                f"{name}: images must have the same channels, got {counts[0]} in images[0] {shapes[0]} "
                f"and {count} in images[{number}] {shapes[number]}"
            )
    if last:
        each = [image.movedim(-1, -3) for image in each]
    return each[0] if stacked else each


def _channels_last(name: str, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether shapes of three axes end with the channels."""
    # Comparisons, since a set would make constants of the sizes in a compiled graph.
    can_be_first, can_be_last = (
        all(shape[axis] == shapes[0][axis] for shape in shapes) and (shapes[0][axis] == 1 or shapes[0][axis] == 3)
        for axis in (0, 2)
    )
    if can_be_first == can_be_last:
        why = "could be first or last" if can_be_first else "are not the one axis of 1 or 3"
        raise ValueError(f'{name}: channels must be given as "first" or "last", since they {why} in {_some(shapes)}')
    return can_be_last


def _some(shapes: Sequence[tuple[int, ...]]) -> str:
    distinct = list(dict.fromkeys(shapes))
    return ", ".join(map(str, distinct[:3])) + (", ..." if len(distinct) > 3 else "")


def sizes_of(images: Tensor | list[Tensor]) -> tuple[int, int] | Tensor:
    """Height and width of images with channels first: one pair, or int64 [B, 2] on their device where they differ."""
    if isinstance(images, Tensor):
        return images.shape[-2], images.shape[-1]
    pairs = [(image.shape[-2], image.shape[-1]) for image in images]
    if len(set(pairs)) == 1:
        return pairs[0]
    device = images[0].device
    sizes = torch.tensor(pairs, device="cpu", pin_memory=device.type == "cuda")
    return sizes.to(device, non_blocking=True)
