"""Random views against torchvision and, in every backend, against the definition in float64."""

from __future__ import annotations

import pytest
import torch
from augment_cases import (
    EVERYTHING,
    MEAN,
    ROUNDING,
    SIMCLR,
    STD,
    STEPS,
    assert_same_view,
    entry,
    options,
    pictures,
    program,
    record,
    truth,
)
from harness import BACKENDS, poisoned_outputs, serving

from fastssl.functional import augment_views, view_parameters
from fastssl.ops.augment import reference
from fastssl.ops.augment.record import HEADER, STEP, Code, Geometry, Kind, record_length, steps_of
from fastssl.ops.philox import philox4x32

IN_RANGE = dict(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
backends = pytest.mark.parametrize(("backend", "device"), BACKENDS)


def serve(backend, device):
    return serving(backend, device, torch.uint8, "augment_views")


# --- The generator ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers of the Random123 library
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, expected):
    words = philox4x32([torch.tensor([c]) for c in counter], key)
    assert tuple(int(word) for word in words) == expected


# --- The definition is torchvision's ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tv():
    pytest.importorskip("torchvision")
    from torchvision.transforms.v2 import functional

    return functional


def one(steps, image, size=None, **geometry) -> torch.Tensor:
    """One view [C, h, w] of one image in float64, in [0, 1]."""
    height, width = image.shape[-2:]
    geometry.setdefault("crop", (0, 0, height, width))
    mean = torch.zeros(len(image), 1, 1, dtype=torch.float64)
    bicubic = geometry.pop("bicubic", False)
    numbers = record(*steps, **geometry).double().tolist()
    return reference.view_of(image, numbers, size or (height, width), bicubic, mean)


def in_bytes(ours, theirs) -> int:
    """How many levels lie between a view and torchvision's, which cuts every intermediate number off to a byte."""
    return int(((ours * 255 + 1e-6).floor() - theirs.double()).abs().max())


