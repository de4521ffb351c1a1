"""Random views of decoded images: fastssl's two operators against the libraries that people make views with.

Every provider gets the same decoded uint8 images, in the layout that it likes best (made before, not timed), and
returns all views of the batch as normalised tensors [B, 3, size, size]. fastssl draws the numbers in each call, like
the others. Its views are compared with float64, theirs by their statistics (see ``augment_gate``).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import fastssl
import fastssl.augment as transforms

from . import augment_batched, augment_gate, augment_peers
from .augment_recipes import FLIP, GRAY, JITTER, MEAN, RATIO, SIGMA, STD, Recipe, photographs, recipes
from .cases import Case, Family, Formed, Function, Provider, Rate, Work
from .providers import backend_note, check_above_zero, of_fastssl

CASES: dict[str, dict[str, float]] = {
    "simclr-224": {"B": 64, "height": 256, "width": 256, "size": 224, "strength": 1, "blur": 0.5},
    "simclr-32": {"B": 512, "height": 32, "width": 32, "size": 32, "strength": 0.5, "blur": 0},
    "photo": {"B": 8, "height": 2000, "width": 3000, "size": 224, "strength": 1, "blur": 0.5},
    "dino": {"B": 32, "height": 256, "width": 256, "size": 224, "strength": 0, "blur": 0, "local": 8, "local_size": 96},
}
NO_SMALL_VIEWS = {"local": 0, "local_size": 0}


def sizes(name: str, batch: int | None = None) -> dict[str, float]:
    """The sizes of a case in ``CASES``."""
    chosen = {**NO_SMALL_VIEWS, **CASES[name]}
    ordered = {key: chosen[key] for key in ("B", "height", "width", "size", "strength", "blur", *NO_SMALL_VIEWS)}
    return ordered if batch is None else {**ordered, "B": batch}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--case", nargs="+", choices=list(CASES), default=list(CASES),
        help="simclr-224: 256 x 256 pixels to 224; simclr-32: 32 to 32 without blur; photo: 3000 x 2000 to 224; dino: "
        "2 views of 224 and 8 of 96 of 256 x 256, bicubic",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, nargs="+", metavar="B", help="images; default: each case's own")


def cases(arguments: argparse.Namespace, device: str) -> list[Case]:
    if arguments.batch is not None:
        check_above_zero({"--batch": arguments.batch})
    return [
        Case.named(sizes(name, batch), dtype, device)
        for name in arguments.case
        for batch in arguments.batch or [None]
        for dtype in arguments.dtype
    ]


def tiny_sizes(sizes: Mapping[str, float]) -> dict[str, float]:
    limits = {"B": 2, "height": 40, "width": 48, "size": 16, "local_size": 12, "local": 2}
    return {name: min(value, limits.get(name, value)) for name, value in sizes.items()}


def inputs(case: Case, seed: int) -> tuple[Tensor, Tensor]:
    """Images uint8 [B, H, W, 3] as a decoder leaves them, and their positions in a data set, int64 [B]."""
    batch, height, width = (int(case.sizes[name]) for name in ("B", "height", "width"))
    generator = torch.Generator(case.device).manual_seed(seed)
    images = photographs(batch, height, width, generator, case.device)
    return images, torch.arange(seed * batch, (seed + 1) * batch, device=case.device)


def work(case: Case, which: str) -> Work:
    """A crop, as large as it is on average, is read as uint8, and a view written."""
    pixels, size = case.sizes["height"] * case.sizes["width"], case.dtype.itemsize
    moved = sum(3 * (pixels * sum(recipe.scale) / 2 + recipe.size**2 * size) for recipe in recipes(case.sizes))
    return Work(0, case.sizes["B"] * moved)


def views_of_a_call(case: Case) -> float:
    return case.sizes["B"] * len(recipes(case.sizes))


BACKENDS = ("cpp", "cuda", "triton", "chunked")

# --- Providers ------------------------------------------------------------------------------------------------------


def _fastssl(case: Case) -> Function:
    transform = transforms.MultiViewTransform([_transform(recipe) for recipe in recipes(case.sizes)])

    def function(images: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        return tuple(transform(images, seed=0, epoch=0, index=index, channels="last", dtype=case.dtype))

    return function


def _transform(recipe: Recipe) -> transforms.Compose:
    """A view as users write it."""
    resized = "bicubic" if recipe.bicubic else "bilinear"
    steps: list[Any] = [
        transforms.RandomResizedCrop(recipe.size, recipe.scale, RATIO, resized),
        transforms.RandomHorizontalFlip(FLIP),
        transforms.ColorJitter(*recipe.jitter, p=JITTER),
        transforms.RandomGrayscale(GRAY),
    ]
    if recipe.blur > 0:
        steps.append(transforms.GaussianBlur(recipe.kernel, SIGMA, p=recipe.blur))
    if recipe.solarize > 0:
        steps.append(transforms.RandomSolarize(128 / 255, p=recipe.solarize))
    return transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])


def _eager(case: Case) -> Function:
    function = _fastssl(case)

    def by_reference(images: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        with fastssl.backend("reference"):
            return function(images, index)

    return by_reference


def _fastssl_note(case: Case) -> str:
    return f"{backend_note('augment_views', torch.uint8)(case)}; gate: float64, pixel by pixel"


def _formed(build: Callable[[Case], Function], form: Callable[..., Sequence[Any]]) -> Callable[[Case], Function]:
    """With images in a layout of the library's own, made before."""
    return lambda case: Formed(build(case), lambda *inputs: tuple(form(*inputs)))


