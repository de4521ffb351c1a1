"""Presets have lightly's signatures, and the very parameters of its transforms."""

from __future__ import annotations

import inspect

import pytest
import torch

from fastssl import augment

lightly = pytest.importorskip("lightly.transforms")

SAME_NAMES = [
    "BYOLTransform",
    "BYOLView1Transform",
    "BYOLView2Transform",
    "DINOTransform",
    "DINOViewTransform",
    "MAETransform",
    "MoCoV1Transform",
    "MoCoV2Transform",
    "SimCLRTransform",
    "SimCLRViewTransform",
    "SimSiamTransform",
    "SwaVTransform",
    "VICRegTransform",
]


def theirs(name):
    from lightly.transforms import byol_transform, dino_transform, simclr_transform

    for module in (lightly, byol_transform, dino_transform, simclr_transform):
        if hasattr(module, name):
            return getattr(module, name)
    raise AssertionError(f"lightly has no {name}")


def read_lightly(step) -> list[tuple]:
    """What a transform of lightly does: (name, numbers), in order, without steps that never happen."""
    name = type(step).__name__
    if name in ("SwaVViewTransform", "RandomRotateDegrees") or name.endswith("ViewTransform"):
        return read_lightly(step.transform)
    if name.startswith("BYOLView") or name == "MAETransform":
        return read_lightly(step.transform)
    if name == "Compose":
        return [found for part in step.transforms for found in read_lightly(part)]
    if name in ("ToTensor", "ToImage", "ToDtype"):
        return []
    if name == "RandomResizedCrop":
        size = (step.size,) * 2 if isinstance(step.size, int) else tuple(step.size)
        mode = getattr(step.interpolation, "value", step.interpolation)
        return [("crop", size, tuple(step.scale), tuple(step.ratio), mode)]
    if name == "RandomApply":
        (inner,) = step.transforms
        return [(*read_lightly(inner)[0][:-1], step.p)] if step.p else []
    if name == "ColorJitter":
        ranges = (step.brightness, step.contrast, step.saturation, step.hue)
        return [("jitter", *map(tuple, ranges), 1.0)] if step.brightness is not None else []
    if name == "RandomRotation":
        return [("rotate", tuple(step.degrees), 1.0)]
    if name == "RandomRotate":
        return [("rotate", (step.angle, step.angle), step.prob)] if step.prob else []
    if name == "GaussianBlur":
        return [("blur", tuple(step.sigmas), step.prob)] if step.prob else []
    if name == "RandomSolarization":
        return [("solarize", step.threshold / 255, step.prob)] if step.prob else []
    if name == "Normalize":
        return [("normalize", tuple(step.mean), tuple(step.std))]
    kinds = {"RandomHorizontalFlip": "horizontal", "RandomVerticalFlip": "vertical", "RandomGrayscale": "gray"}
    return [(kinds[name], step.p)] if step.p else []


def read_ours(view) -> list[tuple]:
    found = []
    for step in view.transforms:
        name = type(step).__name__
        if name == "RandomResizedCrop":
            found.append(("crop", step.size, step.scale, step.ratio, step.interpolation))
        elif name == "ColorJitter":
            found.append(("jitter", step.brightness, step.contrast, step.saturation, step.hue, step.p))
        elif name == "RandomRotation":
            found.append(("rotate", step.degrees, step.p))
        elif name == "GaussianBlur":
            found.append(("blur", step.sigma, step.p))
        elif name == "RandomSolarize":
            found.append(("solarize", step.threshold, step.p))
        elif name == "Normalize":
            found.append(("normalize", step.mean, step.std))
        else:
            kinds = {"RandomHorizontalFlip": "horizontal", "RandomVerticalFlip": "vertical", "RandomGrayscale": "gray"}
            found.append((kinds[name], step.p))
    return found


def assert_same(ours, other) -> None:
    views = other.transforms if hasattr(other, "transforms") else [other]
    mine = ours.transforms if isinstance(ours, augment.MultiViewTransform) else [ours]
    assert len(mine) == len(views)
    for a, b in zip(mine, views, strict=True):
        steps = read_lightly(b)
        assert len(steps) > 1
        assert [step[0] for step in read_ours(a)] == [step[0] for step in steps]
        for step, expected in zip(read_ours(a), steps, strict=True):
            for number, other_number in zip(step[1:], expected[1:], strict=True):
                assert number == pytest.approx(other_number), (step, expected)


@pytest.mark.parametrize("name", SAME_NAMES)
def test_the_signature_is_lightlys(name):
    ours = inspect.signature(getattr(augment, name)).parameters
    mine = {k: p.default for k, p in ours.items() if p.kind != p.KEYWORD_ONLY}
    assert mine == {k: p.default for k, p in inspect.signature(theirs(name)).parameters.items()}
    assert list(mine) == [*inspect.signature(theirs(name)).parameters]


@pytest.mark.parametrize("name", SAME_NAMES)
def test_the_defaults_are_lightlys(name):
    assert_same(getattr(augment, name)(), theirs(name)())