CHANGES = {
    "brightness": ([(Code.BRIGHTNESS, 0.7)], lambda tv, x: tv.adjust_brightness(x, 0.7)),
    "bright": ([(Code.BRIGHTNESS, 1.6)], lambda tv, x: tv.adjust_brightness(x, 1.6)),
    "contrast": ([(Code.CONTRAST, 1.5)], lambda tv, x: tv.adjust_contrast(x, 1.5)),
    "saturation": ([(Code.SATURATION, 0.4)], lambda tv, x: tv.adjust_saturation(x, 0.4)),
    "more saturation": ([(Code.SATURATION, 1.7)], lambda tv, x: tv.adjust_saturation(x, 1.7)),
    "hue": ([(Code.HUE, 0.15)], lambda tv, x: tv.adjust_hue(x, 0.15)),
    "hue back": ([(Code.HUE, -0.5)], lambda tv, x: tv.adjust_hue(x, -0.5)),
    "gray": ([(Code.GRAYSCALE,)], lambda tv, x: tv.rgb_to_grayscale(x, 3)),
    "blur": ([(Code.BLUR, 1.25, 7)], lambda tv, x: tv.gaussian_blur(x, [7, 7], [1.25, 1.25])),
    "little blur": ([(Code.BLUR, 0.125, 5)], lambda tv, x: tv.gaussian_blur(x, [5, 5], [0.125, 0.125])),
    "wide blur": ([(Code.BLUR, 4.0, 23)], lambda tv, x: tv.gaussian_blur(x, [23, 23], [4.0, 4.0])),
    "flips": ([], lambda tv, x: tv.vertical_flip(tv.horizontal_flip(x))),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_step_is_torchvisions_on_floats_and_within_one_level_of_its_bytes(tv, name):
    steps, theirs = CHANGES[name]
    flips = (1, 1) if name == "flips" else (0, 0)
    for image in pictures(4, 3, 40, 33):
        ours = one(steps, image, flips=flips)
        torch.testing.assert_close(ours, theirs(tv, image.double() / 255).clamp(0, 1), atol=1e-6, rtol=0)
        torch.testing.assert_close(ours.float(), theirs(tv, image.float() / 255), atol=ROUNDING, rtol=0)
        assert in_bytes(ours, theirs(tv, image)) <= 1


def test_solarize_is_torchvisions(tv):
    image = pictures(1, 3, 20, 30)[0]
    ours = one([(Code.SOLARIZE, 0.3)], image)
    torch.testing.assert_close(ours, tv.solarize(image.double() / 255, 0.3), atol=1e-12, rtol=0)
    assert torch.equal((one([(Code.SOLARIZE, 76.5 / 255)], image) * 255).round().byte(), tv.solarize(image, 77))


CROPS = [(0, 0, 40, 33), (3, 5, 9, 28), (39, 32, 1, 1), (0, 7, 40, 1), (10, 2, 20, 24)]


@pytest.mark.parametrize("bicubic", [False, True], ids=["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(16, 16), (64, 50), (20, 24), (1, 1), (5, 90)])
@pytest.mark.parametrize("crop", CROPS)
def test_crop_and_resize_is_torchvisions(tv, crop, size, bicubic):
    from torchvision.transforms import InterpolationMode

    mode = InterpolationMode.BICUBIC if bicubic else InterpolationMode.BILINEAR
    for image in pictures(3, 3, 40, 33):
        ours = one([], image, size, crop=crop, bicubic=bicubic)
        theirs = tv.resized_crop(image.double() / 255, *crop, list(size), mode, antialias=True).clamp(0, 1)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    if size != (1, 1):  # which PyTorch's bytes cannot do for three channels
        smooth = pictures(1, 3, 40, 33)[0]
        ours = one([], smooth, size, crop=crop, bicubic=bicubic)
        # In bytes bicubic interpolation is rounded, and clamped, after each axis, and its weights sum up to 1.5.
        theirs = tv.resized_crop(smooth, *crop, list(size), mode, antialias=True)
        assert ((ours * 255).round() - theirs).abs().max() <= (2 if bicubic else 1)


@pytest.mark.parametrize("bilinear", [False, True], ids=["nearest", "bilinear"])
@pytest.mark.parametrize("size", [(24, 24), (17, 31)])
@pytest.mark.parametrize("angle", [0.0, 12.5, 45.0, 90.0, -100.0, 180.0, 359.0])
def test_rotation_is_torchvisions(tv, angle, size, bilinear):
    from torchvision.transforms import InterpolationMode

    mode = InterpolationMode.BILINEAR if bilinear else InterpolationMode.NEAREST
    image = pictures(1, 3, *size)[0]
    ours = one([(Code.ROTATE, angle, bilinear, 0.25)], image)
    theirs = tv.rotate(image.double() / 255, angle, mode, fill=[0.25])
    different = (ours - theirs).abs() > 1e-5  # torchvision's grid is made in float32: pixels between two may be either
    assert different.any(0).double().mean() <= (0.0 if bilinear else 0.02)


def test_a_quarter_turn_is_counter_clockwise(tv):
    image = pictures(1, 3, 12, 12)[0]
    for turns in range(4):
        expected = tv.rotate(image.double() / 255, 90.0 * turns)
        assert torch.equal(one([], image, turns=turns), expected)


def test_sobel_is_kornias():
    kornia = pytest.importorskip("kornia")
    image = pictures(1, 3, 20, 31)[0]
    expected = kornia.filters.sobel(image[None].double() / 255)[0]
    torch.testing.assert_close(one([(Code.SOBEL,)], image), expected, atol=1e-12, rtol=0)


def test_noise_is_normal_and_its_own_for_every_pixel_and_channel():
    image = torch.full((6, 200, 200), 128, dtype=torch.uint8)
    x = (one([(Code.NOISE, 0.1, 0.05, 5, 6, 0)], image) - 128 / 255 - 0.05) / 0.1
    assert abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01
    assert abs((x**3).mean()) < 0.03 and abs((x**4).mean() - 3) < 0.06
    assert torch.corrcoef(x.flatten(1)).fill_diagonal_(0).abs().max() < 0.02
    assert abs((x[:, :, 1:] * x[:, :, :-1]).mean()) < 0.01
    other = one([(Code.NOISE, 0.1, 0.05, 5, 7, 0)], image)
    assert abs(torch.corrcoef(torch.stack([x.flatten(), other.flatten()]))[0, 1]) < 0.01


# --- Every backend against the definition in float64 -----------------------------------------------------------------


def views_of(images, parameters, sizes, device, channels=3, bicubic=False, dtype=torch.float32, **normal):
    normal = {key: normal.get(key, default) for key, default in (("mean", MEAN), ("std", STD))}
    full = options(sizes, channels, bicubic, **normal)
    moved = images.to(device) if isinstance(images, torch.Tensor) else [image.to(device) for image in images]
    return augment_views(
        moved,
        [each.to(device) for each in parameters],
        sizes=sizes,
        bicubic=bicubic,
        mean=full["mean"],
        std=full["std"],
        dtype=dtype,
    )


def check(images, parameters, sizes, device, channels=3, bicubic=False, dtype=torch.float32, what=""):
    """The backend's views, outputs poisoned, equal the definition's; returns them."""
    with poisoned_outputs():
        views = views_of(images, parameters, sizes, device, channels, bicubic, dtype)
    full = options(sizes, channels, bicubic)
    expected = truth(images, parameters, **full)
    levels = 0 if device == "cpu" else 1
    for number, (view, true) in enumerate(zip(views, expected, strict=True)):
        assert view.dtype == dtype and view.is_contiguous()
        assert_same_view(view, true, full["std"], f"{what} view {number}", levels)
    return views


@backends
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_each_step_and_sequence(backend, device, steps, channels):
    images = pictures(4, channels, 30, 41)
    records = torch.stack(
        [record(*steps, crop=crop) for crop in ((0, 0, 30, 41), (2, 3, 20, 9), (0, 0, 24, 37), (5, 5, 3, 30))]
    )
    with serve(backend, device):
        (view,) = check(images, [records], [(24, 37)], device, channels)
    if steps[0][0] in (Code.BRIGHTNESS, Code.BLUR, Code.SOBEL, Code.CUTOUT, Code.NOISE) and steps[0][1:2] != (0.1,):
        plain = records.clone()
        plain[:, HEADER:] = 0
        (without,) = truth(images, [plain], **options([(24, 37)], channels))
        assert (view.cpu() - without).abs().max() > 0.01, "a step that does nothing would not have been noticed"


@backends
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9, 2.0])
def test_solarize_up_to_pixels_within_rounding_of_the_threshold(backend, device, threshold):
    images = pictures(3, 3, 40, 40)
    with serve(backend, device):
        made = views_of(
            images,
            [torch.stack([record((Code.SOLARIZE, threshold), crop=(1, 2, 30, 33))] * 3)],
            [(27, 25)],
            device,
            **IN_RANGE,
        )[0]
    near = [
        truth(
            images,
            [torch.stack([record((Code.SOLARIZE, threshold + shift), crop=(1, 2, 30, 33))] * 3)],
            **options([(27, 25)], **IN_RANGE),
        )[0]
        for shift in (-ROUNDING, ROUNDING)
    ]
    error = torch.minimum(*((made.double().cpu() - each).abs() for each in near))
    assert error.max() <= ROUNDING + (0 if device == "cpu" else 1 / 255)


@backends
def test_rotation_to_the_nearest_pixel(backend, device):
    images = pictures(4, 3, 33, 33)
    angles = (0.0, 31.0, 90.0, -71.3)
    records = torch.stack([record((Code.ROTATE, angle, 0, 0.4), crop=(0, 0, 33, 33)) for angle in angles])
    with serve(backend, device):
        made = views_of(images, [records], [(33, 33)], device, **IN_RANGE)[0].cpu()
    expected = truth(images, [records], **options([(33, 33)], **IN_RANGE))[0]
    different = ((made - expected).abs() > 1e-2).any(1)
    assert not different[0].any() and not different[2].any()
    assert different.float().mean() < 0.01  # between two pixels it may be either


@backends
@pytest.mark.parametrize("bicubic", [False, True], ids=["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(1, 1), (7, 1), (16, 16), (17, 40), (96, 33), (224, 224)])
def test_geometry(backend, device, size, channels, bicubic):
    images = pictures(8, channels, 61, 50)
    crops = [
        (0, 0, 61, 50),
        (60, 49, 1, 1),
        (0, 3, 61, 1),
        (17, 0, 1, 50),
        (5, 6, 16, 16),
        (7, 1, 40, 44),
        (0, 0, 20, 50),
        (30, 30, 2, 3),
    ]
    flips = [(0, 0), (1, 0), (0, 1), (1, 1), (1, 0), (0, 0), (1, 1), (0, 1)]
    turns = [0, 1, 2, 3, 1, 2, 0, 3]  # on a view that is not square odd turns count as none
    records = torch.stack([record(crop=c, flips=f, turns=t) for c, f, t in zip(crops, flips, turns, strict=True)])
    with serve(backend, device):
        check(images, [records], [size], device, channels, bicubic)


@backends
@pytest.mark.parametrize("bicubic", [False, True], ids=["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (700, 40), (33, 900), (640, 653), (257, 320)])
@pytest.mark.parametrize("channels_last", [False, True], ids=["CHW", "HWC"])
def test_images_of_any_size_and_layout(backend, device, height, width, channels_last, bicubic):
    images = pictures(2, 3, height, width)
    if channels_last:
        images = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    crops = [(0, 0, height, width), (height // 3, width // 5, max(1, height // 2), max(1, width // 2))]
    records = torch.stack([record((Code.CONTRAST, 1.3), (Code.HUE, 0.1), crop=crop, flips=(1, 0)) for crop in crops])
    with serve(backend, device):
        check(images, [records, records], [(32, 32), (13, 45)], device, bicubic=bicubic)


@backends
def test_photographs_of_several_megapixels(backend, device):
    images = pictures(2, 3, 2003, 1507).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    records = torch.stack([record(crop=(0, 0, 2003, 1507)), record(crop=(501, 40, 1500, 1403), flips=(1, 0))])
    with serve(backend, device):
        check(images, [records], [(96, 96)], device)


@backends
@pytest.mark.parametrize("chosen", [SIMCLR, EVERYTHING], ids=["SimCLR", "everything"])
@pytest.mark.parametrize("size", [(32, 32), (51, 51)])
def test_programs(backend, device, chosen, size):
    images = pictures(48, 3, 64, 49)
    with serve(backend, device):
        index = torch.arange(48, device=device)
        records = view_parameters(index, size=(64, 49), out_size=size, program=chosen, seed=3)
        check(images, [records.cpu()], [size], device)
    codes = set(records[:, HEADER::STEP].flatten().int().tolist())
    assert len(codes) >= 7 and (records[:, HEADER::STEP] != 0).any(0).all(), "every slot is used by some image"


@backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(32, 32), (7, 19)])
def test_low_precision_is_the_rounded_float32(backend, device, dtype, size):
    images = pictures(6, 3, 40, 40)
    records = reference.view_parameters(
        torch.arange(6), None, height=40, width=40, out_height=32, out_width=32, seed=0, epoch=0, view=0, program=SIMCLR
    )
    with serve(backend, device):
        (full,) = views_of(images, [records], [size], device)
        (low,) = check(images, [records], [size], device, dtype=dtype)
    assert torch.equal(low, full.to(dtype))


@backends
def test_ragged_batches_equal_their_images_alone_and_several_views_each_view_alone(backend, device):
    images = [pictures(1, 3, h, w, seed=h)[0] for h, w in ((30, 50), (1, 1), (64, 64), (9, 200), (41, 40))]
    images[2] = images[2].permute(1, 2, 0).contiguous().permute(2, 0, 1)
    sizes = [(24, 24), (40, 33), (24, 24)]
    heights = torch.tensor([list(image.shape[-2:]) for image in images])
    with serve(backend, device):
        records = [
            view_parameters(
                torch.arange(5, device=device), size=heights.to(device), out_size=size, program=SIMCLR, seed=1, view=v
            ).cpu()
            for v, size in enumerate(sizes)
        ]
        views = check(images, records, sizes, device)
        for v, size in enumerate(sizes):
            assert torch.equal(views_of(images, records[v : v + 1], [size], device)[0], views[v])
        for b, image in enumerate(images):
            alone = views_of(image[None], [each[b : b + 1] for each in records], sizes, device)
            assert all(torch.equal(a[0], view[b]) for a, view in zip(alone, views, strict=True))


@backends
def test_nothing_outside_the_crop_and_the_image_is_looked_at(backend, device):
    images = pictures(2, 3, 40, 40)
    records = torch.stack(
        [record((Code.BLUR, 1, 5), crop=(8, 9, 20, 13)), record((Code.NOTHING,), crop=(3, 11, 25, 17))]
    )
    with serve(backend, device):
        made = []
        for band in (0, 255):
            around = torch.full((2, 3, 50, 60), band, dtype=torch.uint8, device=device)
            around[..., 5:45, 7:47] = images.to(device)
            inner = around[..., 5:45, 7:47]
            inner[0, :, :8], inner[0, :, :, :9] = band, band
            inner[1, :, 28:], inner[1, :, :, 28:] = band, band
            made.append(views_of(inner, [records], [(24, 24)], device)[0])
    assert torch.equal(*made)


@backends
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, -5.0, 0.5, 16777216.0])
def test_records_that_make_no_sense_change_nothing_outside_their_view(backend, device, bad):
    images, size = pictures(6, 3, 20, 30), (16, 16)
    good = reference.view_parameters(
        torch.arange(6),
        None,
        height=20,
        width=30,
        out_height=16,
        out_width=16,
        seed=0,
        epoch=0,
        view=0,
        program=EVERYTHING,
    )
    wrong = good.clone()
    wrong[1], wrong[3, :HEADER], wrong[4, HEADER:] = bad, bad, bad
    wrong[4, HEADER::STEP] = (
        torch.arange(1, 12)[: steps_of(EVERYTHING)] if steps_of(EVERYTHING) <= 11 else good[4, HEADER::STEP]
    )
    with serve(backend, device):
        (expected,), (made,) = (views_of(images, [r], [size], device) for r in (good, wrong))
    untouched = [0, 2, 5]
    assert torch.equal(made[untouched], expected[untouched])
    assert made.shape == expected.shape


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_the_same_bits_with_any_number_of_threads(threads):
    images = pictures(9, 3, 50, 50)
    before = torch.get_num_threads()
    with serve("cpp", "cpu"):
        records = view_parameters(torch.arange(9), size=(50, 50), out_size=(40, 40), program=EVERYTHING, seed=2)
        expected = views_of(images, [records], [(40, 40)], "cpu")[0]
        try:
            torch.set_num_threads(threads)
            again = views_of(images, [records], [(40, 40)], "cpu")[0]
        finally:
            torch.set_num_threads(before)
    assert torch.equal(again, expected)


# --- Drawing ---------------------------------------------------------------------------------------------------------

DISTRIBUTIONS = {
    "SimCLR": SIMCLR,
    "everything": EVERYTHING,
    "whole": program((Kind.WHOLE, 1, ())),
    "centre": program((Kind.CENTER, 1, (0.875,)), (Kind.SOLARIZE, 0.2, (0.5,))),
    "crop": program((Kind.CROP, 1, ()), (Kind.HORIZONTAL_FLIP, 0.5, ())),
    "narrow": program((Kind.RESIZED_CROP, 1, (0.9, 1.0, 3.0, 4.0))),
    "large cutout": program((Kind.WHOLE, 1, ()), (Kind.CUTOUT, 1, (0.5, 1.0, 0.1, 10.0, 0.5))),
    "neutral": program((Kind.WHOLE, 1, ()), (Kind.JITTER, 1, (1, 1, 0.5, 1.5, 1, 1, 0, 0))),
    "one group": entry(Kind.WHOLE, group=0)
    + entry(Kind.GRAYSCALE, 0.5, group=1)
    + entry(Kind.BLUR, 0.5, 0.1, 2, 3, group=1)
    + entry(Kind.SOBEL, 0.25, group=1),
}


@backends
@pytest.mark.parametrize("chosen", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_every_backend_draws_the_same_records(backend, device, chosen):
    index = torch.randint(0, 2**31, (3000,), generator=torch.Generator().manual_seed(0))
    sizes = torch.randint(1, 500, (3000, 2), generator=torch.Generator().manual_seed(1))
    key = dict(seed=0xFEDCBA9876543210, epoch=7, view=3)
    for size in (sizes, (37, 300)):
        numbers = dict(height=37, width=300) if size is not sizes else dict(height=1, width=1)
        expected = reference.view_parameters(
            index, sizes if size is sizes else None, **numbers, out_height=24, out_width=31, program=chosen, **key
        )
        with serve(backend, device), poisoned_outputs():
            made = view_parameters(
                index.to(device),
                size=sizes.to(device) if size is sizes else size,
                out_size=(24, 31),
                program=chosen,
                **key,
            )
        assert torch.equal(made.cpu(), expected)
    assert made.shape == (3000, record_length(steps_of(chosen)))


@backends
def test_records_depend_on_every_part_of_the_key_and_on_nothing_else(backend, device):
    index = torch.tensor([5, 0, 17, 3, 2**32 - 1, 9], device=device)
    options = dict(size=(64, 64), out_size=(32, 32), program=SIMCLR)
    key = dict(seed=3, epoch=1, view=0)
    with serve(backend, device):
        records = view_parameters(index, **options, **key)
        state = torch.get_rng_state()
        assert torch.equal(view_parameters(index.flip(0)[1:3], **options, **key), records.flip(0)[1:3])
        assert torch.equal(torch.get_rng_state(), state)
        for other in (dict(seed=4), dict(seed=3 + 2**32), dict(seed=3 + 2**63), dict(epoch=2), dict(view=1)):
            assert (view_parameters(index, **options, **{**key, **other})[:, :4] != records[:, :4]).any(1).all()
        assert torch.equal(view_parameters(index + 2**32, **options, **key), records)
    assert len(records[:, :4].unique(dim=0)) == 6


def test_an_entry_draws_the_same_whatever_stands_before_it():
    index = torch.arange(50)
    short = program((Kind.WHOLE, 1, ()), (Kind.GRAYSCALE, 0.0, ()), (Kind.BLUR, 0.5, (0.1, 2, 3)))
    other = program((Kind.RESIZED_CROP, 1, (0.1, 1, 1, 1)), (Kind.SOLARIZE, 1.0, (0.5,)), (Kind.BLUR, 0.5, (0.1, 2, 3)))
    a, b = (view_parameters(index, size=(9, 9), out_size=(9, 9), program=p, seed=0) for p in (short, other))
    assert torch.equal(a[:, -STEP:], b[:, -STEP:]) and (a[:, -STEP] != 0).any() and (a[:, -STEP] == 0).any()


def test_the_distribution_is_what_the_program_says():
    draws = 20000
    p = view_parameters(torch.arange(draws), size=(64, 64), out_size=(32, 32), program=SIMCLR, seed=0)
    top, left, height, width = p[:, :4].unbind(1)
    area = height * width / 64**2
    assert area.min() > 0.07 and area.max() <= 1 and 0.47 < area.mean() < 0.54
    ratio = (width / height).log()
    assert abs(ratio.mean()) < 0.01 and ratio.abs().max() < 0.35
    assert (top + height).max() <= 64 and (left + width).max() <= 64 and p[:, :2].min() >= 0
    small = height <= 32  # where in the free room: uniform
    place = top[small] / (64 - height[small])
    assert abs(place.mean() - 0.5) < 0.01 and abs(place.var() - 1 / 12) < 0.01
    steps = p[:, HEADER:].view(draws, -1, STEP)
    for share, expected in (
        (p[:, Geometry.HORIZONTAL_FLIP], 0.5),
        (steps[:, 0, 0] != 0, 0.8),
        (steps[:, 4, 0] == Code.GRAYSCALE, 0.2),
        (steps[:, 5, 0] == Code.BLUR, 0.5),
    ):
        assert abs(share.float().mean() - expected) < 0.01
    jittered = steps[steps[:, 0, 0] != 0][:, :4]
    orders, counts = jittered[:, :, 0].unique(dim=0, return_counts=True)
    assert len(orders) == 24
    assert ((counts - counts.float().mean()) ** 2 / counts.float().mean()).sum() < 49.7  # chi-square, 23, 0.1 %
    for code, (low, high) in {1: (0.2, 1.8), 2: (0.2, 1.8), 3: (0.2, 1.8), 4: (-0.2, 0.2)}.items():
        factor = jittered[..., 1][jittered[..., 0] == code]
        assert factor.min() >= low - 1e-6 and factor.max() <= high + 1e-6
        assert abs(factor.mean() - (low + high) / 2) < 0.02 * (high - low)
        assert abs(factor.var() - (high - low) ** 2 / 12) < 0.02 * (high - low) ** 2


# --- As an operator --------------------------------------------------------------------------------------------------


@backends
def test_the_operators_pass_opcheck(backend, device):
    with serve(backend, device):
        index, images = torch.arange(4, device=device), pictures(4, 3, 20, 20).to(device)
        key = dict(height=20, width=20, out_height=8, out_width=8, seed=1, epoch=0, view=0, program=SIMCLR)
        sizes = torch.tensor([[20, 20]] * 4, device=device)
        for given in (None, sizes):
            torch.library.opcheck(
                torch.ops.fastssl.view_parameters.default, (index, given), {**key, "backend": backend}
            )
        records = torch.ops.fastssl.view_parameters(index, None, **key, backend=backend)
        for batch in ([images], list(images)):
            torch.library.opcheck(
                torch.ops.fastssl.augment_views.default,
                (batch, [records, records]),
                {**options([(8, 8), (5, 9)]), "dtype": torch.float32, "backend": backend},
            )


@backends
def test_compiled_as_one_graph(backend, device):
    def step(images, index):
        records = view_parameters(index, size=(20, 20), out_size=(8, 8), program=SIMCLR, seed=1)
        (view,) = augment_views(images, [records], sizes=[(8, 8)], mean=MEAN, std=STD)
        return view * 2

    with serve(backend, device):
        images, index = pictures(4, 3, 20, 20).to(device), torch.arange(4, device=device)
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(images, index), step(images, index))


def test_views_carry_no_gradient():
    images, records = pictures(2, 3, 8, 8), torch.stack([record(crop=(0, 0, 8, 8))] * 2)
    view = augment_views(images, [records.requires_grad_()], sizes=[(8, 8)], mean=MEAN, std=STD)[0]
    with pytest.raises(RuntimeError, match="views carry no gradient"):
        view.sum().backward()
    with pytest.raises(TypeError, match=r"images must be uint8, got torch\.float32"):
        floats = torch.rand(2, 3, 8, 8, requires_grad=True)
        augment_views(floats, [records.detach()], sizes=[(8, 8)], mean=MEAN, std=STD)


def _views(**changed):
    arguments = dict(
        images=torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        parameters=[torch.zeros(2, 14)],
        sizes=[(4, 4)],
        mean=MEAN,
        std=STD,
    )
    return augment_views(**{**arguments, **changed})


def _draw(**changed):
    arguments = dict(index=torch.arange(2), size=(8, 8), out_size=(4, 4), program=SIMCLR, seed=0)
    return view_parameters(**{**arguments, **changed})


BYTES = torch.zeros(3, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: _views(images=BYTES), ValueError, r"or a list of \[C, H, W\], got \(3, 8, 8\)"),
        (lambda: _views(images=[BYTES[None]]), ValueError, r"list of images must be .*got \(1, 3, 8, 8\)"),
        (lambda: _views(images=[1, 2]), TypeError, "images must be tensors, got int"),
        (lambda: _views(images=[]), ValueError, "images must not be empty"),
        (lambda: _views(images=torch.zeros(0, 3, 8, 8, dtype=torch.uint8)), ValueError, r"got \(0, 3, 8, 8\)"),
        (lambda: _views(images=[BYTES, BYTES[:1]]), ValueError, "same channels and device, got 1 on cpu and 3 on cpu"),
        (lambda: _views(images=[BYTES] * 3), ValueError, r"float32 \[3, 8 \+ 6 steps\].*got .*\(2, 14\)"),
        (lambda: _views(parameters=[]), ValueError, "parameters must hold a tensor for each view, got none"),
        (lambda: _views(parameters=[torch.zeros(2, 14).double()]), ValueError, "got torch.float64"),
        (lambda: _views(parameters=[torch.zeros(2, 15)]), ValueError, "numbers per image, got 15"),
        (lambda: _views(parameters=[torch.zeros(2, 2)]), ValueError, "numbers per image, got 2"),
        (lambda: _views(sizes=[(4, 4), (4, 4)]), ValueError, "heights must have an entry for each of 1 views, got 2"),
        (lambda: _views(sizes=[(0, 4)]), ValueError, r"heights must be in \[1, 32768\), got \[0\]"),
        (lambda: _views(bicubic=[True, False]), ValueError, "bicubic must have an entry for each of 1 views, got 2"),
        (lambda: _views(mean=(0.5,)), ValueError, "mean must have 3 numbers, one per channel, got 1"),
        (lambda: _views(std=(0.5, 0.5, 0.0)), ValueError, "std must be above 0"),
        (lambda: _views(dtype=torch.int32), TypeError, "dtype must be float32, bfloat16 or float16, got torch.int32"),
        (lambda: _draw(index=[1, 2]), TypeError, r"index must be a tensor int64 \[B\], got list"),
        (lambda: _draw(index=torch.zeros(2)), ValueError, r"index must be int64 \[B\].*got torch.float32 \(2,\)"),
        (lambda: _draw(size=torch.zeros(3, 2, dtype=torch.int64)), ValueError, r"sizes must be int64 \(2, 2\)"),
        (lambda: _draw(size=(0, 8)), ValueError, r"height must be in \[1, 2\^24\), got 0"),
        (lambda: _draw(out_size=(4, 0)), ValueError, r"out_width must be in \[1, 2\^24\), got 0"),
        (lambda: _draw(seed=-1), ValueError, r"seed must be in \[0, 2\^64\), got -1"),
        (lambda: _draw(seed=0.5), TypeError, "seed must be an int, got float"),
        (lambda: _draw(epoch=2**32), ValueError, r"epoch must be in \[0, 2\^32\), got 4294967296"),
        (lambda: _draw(program=[1.0] * 11), ValueError, "program must hold entries of 12 numbers, got 11 numbers"),
        (lambda: _draw(program=SIMCLR[12:]), ValueError, "starts with its only crop, entry 0 is HORIZONTAL_FLIP"),
        (lambda: _draw(program=SIMCLR[:12] * 2), ValueError, "starts with its only crop, entry 1 is RESIZED_CROP"),
        (lambda: _draw(program=[99.0, *SIMCLR[1:]]), ValueError, "entry 0 of program has the unknown kind 99"),
        (lambda: _draw(program=SIMCLR[:12] + entry(Kind.SOBEL, group=7)), ValueError, "the group 7, there are 2"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