def _shown(build: Callable[[Case], Any]) -> Callable[[Case], Function]:
    """With images in the workers' memory."""

    def build_shown(case: Case) -> Function:
        loader = build(case)
        return Formed(loader, loader.show)

    return build_shown


def _stack(images: Tensor, index: Tensor) -> tuple[Tensor]:
    return (images.movedim(-1, 1).contiguous(),)


NOT_ANTIALIASED = "not antialiased"
ONE_ORDER = "the colours change in one order, not a random one"


def _peer(build: Callable[[Case], Function], *notes: str, **fields: Any) -> Provider:
    """A library that draws its own numbers, and makes float32."""

    def note(case: Case) -> str:
        return "; ".join((*notes, f"gate: statistics of {augment_gate.views_compared(case.sizes)} views"))

    return Provider(build, note=note, dtypes=(torch.float32,), gate=augment_gate.by_statistics, **fields)


def _alone_and_in_workers(
    name: str, make: augment_peers.Maker, form: Callable[..., Sequence[Any]], *notes: str
) -> dict[str, Provider]:
    """A library that makes one view at a time, in this process and in two of its own."""
    alone = _formed(augment_peers.one_by_one(make), form)
    workers = _shown(augment_peers.in_workers(make, form))
    several = f"DataLoader with {augment_peers.WORKERS} workers"
    return {
        name: _peer(alone, *notes),
        f"{name}-workers": _peer(workers, several, *notes, batches=augment_peers.BATCHES, elsewhere=True),
    }


def _at_once(build: Callable[[Case], Function]) -> Callable[[Case], Function]:
    return _formed(augment_peers.flushing(build), _stack)


PROVIDERS = {
    **of_fastssl(_fastssl, "augment_views", backends=BACKENDS, operand=torch.uint8, note=_fastssl_note),
    "eager": Provider(_eager, note=lambda case: "one image at a time; gate: float64, pixel by pixel"),
    **_alone_and_in_workers("torchvision-pil", augment_peers.torchvision_pil, augment_peers.as_pil),
    **_alone_and_in_workers("torchvision-v2", augment_peers.torchvision_v2, augment_peers.as_channels_first),
    **_alone_and_in_workers("lightly", augment_peers.lightly, augment_peers.as_pil),
    **_alone_and_in_workers("albumentations", augment_peers.albumentations, augment_peers.as_arrays),
    **_alone_and_in_workers(
        "albumentations-linear", augment_peers.albumentations_linear, augment_peers.as_arrays, NOT_ANTIALIASED
    ),
    "kornia": _peer(_at_once(augment_peers.kornia), NOT_ANTIALIASED, bytes_needed=augment_peers.bytes_of_kornia),
    "batched": _peer(_at_once(augment_batched.batched), ONE_ORDER, bytes_needed=augment_batched.bytes_needed),
    "compiled": _peer(
        _at_once(augment_batched.compiled), ONE_ORDER, bytes_needed=augment_batched.bytes_needed, compiles=True
    ),
}

FAMILY = Family(
    name="augment",
    module=__name__,
    subject="fastssl",
    baseline="eager",
    add_arguments=add_arguments,
    cases=cases,
    inputs=inputs,
    truth=augment_gate.truth,
    tiny_sizes=tiny_sizes,
    work=work,
    work_model="which is memory's bandwidth: a crop of the mean size read as uint8 and a view written, at the rate of "
    "the best copy; far below every time: resizing, colours and blur are bound by arithmetic, which is not counted",
    providers=PROVIDERS,
    optional=frozenset({*(f"fastssl-{name}" for name in BACKENDS), "eager", "batched"}),
    passes=("forward",),
    rate=Rate("views/s", views_of_a_call),
)