CHANGED = dict(
    cj_prob=0.7,
    cj_bright=0.3,
    cj_contrast=0.5,
    cj_sat=0.6,
    cj_hue=0.15,
    random_gray_scale=0.35,
    sigmas=(0.3, 1.5),
    vf_prob=0.4,
    hf_prob=0.1,
    rr_prob=0.25,
    rr_degrees=(-15.0, 25.0),
    normalize={"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
)
TWO_VIEWS = CHANGED | dict(input_size=48, cj_strength=0.9, min_scale=0.3, gaussian_blur=0.6)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, TWO_VIEWS) for name in ("SimCLRTransform", "MoCoV1Transform", "MoCoV2Transform", "SimSiamTransform")),
        ("BYOLView1Transform", TWO_VIEWS | dict(solarization_prob=0.45)),
        ("BYOLView2Transform", TWO_VIEWS | dict(solarization_prob=0.45)),
        ("VICRegTransform", TWO_VIEWS | dict(solarize_prob=0.45)),
        ("SimCLRTransform", dict(rr_prob=0.3, normalize=None)),  # by 90 degrees
        ("MAETransform", dict(input_size=(32, 40), min_scale=0.4, normalize=None)),
        (
            "SwaVTransform",
            CHANGED | dict(crop_sizes=(40, 20, 10), crop_counts=(1, 2, 3), crop_min_scales=(0.2, 0.1, 0.05),
                           crop_max_scales=(1.0, 0.4, 0.2), cj_strength=0.9, gaussian_blur=0.6),
        ),
        # lightly's second global view keeps the strength 0.5, whatever is given.
        (
            "DINOTransform",
            CHANGED | dict(global_crop_size=48, global_crop_scale=(0.5, 0.9), local_crop_size=20, n_local_views=3,
                           local_crop_scale=(0.1, 0.3), gaussian_blur=(0.9, 0.2, 0.6), solarization_prob=0.45),
        ),
    ],
)  # fmt: skip
def test_every_argument_does_what_lightlys_does(name, change):
    assert_same(getattr(augment, name)(**change), theirs(name)(**change))


def test_in_dino_the_strength_of_the_colours_is_that_of_all_views():
    for view in augment.DINOTransform(cj_strength=1.0).transforms:
        assert next(step for step in view.transforms if isinstance(step, augment.ColorJitter)).hue == (-0.2, 0.2)


def kernel_sizes(transform):
    return [
        next(step.kernel_size for step in view.transforms if isinstance(step, augment.GaussianBlur))
        for view in transform.transforms
    ]


def test_the_blur_goes_over_a_tenth_of_the_view_or_cuts_nothing_off():
    assert kernel_sizes(augment.SimCLRTransform()) == kernel_sizes(augment.BYOLTransform()) == [23, 23]
    assert kernel_sizes(augment.SimCLRTransform(96)) == [9, 9]
    assert kernel_sizes(augment.SimCLRTransform(24)) == [3, 3]
    assert kernel_sizes(augment.MoCoTransform()) == [21, 21]  # five times sigma 2 to both sides
    assert set(kernel_sizes(augment.SwAVTransform())) == set(kernel_sizes(augment.DINOTransform())) == {21}
    assert kernel_sizes(augment.VICRegTransform(8)) == [15, 15]


def test_the_papers_bicubic_crops_are_one_argument_away():
    for make in (augment.SimCLRTransform, augment.VICRegTransform, augment.MoCoTransform, augment.SwAVTransform):
        assert {view.transforms[0].interpolation for view in make(interpolation="bicubic").transforms} == {"bicubic"}
    first = augment.BYOLView1Transform(interpolation="bicubic")
    assert augment.BYOLTransform(first).transforms[0].transforms[0].interpolation == "bicubic"


@pytest.mark.parametrize("name", [n for n in SAME_NAMES if "View" not in n])
def test_the_views_have_the_promised_sizes(name):
    transform = getattr(augment, name)()
    images = torch.randint(0, 256, (2, 3, 60, 50), dtype=torch.uint8)
    views = transform(images, seed=0)
    sizes = {"DINOTransform": [224] * 2 + [96] * 6, "SwaVTransform": [224] * 2 + [96] * 6, "MAETransform": [224]}
    assert [tuple(view.shape) for view in views] == [(2, 3, s, s) for s in sizes.get(name, [224] * 2)]
    assert all(view.isfinite().all() and view.abs().max() < 3 for view in views)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: augment.SimCLRTransform(cj_prob=2), "ColorJitter: p must be from 0 to 1, got 2"),
        (lambda: augment.SimCLRTransform(cj_strength=3), "ColorJitter: hue must be from 0 to 0.5"),
        (lambda: augment.SimCLRTransform(0), "RandomResizedCrop: size must be at least 1, got 0"),
        (
            lambda: augment.SwAVTransform(crop_sizes=(32,)),
            "SwAVTransform: crop_sizes, .* the same length, got 1, 2, 2, 2",
        ),
        (lambda: augment.MAETransform(min_scale=0), "RandomResizedCrop: scale must be"),
        (lambda: augment.DINOTransform(gaussian_blur=(1, 1, 2)), "GaussianBlur: p must be from 0 to 1, got 2"),
    ],
)
def test_a_bad_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
