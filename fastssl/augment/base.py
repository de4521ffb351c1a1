"""What transforms share: keys, drawing, and making all views of a batch in one call."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from ..ops import checks
from .images import Channels, Images, channels_first, sizes_of
from .parameters import ViewParameters
from .plan import Entry, Statistics, ViewPlan, plan_view

Sizes = tuple[int, int] | Tensor


def _first(images: Tensor | list[Tensor]) -> Tensor:
    """A tensor that has the channels and the device of all."""
    return images if isinstance(images, Tensor) else images[0]


class Views(nn.Module):
    """One or several random views of each image of a batch; subclasses say which.

    The views are a function of the images and the key (seed, epoch, index), and of nothing else: neither of the batch
    in which an image comes, nor of workers, processes or the device.
    """

    @property
    def label(self) -> str:
        """What messages call it."""
        return type(self).__name__

    def plans(self) -> tuple[ViewPlan, ...]:
        """What to draw and make, one per view."""
        raise NotImplementedError

    @torch.no_grad()
    def _draw(
        self, size: Sizes, batch: int, device: torch.device, seed: int | None, epoch: int | None, index: Tensor | None
    ) -> list[Tensor]:
        key, epoch, index = self._key(batch, device, seed, epoch, index)
        return [
            functional.view_parameters(
                index,
                size=size,
                out_size=self._size_of(plan, size),
                program=plan.program,
                seed=key,
                epoch=epoch,
                view=number,
            )
            for number, plan in enumerate(self.plans())
        ]

    def _key(
        self, batch: int, device: torch.device, seed: int | None, epoch: int | None, index: Tensor | None
    ) -> tuple[int, int, Tensor]:
        if seed is None:
            for name, value in (("epoch", epoch), ("index", index)):
                if value is not None:
                    raise ValueError(f"{self.label}: seed must be given with {name}, else each call draws afresh")
            seed = int(torch.randint(2**63 - 1, (), device="cpu"))
        if epoch is None:
            epoch = 0
        if index is None:
            return seed, epoch, torch.arange(batch, device=device)
        if not isinstance(index, Tensor) or index.dtype != torch.int64:
            got = index.dtype if isinstance(index, Tensor) else type(index).__name__
            raise TypeError(f"{self.label}: index must be an int64 tensor of shape ({batch},), got {got}")
        if index.shape != (batch,):
            raise ValueError(
                f"{self.label}: index must have shape ({batch},) for {batch} images, got {tuple(index.shape)}"
            )
        # Towards the CPU a copy has to be waited for, or it would be read before it has arrived.
        return seed, epoch, index.to(device, non_blocking=device.type == "cuda")

    @torch.no_grad()
    def _make(
        self,
        images: Tensor | list[Tensor],
        records: Sequence[Tensor],
        dtype: torch.dtype,
        passes: list[int] | None,
    ) -> list[Tensor]:
        plans = self.plans()
        channels = _first(images).shape[-3]
        for plan in plans:
            if plan.mixes_channels and channels not in (1, 3):
                raise ValueError(
                    f"{self.label}: images must have 1 or 3 channels for {plan.mixes_channels[0]}, got {channels}"
                )
        size = sizes_of(images)
        mean, std = self._statistics(plans[0].statistics, channels)
        return functional.augment_views(
            images,
            records,
            sizes=[self._size_of(plan, size) for plan in plans],
            bicubic=[plan.bicubic for plan in plans],
            mean=mean,
            std=std,
            dtype=dtype,
            passes=passes,
        )

    def _forward(
        self,
        images: Images,
        seed: int | None,
        epoch: int | None,
        index: Tensor | None,
        channels: Channels | None,
        dtype: torch.dtype,
    ) -> tuple[list[Tensor], list[ViewParameters]]:
        batch = channels_first(self.label, images, channels)
        records = self._draw(sizes_of(batch), len(batch), _first(batch).device, seed, epoch, index)
        views = self._make(batch, records, dtype, [plan.passes for plan in self.plans()])
        return views, [ViewParameters(drawn) for drawn in records]

    def _sample(
        self,
        images_or_size: Images | Sizes,
        seed: int | None,
        epoch: int | None,
        index: Tensor | None,
        channels: Channels | None,
    ) -> list[ViewParameters]:
        size: Any = images_or_size
        if isinstance(size, tuple) and len(size) == 2 and all(isinstance(side, int) for side in size):
            size = tuple(checks.check_count(self.label, "size", side, minimum=1) for side in size)
            if index is None:
                raise ValueError(f"{self.label}: index must be given with one size {size}: it says how many images")
            batch, device = len(index), index.device
        elif isinstance(size, Tensor) and size.dtype == torch.int64 and size.ndim == 2:
            batch, device = len(size), size.device
        else:
            images = channels_first(self.label, size, channels)
            size, batch, device = sizes_of(images), len(images), _first(images).device
        return [ViewParameters(records) for records in self._draw(size, batch, device, seed, epoch, index)]

    def _apply_to(self, images: Images, parameters: Any, channels: Channels | None, dtype: torch.dtype) -> list[Tensor]:
        batch = channels_first(self.label, images, channels)
        count = len(self.plans())
        if not isinstance(parameters, Sequence) or not all(isinstance(each, ViewParameters) for each in parameters):
            raise TypeError(f"{self.label}: parameters must be what sample returns, got {type(parameters).__name__}")
        if len(parameters) != count:
            raise ValueError(f"{self.label}: parameters must be given for each of {count} views, got {len(parameters)}")
        # Whoever changed them may have added steps: how many passes they take is not known here.
        return self._make(batch, [each.records for each in parameters], dtype, None)

    def _size_of(self, plan: ViewPlan, size: Sizes) -> tuple[int, int]:
        if plan.size is not None:
            return plan.size
        if isinstance(size, Tensor):
            raise ValueError(
                f"{self.label}: images of different sizes need a crop or a resize, for instance Resize((224, 224))"
            )
        plan.check_size(self.label, size)
        return size

    def _statistics(self, statistics: Statistics | None, channels: int) -> Statistics:
        """Mean and standard deviation for images with so many channels."""
        if statistics is None:
            return (0.0,) * channels, (1.0,) * channels
        mean, std = statistics
        if len(mean) == channels:
            return mean, std
        if len(mean) == 1:
            return mean * channels, std * channels
        if channels == 1:
            return (sum(mean) / len(mean),), (sum(std) / len(std),)
        raise ValueError(f"{self.label}: images must have {len(mean)} channels like Normalize's mean, got {channels}")


class OneView(Views):
    """One view of each image."""

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
        """Make the view of each image.

        Args:
            images: uint8 [B, C, H, W] or [B, H, W, C], or a list of [C, H, W] or [H, W, C] of any sizes; not changed.
            seed: of the run, 0 to 2^64 - 1. None: a fresh one from PyTorch's global CPU generator.
            epoch: 0 to 2^32 - 1; 0 where it is not given. Needs ``seed``.
            index: int64 [B], position of each image in its data set, on any device; 0 to B - 1 where it is not given.
                Needs ``seed``.
            channels: "first" or "last"; None: where the only axis of 1 or 3 is.
            dtype: of the view: float32, bfloat16 or float16.
            return_parameters: whether to return what was drawn, too.

        Returns:
            The view [B, C, height, width], and :class:`ViewParameters` where asked for.

        Raises:
            TypeError, ValueError: naming the argument, what it was and what it must be.
        """
        views, parameters = self._forward(images, seed, epoch, index, channels, dtype)
        return (views[0], parameters[0]) if return_parameters else views[0]

    def sample(
        self,
        images_or_size: Images | Sizes,
        *,
        seed: int | None = None,
        epoch: int | None = None,
        index: Tensor | None = None,
        channels: Channels | None = None,
    ) -> ViewParameters:
        """Draw the parameters only.

        Args:
            images_or_size: the images, or their height and width: one pair (then ``index`` says how many), or int64
                [B, 2].
            seed: as in :meth:`forward`, with ``epoch``, ``index`` and ``channels``.
        """
        return self._sample(images_or_size, seed, epoch, index, channels)[0]

    def apply(
        self,
        images: Any,
        parameters: ViewParameters | None = None,
        *,
        channels: Channels | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Any:
        """Make the view that parameters describe: those of :meth:`sample`, changed or not.

        With a function alone it is ``torch.nn.Module.apply``, which goes through all parts of a model.
        """
        if parameters is None and callable(images):
            return super().apply(images)
        return self._apply_to(images, [parameters], channels, dtype)[0]


class Transform(OneView):
    """A named step. Alone it makes a view of the images' size (or its own) in [0, 1]; in a Compose it is one of many.

    Subclasses set what follows, and keep their arguments under their names.
    """

    size: tuple[int, int] | None = None  # of the view, where the transform decides it
    bicubic: bool = False
    statistics: Statistics | None = None  # of a normalisation

    def entries(self) -> list[Entry]:
        """What it contributes to the program of a view."""
        return []

    def plans(self) -> tuple[ViewPlan, ...]:
        return (plan_view(self.label, [self]),)

    def extra_repr(self) -> str:
        names = [name for name in inspect.signature(type(self)).parameters if name in vars(self)]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
