"""torchvision's pipelines: the same operations and distributions, and all that has no counterpart in one error."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("torchvision")
import torchvision.transforms as v1
from torchvision.transforms import InterpolationMode, v2

from fastssl.augment import Compose, MultiViewTransform, from_torchvision

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KEY = dict(seed=11, epoch=1, index=torch.arange(10))
IMAGES = torch.randint(0, 256, (10, 3, 50, 44), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
TO_FLOAT = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]


def parts(step):
    """All transforms of a pipeline. Those of a v2.Compose are none of its modules."""
    yield step
    for part in getattr(step, "transforms", []):
        yield from parts(part)


def forced(pipeline, p):
    """The pipeline itself, with its random numbers set to those of one image's parameters."""
    pipeline = copy.deepcopy(pipeline)
    steps = dict(p.steps(0))
    colours = ("brightness", "contrast", "saturation", "hue")

    def numbers(**given):
        return lambda *_: given

    for step in parts(pipeline):
        name = type(step).__name__
        if name == "RandomResizedCrop":
            step.make_params = numbers(top=int(p.top), left=int(p.left), height=int(p.height), width=int(p.width))
        elif name == "RandomCrop":
            step.make_params = numbers(needs_crop=True, top=int(p.top), left=int(p.left), height=int(p.height),
                                       width=int(p.width), needs_pad=False, padding=None)  # fmt: skip
        elif name == "RandomHorizontalFlip":
            step.p = float(p.horizontal_flip)
        elif name == "RandomVerticalFlip":
            step.p = float(p.vertical_flip)
        elif name == "RandomGrayscale":
            step.p = float("grayscale" in steps)
        elif name == "RandomSolarize":
            step.p = float("solarize" in steps)
        elif name == "ColorJitter":
            order = [colours.index(key) for key in steps if key in colours]
            step.make_params = numbers(
                fn_idx=torch.tensor(order, dtype=torch.int64),
                **{
                    f"{key}_factor": steps[key].get("factor", steps[key].get("turns"))
                    for key in steps
                    if key in colours
                },
                **{f"{key}_factor": None for key in colours if key not in steps},
            )
        elif name == "GaussianBlur" and "blur" in steps:
            step.make_params = numbers(sigma=[steps["blur"]["sigma"]] * 2)
        elif name == "RandomRotation" and "rotate" in steps:
            step.make_params = numbers(angle=steps["rotate"]["degrees"])
        elif name == "RandomErasing":
            box = [int(steps["cutout"][key]) for key in ("top", "left", "height", "width")] if "cutout" in steps else []
            step.p = float(bool(box))
            if box:
                value = torch.tensor(step.value)[:, None, None]
                step.make_params = numbers(**dict(zip("ijhw", box, strict=True)), v=value)
        elif name == "RandomApply":
            inner = type(step.transforms[0]).__name__
            key = {"ColorJitter": "brightness", "GaussianBlur": "blur", "RandomRotation": "rotate"}[inner]
            step.p = float(key in steps)
    return pipeline


SIMCLR = v2.Compose([
    *TO_FLOAT,
    v2.RandomResizedCrop(32, antialias=True),
    v2.RandomHorizontalFlip(),
    v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
    v2.RandomGrayscale(0.2),
    v2.RandomApply([v2.GaussianBlur(3, (0.1, 2.0))], p=0.5),
    v2.Normalize(MEAN, STD),
])  # fmt: skip
ERASED = v2.Compose([
    *TO_FLOAT,
    v2.RandomResizedCrop((30, 24), (0.3, 0.9), (0.5, 1.5), interpolation=InterpolationMode.BICUBIC),
    v2.RandomVerticalFlip(0.5),
    v2.RandomSolarize(0.502, p=0.5),
    v2.Normalize(MEAN, STD),
    v2.RandomHorizontalFlip(),
    v2.RandomErasing(p=0.7),
    v2.ToPureTensor(),
])  # fmt: skip
CROPPED = v2.Compose([
    *TO_FLOAT, v2.RandomCrop(30), v2.RandomErasing(0.6, value=0.75), v2.Compose([v2.Grayscale(3)]), v2.Identity(),
])  # fmt: skip
RESIZED = v2.Compose([
    *TO_FLOAT,
    v2.Resize((24, 40)),
    v2.RandomApply([v2.RandomRotation((-25, 40), InterpolationMode.BILINEAR, fill=0.25)], p=0.6),
    v2.Normalize(MEAN, STD),
])  # fmt: skip


