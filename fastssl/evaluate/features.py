"""Features of a data set, computed once and shared by all evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.data.images import Batch, Images, move_images

if TYPE_CHECKING:
    from fastssl.models.encoder import Encoder

# Sides in pixels: images up to the first are features as they are, larger ones are averaged down to the second.
_LARGEST_RAW_SIDE, _POOLED_SIDE = 64, 32


class Features(NamedTuple):
    """Features of a whole data set.

    Attributes:
        x: float32 [N, D].
        label: int64 [N], -1 where it is unknown.
    """

    x: Tensor
    label: Tensor

    def known(self) -> Features:
        """Those whose label is known."""
        known = self.label >= 0
        return self if known.all() else Features(self.x[known], self.label[known])


def extract(encoder: nn.Module, transform: Callable[[Images], Tensor], batches: Iterable[Batch]) -> Features:
    """Features of all images, with `encoder` in evaluation mode; its mode is restored afterwards.

    An image that comes again, such as in the place of one that cannot be read, counts once.

    Args:
        encoder: float32 [B, C, H, W] -> [B, D].
        transform: uint8 images, a stack or a list, to what the encoder takes, for instance
            :class:`fastssl.augment.EvalTransform`.
        batches: the images, in order.

    Returns:
        Features on the CPU, in float32.

    Raises:
        ValueError: if there are no batches.
    """
    (x,), label, _ = _collect(encoder, lambda image: [encoder(transform(image))], batches)
    return Features(x, label)


class Both(NamedTuple):
    """Representation and projection of a whole data set.

    Attributes:
        h: features of the representation.
        z: of the projection; None where there is none.
        index: int64 [N], position of each image in its data set.
    """

    h: Features
    z: Features | None
    index: Tensor  # type: ignore[assignment]  # in the place of tuple.index


def extract_both(encoder: Encoder, batches: Iterable[Batch]) -> Both:
    """Representation h and projection z of all images from one pass.

    Args:
        encoder: with its transform; in evaluation mode for the pass.
        batches: the images, in order; see :func:`extract`.

    Raises:
        ValueError: if there are no batches.
    """

    def both(image: Images) -> list[Tensor]:
        h = encoder(encoder.transform(image))
        return [h, encoder.project(h)] if encoder.has_projection else [h]

    parts, label, index = _collect(encoder, both, batches)
    return Both(Features(parts[0], label), Features(parts[1], label) if len(parts) > 1 else None, index)


@torch.no_grad()
def _collect(
    encoder: nn.Module, compute: Callable[[Images], list[Tensor]], batches: Iterable[Batch]
) -> tuple[list[Tensor], Tensor, Tensor]:
    """What `compute` gives for all images, float32 on the CPU, their labels and their places; each image once."""
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    training = encoder.training
    encoder.eval()
    columns: list[list[Tensor]] = []
    labels, indices = [], []
    try:
        for image, label, index in batches:
            values = [x.float().cpu() for x in compute(move_images(image, device))]
            columns = columns or [[] for _ in values]
            for column, value in zip(columns, values, strict=True):
                column.append(value)
            labels.append(label.cpu())
            indices.append(index.cpu())
    finally:
        encoder.train(training)
    if not columns:
        raise ValueError("extract: batches must hold at least one batch, got none")
    parts, label, index = [torch.cat(column) for column in columns], torch.cat(labels), torch.cat(indices)
    if len(set(index.tolist())) < len(index):
        first = np.sort(np.unique(index.numpy(), return_index=True)[1])
        parts, label, index = [x[first] for x in parts], label[first], index[first]
    return parts, label, index


@torch.no_grad()
def recompute_batch_statistics(
    encoder: nn.Module, transform: Callable[[Images], Tensor], batches: Iterable[Batch]
) -> None:
    """Set the BatchNorm statistics of `encoder` to their averages over the batches, in place; weights stay.

    An untrained encoder has means of 0 and variances of 1 there, which makes less of its random features than is in
    them.

    Args:
        encoder: float32 [B, C, H, W] -> [B, D].
        transform: uint8 images to what the encoder takes.
        batches: images, for instance those of the bank.
    """
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    norms = [module for module in encoder.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    training, momenta = encoder.training, [norm.momentum for norm in norms]
    encoder.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.train()
    try:
        for image, _, _ in batches:
            if norms and len(image) > 1:
                encoder(transform(move_images(image, device)))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        encoder.train(training)


def pixels(batches: Iterable[Batch]) -> Features:
    """The images themselves as features, values in [0, 1]: the line that every representation has to be above.

    Images larger than 64 pixels in either direction are averaged down to at most 32 x 32 (D <= 3072): the linear probe
    and k-NN cost time and memory in proportion to D, which would be 196 608 for images of 256 x 256, and fine detail at
    a fixed place says nothing about the class. Of images that come in lists, whose sizes may differ, it is the central
    square, averaged to 32 x 32.

    Args:
        batches: the images, in order; stacks all of the same size.

    Returns:
        Features [N, C * H * W] of what the images are averaged down to, on the CPU.
    """
    return extract(nn.Flatten(), _small, batches)


def _small(image: Images) -> Tensor:
    if not isinstance(image, Tensor):
        return torch.stack([F.adaptive_avg_pool2d(_square(each).float() / 255, _POOLED_SIDE) for each in image])
    height, width = image.shape[-2:]
    x = image.float() / 255
    if max(height, width) > _LARGEST_RAW_SIDE:
        x = F.adaptive_avg_pool2d(x, (min(height, _POOLED_SIDE), min(width, _POOLED_SIDE)))
    return x


def _square(image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[..., top : top + side, left : left + side]
