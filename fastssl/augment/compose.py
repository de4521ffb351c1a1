"""Views made of transforms: one, several of each image, and the one for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .base import OneView, Transform, Views
from .geometry import CenterView, Size
from .images import Channels, Images
from .parameters import ViewParameters
from .plan import ViewPlan, plan_view
from .steps import IMAGENET_MEAN, IMAGENET_STD, Normalize


class Compose(OneView):
    """One view: a crop or resize first, then steps in any order, then Normalize; all of it one pass over the image.

    Flips and quarter turns may stand anywhere. Without a crop the view has the size of the images, without Normalize
    its values are in [0, 1]. The arguments of the transforms are read once, here.

    Args:
        transforms: in the order in which they are applied; a Compose among them stands for its transforms.

    Raises:
        TypeError: if one is no transform of `fastssl.augment`; :func:`from_torchvision` converts torchvision's.
        ValueError: if the order cannot be kept in one pass.

    Example:
        >>> view = Compose([RandomResizedCrop(224), RandomHorizontalFlip(), RandomGrayscale(0.2), Normalize()])
        >>> x = view(images, seed=0, epoch=0, index=index)  # [B, C, 224, 224]
    """

    def __init__(self, transforms: Sequence[Transform | Compose]) -> None:
        super().__init__()
        flat: list[Transform] = []
        for transform in transforms:
            if not isinstance(transform, (Transform, Compose)):
                raise TypeError(
                    f"{self.label}: transforms must be those of fastssl.augment, got {type(transform).__name__}; "
                    "from_torchvision converts torchvision's"
                )
            flat += list(transform.transforms) if isinstance(transform, Compose) else [transform]
        if not flat:
            raise ValueError(f"{self.label}: transforms must hold at least one transform, got none")
        self._plan = plan_view(self.label, flat)
        self.transforms: Any = nn.ModuleList(flat)

    def plans(self) -> tuple[ViewPlan, ...]:
        return (self._plan,)


class MultiViewTransform(Views):
    """Several views of each image, all from one call that reads the images once; sizes may differ (multi-crop).

    Args:
        transforms: one per view, each a :class:`Compose` or a single transform. Those with the same arguments are
            independent draws all the same.

    Raises:
        TypeError: if one is no transform of `fastssl.augment`.
        ValueError: if there is none, or they normalise differently.

    Example:
        >>> transform = MultiViewTransform([view, view])
        >>> x0, x1 = transform(images, seed=0, epoch=0, index=index)
    """

    def __init__(self, transforms: Sequence[OneView]) -> None:
        super().__init__()
        if not transforms:
            raise ValueError(f"{self.label}: transforms must hold at least one view, got none")
        for transform in transforms:
            if not isinstance(transform, OneView):
                raise TypeError(
                    f"{self.label}: transforms must be those of fastssl.augment, got {type(transform).__name__}; "
                    "from_torchvision converts torchvision's"
                )
        self._plans = tuple(transform.plans()[0] for transform in transforms)
        if len({plan.statistics for plan in self._plans}) > 1:
            raise ValueError(
                f"{self.label}: transforms must have the same Normalize, got mean and std "
                f"{' and '.join(str(s) for s in dict.fromkeys(plan.statistics for plan in self._plans))}"
            )
        self.transforms = nn.ModuleList(transforms)

    def plans(self) -> tuple[ViewPlan, ...]:
        return self._plans

    def forward(
        self,
        images: Images,
        *,
        seed: int | None = None,
        epoch: int | None = None,
        index: Tensor | None = None,
        channels: Channels | None = None,
        dtype: torch.dtype = torch.float32,
        return_parameters: bool = False,
    ) -> Any:
        """Make the views of each image.

        Args:
            images: uint8 [B, C, H, W] or [B, H, W, C], or a list of [C, H, W] or [H, W, C] of any sizes; not changed.
            seed: of the run, 0 to 2^64 - 1. None: a fresh one from PyTorch's global CPU generator.
            epoch: 0 to 2^32 - 1; 0 where it is not given. Needs ``seed``.
            index: int64 [B], position of each image in its data set, on any device; 0 to B - 1 where it is not given.
                Needs ``seed``.
            channels: "first" or "last"; None: where the only axis of 1 or 3 is.
            dtype: of the views: float32, bfloat16 or float16.
            return_parameters: whether to return what was drawn, too.

        Returns:
            A list with one [B, C, height, width] per view; where asked for, also a list of :class:`ViewParameters`.

        Raises:
            TypeError, ValueError: naming the argument, what it was and what it must be.
        """
        views, parameters = self._forward(images, seed, epoch, index, channels, dtype)
        return (views, parameters) if return_parameters else views

    def sample(
        self,
        images_or_size: Images | tuple[int, int],
        *,
        seed: int | None = None,
        epoch: int | None = None,
        index: Tensor | None = None,
        channels: Channels | None = None,
    ) -> list[ViewParameters]:
        """Draw the parameters only, one :class:`ViewParameters` per view.

        Args:
            images_or_size: the images, or their height and width: one pair (then ``index`` says how many), or int64
                [B, 2].
            seed: as in :meth:`forward`, with ``epoch``, ``index`` and ``channels``.
        """
        return self._sample(images_or_size, seed, epoch, index, channels)

    def apply(
        self,
        images: Any,
        parameters: Sequence[ViewParameters] | None = None,
        *,
        channels: Channels | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Any:
        """Make the views that parameters describe: those of :meth:`sample`, changed or not.

        With a function alone it is ``torch.nn.Module.apply``, which goes through all parts of a model.
        """
        if parameters is None and callable(images):
            return super().apply(images)
        return self._apply_to(images, parameters, channels, dtype)


class EvalTransform(nn.Module):
    """The one deterministic view for evaluation: the central square, resized and normalised.

    Args:
        size: side of the view in pixels, or height and width.
        mean: per channel, for values in [0, 1].
        std: per channel.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self, size: Size = 224, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
    ) -> None:
        super().__init__()
        self.view = Compose([CenterView(size), Normalize(mean, std)])
        self.size = size

    def forward(
        self, images: Images, *, channels: Channels | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """uint8 [B, C, H, W], [B, H, W, C] or a list of images -> [B, C, size, size], normalised."""
        return self.view(images, seed=0, channels=channels, dtype=dtype)