@pytest.mark.parametrize("pipeline", [SIMCLR, CROPPED, RESIZED], ids=["simclr", "cropped", "resized"])
def test_the_view_is_what_the_pipeline_itself_makes_with_the_same_numbers(pipeline):
    view = from_torchvision(pipeline)
    assert isinstance(view, Compose)
    x, p = view(IMAGES, **KEY, return_parameters=True)
    for i in range(10):
        torch.testing.assert_close(x[i], torch.as_tensor(forced(pipeline, p[i])(IMAGES[i])), atol=2e-4, rtol=0)


def test_bicubic_views_are_the_pipelines_clamped_as_bytes_are():
    clamped = copy.deepcopy(ERASED)
    clamped.transforms.insert(3, v2.Lambda(lambda x: x.clamp(0, 1)))
    x, p = from_torchvision(ERASED)(IMAGES, **KEY, return_parameters=True)
    for i in range(10):
        steps = forced(clamped, p[i])
        torch.testing.assert_close(x[i], torch.as_tensor(steps(IMAGES[i])), atol=2e-4, rtol=0)
    assert p.applied("cutout").any() and p.applied("solarize").any() and p.horizontal_flip.any()


def test_a_pipeline_in_bytes_differs_by_its_rounding():
    pipeline = v2.Compose([
        v2.RandomResizedCrop(32), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4), v2.GaussianBlur(5),
        v2.ToDtype(torch.float32, scale=True),
    ])  # fmt: skip
    x, p = from_torchvision(pipeline)(IMAGES, **KEY, return_parameters=True)
    for i in range(10):
        difference = (x[i] - forced(pipeline, p[i])(IMAGES[i])).abs()
        assert difference.max() < 5 / 255 and difference.mean() < 2 / 255


@pytest.mark.parametrize("library", [v1, v2], ids=["v1", "v2"])
def test_both_versions_of_a_pipeline_are_read_alike(library):
    pipeline = library.Compose([
        library.RandomResizedCrop(32, scale=(0.2, 1.0), interpolation=InterpolationMode.BICUBIC),
        library.RandomHorizontalFlip(0.4),
        library.RandomApply([library.ColorJitter(0.4, 0.3, 0.2, 0.1)], p=0.8),
        library.RandomGrayscale(p=0.2),
        library.RandomApply(nn.ModuleList([library.GaussianBlur(5, (0.1, 1.0)), library.RandomRotation(7)]), p=0.3),
        library.RandomSolarize(128, p=0.1),
        library.PILToTensor(),
        library.ConvertImageDtype(torch.float32),
        library.Normalize(MEAN, STD),
        library.RandomErasing(0.3),
    ])  # fmt: skip
    from fastssl import augment as ours

    expected = Compose([
        ours.RandomResizedCrop(32, (0.2, 1.0), interpolation="bicubic"),
        ours.RandomHorizontalFlip(0.4),
        ours.RandomApply([ours.ColorJitter(0.4, 0.3, 0.2, 0.1)], p=0.8),
        ours.RandomGrayscale(0.2),
        ours.RandomApply([ours.GaussianBlur(5, (0.1, 1.0)), ours.RandomRotation(7)], p=0.3),
        ours.RandomSolarize(128 / 255, p=0.1),
        ours.Cutout(0.3),
        ours.Normalize(MEAN, STD),
    ])  # fmt: skip
    assert from_torchvision(pipeline).plans() == expected.plans()


def test_a_single_transform_a_list_and_a_sequential_are_pipelines_too():
    one = from_torchvision(v2.RandomResizedCrop(16))
    assert one.plans() == from_torchvision([v2.RandomResizedCrop(16)]).plans()
    assert one.plans() == from_torchvision(nn.Sequential(v1.RandomResizedCrop(16))).plans()
    views = MultiViewTransform([one, one])(IMAGES, **KEY)
    assert [tuple(view.shape) for view in views] == [(10, 3, 16, 16)] * 2


