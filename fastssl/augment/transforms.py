"""Batched transforms: a uint8 batch in, a list of normalised views out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastssl.augment.apply import apply_view, resize_matrix, separable
from fastssl.augment.view import View, sample

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalize(nn.Module):
    """(x - mean) / std per channel; with one channel, the mean over the given channels is used.

    Args:
        mean: per channel, for values in [0, 1].
        std: per channel, above 0.

    Raises:
        ValueError: if the lengths differ or a standard deviation is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise ValueError(f"Normalize: std must be positive, one for each mean {mean}, got {std}")
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [B, C, H, W] in [0, 1] -> the same shape, normalised."""
        mean, std = self.mean, self.std
        if x.shape[1] == 1:
            mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
        return (x - mean) / std


def _check_images(name: str, image: Tensor) -> None:
    if image.dtype != torch.uint8 or image.ndim != 4 or image.shape[1] not in (1, 3):
        raise ValueError(f"{name}: image must be uint8 [B, 1 or 3, H, W], got {image.dtype} {tuple(image.shape)}")


class MultiViewTransform(nn.Module):
    """Several random views of each image of a batch, each image with its own random parameters.

    The views are a function of (seed, epoch, index) and of nothing else: neither of the batch in which an image comes,
    nor of the number of processes, nor of any generator's state.

    Args:
        views: the distribution of each view; sizes may differ (multi-crop).
        mean: per channel, for values in [0, 1].
        std: per channel.
    """

    def __init__(
        self,
        views: Sequence[View],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if not views:
            raise ValueError("MultiViewTransform: views must hold at least one view, got none")
        self.views = tuple(views)
        self.normalize = Normalize(mean, std)

    @torch.no_grad()
    def forward(self, image: Tensor, *, seed: int, epoch: int, index: Tensor) -> list[Tensor]:
        """Make the views.

        Args:
            image: uint8 [B, C, H, W], C = 1 or 3; not written to.
            seed: of the run.
            epoch: counted from 0.
            index: int64 [B], position of each image in its data set, on any device.

        Returns:
            One float32 [B, C, size, size] per view, normalised, on the device of `image`.

        Raises:
            ValueError: if `image` or `index` has another dtype or shape.
        """
        _check_images(type(self).__name__, image)
        if index.shape != image.shape[:1]:
            raise ValueError(
                f"{type(self).__name__}: index must be [{len(image)}] for {len(image)} images, got {tuple(index.shape)}"
            )
        index = index.to(image.device)
        height, width = image.shape[-2:]
        outputs = []
        # Views are made of matrix products, which autocast would round to 8 bits of mantissa.
        with torch.autocast(image.device.type, enabled=False):
            for number, view in enumerate(self.views):
                parameters = sample(view, number, height, width, seed=seed, epoch=epoch, index=index)
                outputs.append(self.normalize(apply_view(image, view, parameters)))
        return outputs


class SimCLRTransform(MultiViewTransform):
    """The two views of SimCLR (Chen et al. 2020, appendix A): crop, flip, colour distortion, grayscale, blur.

    Args:
        size: side of the views in pixels.
        min_scale: smallest area of the crop as a share of the image.
        strength: of the colour distortion. The paper takes 1 on ImageNet (brightness, contrast and saturation 0.8,
            hue 0.2) and 0.5 on CIFAR-10.
        jitter: probability of the colour distortion.
        gray: probability of grayscale.
        flip: probability of a horizontal flip.
        blur: probability of the blur (sigma 0.1 to 2 pixels, over a tenth of the view). The paper takes 0.5 on
            ImageNet and none on small images.
        mean: per channel, for values in [0, 1].
        std: per channel.

    Raises:
        ValueError: if a number is out of range, see :class:`View`.
    """

    def __init__(
        self,
        size: int = 224,
        min_scale: float = 0.08,
        strength: float = 1.0,
        jitter: float = 0.8,
        gray: float = 0.2,
        flip: float = 0.5,
        blur: float = 0.5,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        view = View(
            size=size,
            scale=(min_scale, 1.0),
            flip=flip,
            jitter=jitter,
            brightness=0.8 * strength,
            contrast=0.8 * strength,
            saturation=0.8 * strength,
            hue=0.2 * strength,
            gray=gray,
            blur=blur,
        )
        super().__init__((view, view), mean, std)


class EvalTransform(nn.Module):
    """The one deterministic view for evaluation: the central square, resized and normalised.

    Args:
        size: side of the view in pixels.
        mean: per channel, for values in [0, 1].
        std: per channel.
    """

    def __init__(
        self, size: int = 224, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
    ) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"EvalTransform: size must be at least 1, got {size}")
        self.size = size
        self.normalize = Normalize(mean, std)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """uint8 [B, C, H, W] -> float32 [B, C, size, size], normalised."""
        _check_images("EvalTransform", image)
        height, width = image.shape[-2:]
        side = min(height, width)
        x = image.float() / 255
        if (height, width) != (self.size, self.size):
            length = torch.full((len(image),), side, device=image.device)
            rows = resize_matrix((height - length) // 2, length, height, self.size)
            columns = resize_matrix((width - length) // 2, length, width, self.size)
            with torch.autocast(image.device.type, enabled=False):
                x = separable(x, rows, columns)
        return self.normalize(x)
