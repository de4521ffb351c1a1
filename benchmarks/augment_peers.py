"""What people make views with today, in its best configuration.

A maker takes a recipe and returns the function that turns one decoded image into one view, in the library's own way.
``one_by_one`` makes batches of them as a loop does, ``in_workers`` as a ``DataLoader`` with processes of its own does,
with the transport of the results. ``kornia_batched`` takes a batch at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from .augment_recipes import FLIP, GRAY, JITTER, MEAN, RATIO, SIGMA, STD, Recipe, recipes
from .cases import Case, Function, Unavailable

Maker = Callable[[Recipe], Callable[[Any], Tensor]]

WORKERS = 2
BATCHES = 4  # that a DataLoader makes in one call: each worker has several, so that none waits long for the other

# --- One image at a time --------------------------------------------------------------------------------------------


def torchvision_pil(recipe: Recipe) -> Callable[[Any], Tensor]:
    """The usual pipeline, on PIL images."""
    from torchvision import transforms as tv

    resample = tv.InterpolationMode.BICUBIC if recipe.bicubic else tv.InterpolationMode.BILINEAR
    steps: list[Any] = [
        tv.RandomResizedCrop(recipe.size, recipe.scale, RATIO, resample),
        tv.RandomHorizontalFlip(FLIP),
        tv.RandomApply([tv.ColorJitter(*recipe.jitter)], JITTER),
        tv.RandomGrayscale(GRAY),
    ]
    if recipe.blur > 0:
        steps.append(tv.RandomApply([tv.GaussianBlur(recipe.kernel, SIGMA)], recipe.blur))
    if recipe.solarize > 0:
        steps.append(tv.RandomSolarize(128, recipe.solarize))
    return tv.Compose([*steps, tv.ToTensor(), tv.Normalize(MEAN, STD)])


def torchvision_v2(recipe: Recipe) -> Callable[[Any], Tensor]:
    """Version 2 on uint8 tensors."""
    from torchvision.transforms import InterpolationMode, v2

    resample = InterpolationMode.BICUBIC if recipe.bicubic else InterpolationMode.BILINEAR
    steps: list[Any] = [
        v2.RandomResizedCrop(recipe.size, recipe.scale, RATIO, resample, antialias=True),
        v2.RandomHorizontalFlip(FLIP),
        v2.RandomApply([v2.ColorJitter(*recipe.jitter)], JITTER),
        v2.RandomGrayscale(GRAY),
    ]
    if recipe.blur > 0:
        steps.append(v2.RandomApply([v2.GaussianBlur(recipe.kernel, SIGMA)], recipe.blur))
    if recipe.solarize > 0:
        steps.append(v2.RandomSolarize(128, recipe.solarize))
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def lightly(recipe: Recipe) -> Callable[[Any], Tensor]:
    """lightly's view of SimCLR, or of DINO, on PIL images; it blurs with PIL's filter."""
    from lightly.transforms.dino_transform import DINOViewTransform
    from lightly.transforms.simclr_transform import SimCLRViewTransform

    brightness, contrast, saturation, hue = recipe.jitter
    common: dict[str, Any] = {
        "hf_prob": FLIP, "random_gray_scale": GRAY, "gaussian_blur": recipe.blur, "sigmas": SIGMA, "cj_prob": JITTER,
        "cj_strength": 1.0, "cj_bright": brightness, "cj_contrast": contrast, "cj_sat": saturation, "cj_hue": hue,
    }  # fmt: skip
    if recipe.bicubic:
        return DINOViewTransform(recipe.size, recipe.scale, solarization_prob=recipe.solarize, **common)
    return SimCLRViewTransform(recipe.size, min_scale=recipe.scale[0], **common)


def albumentations(recipe: Recipe, *, antialias: bool = True) -> Callable[[Any], Tensor]:
    """On NumPy arrays.

    Args:
        recipe: of the view.
        antialias: shrink by area (``INTER_AREA``); the library's default samples without a filter.
    """
    import albumentations as A
    import cv2
    from albumentations.pytorch import ToTensorV2

    steps: list[Any] = [
        A.RandomResizedCrop(
            (recipe.size, recipe.size), recipe.scale, RATIO, cv2.INTER_CUBIC if recipe.bicubic else cv2.INTER_LINEAR,
            area_for_downscale="image" if antialias else None,
        ),
        A.HorizontalFlip(p=FLIP),
        A.ColorJitter(
            *((max(0.0, 1 - strength), 1 + strength) for strength in recipe.jitter[:3]),
            hue=(-recipe.jitter[3], recipe.jitter[3]), p=JITTER,
        ),
        A.ToGray(p=GRAY),
    ]  # fmt: skip
    if recipe.blur > 0:
        steps.append(A.GaussianBlur(blur_limit=0, sigma_limit=SIGMA, p=recipe.blur))  # as many taps as sigma needs
    if recipe.solarize > 0:
        steps.append(A.Solarize(threshold_range=(0.5, 0.5), p=recipe.solarize))
    pipeline = A.Compose([*steps, A.Normalize(MEAN, STD), ToTensorV2()])
    return lambda image: pipeline(image=image)["image"]


def albumentations_linear(recipe: Recipe) -> Callable[[Any], Tensor]:
    """As the library comes."""
    return albumentations(recipe, antialias=False)


# --- What they take -------------------------------------------------------------------------------------------------


def as_arrays(images: Tensor, *_: Tensor) -> list[Any]:
    if images.device.type != "cpu":
        raise Unavailable("its views are made on the CPU")
    return list(images.numpy())


def as_pil(images: Tensor, *_: Tensor) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(array) for array in as_arrays(images)]


def as_channels_first(images: Tensor, *_: Tensor) -> list[Tensor]:
    """Tensors [3, H, W] of their own."""
    return list(images.movedim(-1, 1).contiguous())


# --- Batches --------------------------------------------------------------------------------------------------------


def one_by_one(make: Maker) -> Callable[[Case], Function]:
    """A loop over the images, and a stack of what it makes."""

    def build(case: Case) -> Function:
        views = [make(recipe) for recipe in recipes(case.sizes)]

        return lambda *images: tuple(torch.stack([view(image) for image in images]) for view in views)

    return flushing(build)


def flushing(build: Callable[[Case], Function]) -> Callable[[Case], Function]:
    """The same with numbers next to zero taken as zero, as they come up in the tails of a blur's kernel.

    Processors are several times slower with them: torchvision's blur is, without this.
    """

    def build_flushing(case: Case) -> Function:
        function = build(case)

        def flushed(*arguments: Any) -> Any:
            torch.set_flush_denormal(True)
            try:
                return function(*arguments)
            finally:
                torch.set_flush_denormal(False)

        return flushed

    return build_flushing


def in_workers(make: Maker, layout: Callable[..., Sequence[Any]]) -> Callable[[Case], Loader]:
    """The same by a ``DataLoader`` with worker processes that live on.

    One call is an epoch of ``BATCHES`` batches: nothing is left over for the next call, nothing was prepared before.
    """

    def build(case: Case) -> Loader:
        if case.device != "cpu":
            raise Unavailable("its views are made on the CPU")
        return Loader(make, layout, case)

    return build


class Loader:
    """A call makes views of a set of images that it was shown before.

    Args:
        make: of views.
        layout: of images.
        case: for the sizes.
        wanted: the views of an image; None: the case's.
        **options: of the ``DataLoader``.
    """

    SLOTS = 8  # sets of images that can be shown

    def __init__(
        self,
        make: Maker,
        layout: Callable[..., Sequence[Any]],
        case: Case,
        wanted: Sequence[Recipe] | None = None,
        **options: Any,
    ) -> None:
        from torch.utils.data import DataLoader

        sizes = [int(case.sizes[name]) for name in ("B", "height", "width")]
        self._batch = sizes[0]
        self._shown = 0
        self._slot = 0
        self._memory = torch.empty(self.SLOTS, *sizes, 3, dtype=torch.uint8).share_memory_()
        self._loader = DataLoader(
            _Images(make, layout, wanted or recipes(case.sizes), self._memory),
            batch_sampler=_Batches(self),
            persistent_workers=True,
            worker_init_fn=_start_worker,
            **{"num_workers": WORKERS, **options},
        )

    def show(self, images: Tensor, *_: Tensor) -> tuple[int]:
        """Put a set where the workers see it; the number is what a call takes."""
        if self._shown == self.SLOTS:
            raise ValueError(f"at most {self.SLOTS} sets of images can be shown to workers")
        self._memory[self._shown].copy_(images)
        self._shown += 1
        return (self._shown - 1,)

    def __call__(self, slot: int) -> tuple[Tensor, ...]:
        """The views of ``BATCHES`` batches, one after the other."""
        return tuple(view for views in self.epoch(slot) for view in views)

    def epoch(self, slot: int) -> Iterator[Sequence[Tensor]]:
        """The views of each of ``BATCHES`` batches, as soon as it is there."""
        self._slot = slot
        yield from self._loader

    def batches(self) -> Iterator[list[tuple[int, int]]]:
        """Places of images, by batch."""
        for _ in range(BATCHES):
            yield [(self._slot, number) for number in range(self._batch)]


class _Batches:
    """What `loader` is to make next; a circle would keep its workers until it is found."""

    def __init__(self, loader: Loader) -> None:
        self._loader = weakref.ref(loader)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        loader = self._loader()
        assert loader is not None  # it owns the DataLoader that asks
        return loader.batches()

    def __len__(self) -> int:
        return BATCHES


class _Images(torch.utils.data.Dataset):
    """Images in shared memory, each in its library's layout since the first time that it was asked for."""

    def __init__(
        self, make: Maker, layout: Callable[..., Sequence[Any]], wanted: Sequence[Recipe], memory: Tensor
    ) -> None:
        self._make, self._layout, self._wanted, self._memory = make, layout, wanted, memory
        self._views: list[Callable[[Any], Tensor]] = []
        self._kept: dict[tuple[int, int], Any] = {}

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, ...]:
        if not self._views:
            self._views = [self._make(recipe) for recipe in self._wanted]
        if place not in self._kept:
            self._kept[place] = self._layout(self._memory[place][None])[0]
        image = self._kept[place]
        return tuple(view(image) for view in self._views)