@pytest.mark.parametrize(
    ("steps", "change"),
    [
        ([v2.RandomSolarize(128), *TO_FLOAT], lambda view: view.transforms[0].threshold == 128 / 255),
        ([*TO_FLOAT, v2.RandomSolarize(0.25)], lambda view: view.transforms[0].threshold == 0.25),
        ([v2.RandomRotation(9, fill=51), *TO_FLOAT], lambda view: view.transforms[0].fill == 0.2),
        ([*TO_FLOAT, v2.RandomRotation(9, fill=[0.2] * 3)], lambda view: view.transforms[0].fill == 0.2),
        ([*TO_FLOAT, v2.RandomErasing(value=0.3)], lambda view: view.transforms[0].value == 0.3),
        (
            [*TO_FLOAT, v2.Normalize((0.5,) * 3, (0.25,) * 3), v2.RandomErasing(value=1)],
            lambda view: view.transforms[0].value == 0.75,
        ),
        (
            [v2.ToDtype(torch.uint8, scale=True), v2.RandomGrayscale(), *TO_FLOAT],
            lambda view: len(view.transforms) == 1,
        ),
        ([*TO_FLOAT, v2.GaussianNoise(0.1, 0.2, False)], lambda view: view.transforms[0].mean == 0.1),
        ([v2.RandomApply([v2.Identity()]), v2.Grayscale(3)], lambda view: view.transforms[0].p == 1),
    ],
)
def test_numbers_are_read_in_the_range_that_the_image_has_there(steps, change):
    assert change(from_torchvision(v2.Compose(steps)))


class Mine(nn.Module):
    """A step that torchvision does not know."""


def test_one_error_names_everything_that_has_no_counterpart():
    pipeline = v2.Compose([
        v2.RandomGrayscale(),
        v2.RandomResizedCrop(32, interpolation=InterpolationMode.NEAREST, antialias=False),
        v2.Resize(32),
        v2.CenterCrop(16),
        v2.RandomCrop(8, padding=4, pad_if_needed=True),
        v2.AutoAugment(),
        v2.RandomApply([v2.RandomAffine(3), v2.ToDtype(torch.float16, scale=True)]),
        v2.RandomRotation(3, expand=True, center=[1, 1], fill=[1, 2, 3]),
        v2.RandomRotation(3, interpolation=InterpolationMode.BICUBIC),
        v2.Grayscale(),
        v2.RandomErasing(value="random"),
        v2.ToDtype(torch.float32),
        v2.Normalize(MEAN, STD),
        v2.RandomErasing(value=1),
        v2.GaussianBlur((3, 5)),
        v2.RandomSolarize(0.5),
        v2.Normalize(MEAN, STD),
        Mine(),
    ])  # fmt: skip
    with pytest.raises(ValueError) as caught:
        from_torchvision(pipeline)
    message = str(caught.value)
    for part in (
        "from_torchvision: no counterpart, since ",
        "RandomResizedCrop has antialias=False",
        "RandomResizedCrop has interpolation nearest",
        "Resize has one number as its size",
        "CenterCrop has no resize in it; CenterView(224, share=0.875)",
        "RandomCrop has padding=[4, 4, 4, 4]",
        "RandomCrop has pad_if_needed=True",
        "AutoAugment is not among",
        "RandomAffine is not among",
        "ToDtype has dtype=torch.float16",
        "RandomApply holds a conversion",
        "RandomRotation has expand=True",
        "RandomRotation has center=[1, 1]",
        "RandomRotation has fill=[1, 2, 3]",
        "RandomRotation has interpolation bicubic",
        "Grayscale has num_output_channels=1",
        "RandomErasing has a value that is not one number",
        "ToDtype has dtype=torch.float32 and scale=False",
        "RandomErasing has value=1 after Normalize, which is another colour in each channel",
        "GaussianBlur: kernel_size must be the same in both directions",
        "RandomSolarize must stand before Normalize",
        "Normalize stands twice",
        "Mine is not among",
    ):
        assert part in message, part


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([v2.RandomGrayscale(), v2.RandomResizedCrop(8)], "RandomResizedCrop must stand before RandomGrayscale"),
        ([v2.RandomResizedCrop(8), v2.Resize((8, 8))], "Resize must be the only crop or resize"),
        ([v2.Normalize(MEAN, STD)], "Normalize stands before the conversion to float"),
        ([v2.GaussianNoise()], "GaussianNoise stands before the conversion to float"),
        ([v2.ToImage()], "there is no step that changes an image"),
        ([v2.RandomRotation((0, 9)), v2.RandomHorizontalFlip()], "must stand before RandomRotation"),
    ],
)
def test_an_order_that_one_pass_cannot_keep_is_named(steps, message):
    with pytest.raises(ValueError, match=message):
        from_torchvision(v2.Compose(steps))