def _start_worker(_: int) -> None:
    """A worker has one core to itself: libraries that would start threads of their own are told so."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    with suppress(ImportError):
        import cv2

        cv2.setNumThreads(0)


# --- A batch at once ------------------------------------------------------------------------------------------------


def bytes_of_kornia(case: Case) -> float:
    """The images in float32, twice."""
    return 8 * 3 * case.sizes["B"] * case.sizes["height"] * case.sizes["width"]


def kornia(case: Case) -> Function:
    """uint8 [B, 3, H, W] -> the views, numbers of their own for each image."""
    import kornia.augmentation as K

    def pipeline(recipe: Recipe) -> torch.nn.Sequential:
        steps: list[torch.nn.Module] = [
            K.RandomResizedCrop(
                (recipe.size, recipe.size), recipe.scale, RATIO, "BICUBIC" if recipe.bicubic else "BILINEAR",
                align_corners=False, cropping_mode="slice" if case.device == "cpu" else "resample",
            ),
            K.RandomHorizontalFlip(p=FLIP),
            K.ColorJitter(*recipe.jitter, p=JITTER),
            K.RandomGrayscale(p=GRAY),
        ]  # fmt: skip
        if recipe.blur > 0:
            steps.append(K.RandomGaussianBlur((recipe.kernel, recipe.kernel), SIGMA, p=recipe.blur))
        if recipe.solarize > 0:
            steps.append(K.RandomSolarize((128 / 255, 128 / 255), (0.0, 0.0), p=recipe.solarize))
        return torch.nn.Sequential(*steps, K.Normalize(torch.tensor(MEAN), torch.tensor(STD)))

    pipelines = [pipeline(recipe).to(case.device) for recipe in recipes(case.sizes)]

    def function(images: Tensor) -> tuple[Tensor, ...]:
        x = images.float() / 255
        return tuple(each(x) for each in pipelines)

    return function
