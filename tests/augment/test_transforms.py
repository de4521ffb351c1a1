"""Named transforms: alone and composed they are torchvision's operations with the numbers that were drawn."""

from __future__ import annotations

import pytest
import torch

from fastssl.augment import (
    CenterView,
    ColorJitter,
    Compose,
    Cutout,
    EvalTransform,
    GaussianBlur,
    GaussianNoise,
    MultiViewTransform,
    Normalize,
    RandomApply,
    RandomCrop,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomQuarterTurn,
    RandomResizedCrop,
    RandomRotation,
    RandomSolarize,
    RandomVerticalFlip,
    Resize,
    Sobel,
)

KEY = dict(seed=7, epoch=1, index=torch.arange(8))
CLOSE = dict(atol=5e-5, rtol=0)


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (8, 3, 40, 40), generator=generator, dtype=torch.uint8)
    x[1] = x[1, :1]  # hue has special cases where channels are equal
    x[2] = 255 * (x[2] > 127)
    x[3, :, :20] = 0
    return x


def compare(view, images, size=None, interpolation="bilinear", **drawn):
    """Hold a view against torchvision's operations with its numbers; give the numbers back."""
    pytest.importorskip("torchvision")
    from torchvision_views import torchvision_view

    x, p = view(images, **KEY, **drawn, return_parameters=True)
    size = size or tuple(images.shape[-2:])
    assert x.shape == (len(images), images[0].shape[0], *size)
    for i, image in enumerate(images):
        torch.testing.assert_close(x[i], torchvision_view(image, p[i], size, interpolation), **CLOSE)
    return p


@pytest.mark.parametrize(
    ("transform", "happened"),
    [
        (RandomHorizontalFlip(0.5), lambda p: p.horizontal_flip),
        (RandomVerticalFlip(0.5), lambda p: p.vertical_flip),
        (RandomQuarterTurn(0.5), lambda p: p.quarter_turns),
        (ColorJitter(brightness=0.4, p=0.5), lambda p: p.applied("brightness")),
        (ColorJitter(contrast=(0.3, 3), p=0.5), lambda p: p.applied("contrast")),
        (ColorJitter(saturation=0.9, p=0.5), lambda p: p.applied("saturation")),
        (ColorJitter(hue=0.5, p=0.5), lambda p: p.applied("hue")),
        (ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.5), lambda p: p.applied("hue")),
        (RandomGrayscale(0.5), lambda p: p.applied("grayscale")),
        (RandomSolarize(100.5 / 255, p=0.5), lambda p: p.applied("solarize")),
        (GaussianBlur(7, (0.1, 2.0), p=0.5), lambda p: p.applied("blur")),
        (GaussianBlur(5, 1.5, p=0.5), lambda p: p.applied("blur")),
        (RandomRotation(30, "bilinear", fill=0.25, p=0.5), lambda p: p.applied("rotate")),
        (RandomRotation((90, 90), p=0.5), lambda p: p.applied("rotate")),
        (Cutout(0.5, value=0.5), lambda p: p.applied("cutout")),
    ],
    ids=lambda value: str(value) if isinstance(value, torch.nn.Module) else "",
)
def test_alone_each_step_keeps_the_size_and_is_torchvisions(images, transform, happened):
    there = happened(compare(transform, images)) != 0
    assert there.any() and not there.all()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda mode: RandomResizedCrop(24, interpolation=mode), (24, 24)),
        (lambda mode: RandomResizedCrop((20, 30), (0.5, 1), (1, 2), mode), (20, 30)),
        (lambda mode: Resize((60, 20), mode), (60, 20)),
        (lambda mode: CenterView((16, 30), 0.7, mode), (16, 30)),
    ],
)
def test_crops_are_torchvisions(images, make, size, interpolation):
    compare(make(interpolation), images, size, interpolation)


def test_a_random_crop_is_cut_out_and_not_resized(images):
    x, p = RandomCrop((30, 10))(images, **KEY, return_parameters=True)
    for i in range(8):
        top, left = int(p.top[i]), int(p.left[i])
        cut = images[i, :, top : top + 30, left : left + 10].float() / 255
        torch.testing.assert_close(x[i], cut, atol=1e-6, rtol=0)
    assert len(p.top.unique()) > 3 and len(p.left.unique()) > 3


def test_noise_adds_what_was_asked_for(images):
    x = GaussianNoise(0.1, 0.05, clip=False)(images, **KEY)
    noise = x - images.float() / 255
    assert abs(noise.mean() - 0.1) < 0.002 and abs(noise.std() - 0.05) < 0.002
    assert GaussianNoise(sigma=1.0)(images, **KEY).aminmax() == (0, 1)
    fresh = GaussianNoise(0.1, 0.05, clip=False)(images, **KEY | {"epoch": 2}) - images.float() / 255
    assert torch.corrcoef(torch.stack([noise.flatten(), fresh.flatten()]))[0, 1].abs() < 0.03


def test_sobel_is_kornias(images):
    filters = pytest.importorskip("kornia.filters")
    torch.testing.assert_close(Sobel()(images), filters.sobel(images.float() / 255), **CLOSE)


def test_the_central_view_is_the_largest_central_box(images):
    image = torch.randint(0, 256, (2, 3, 40, 60), dtype=torch.uint8)
    p = CenterView(20).sample(image, seed=0)
    assert [float(x[0]) for x in (p.top, p.left, p.height, p.width)] == [0, 10, 40, 40]
    p = CenterView((10, 30), share=0.5).sample(image, seed=0)
    assert [float(x[0]) for x in (p.top, p.left, p.height, p.width)] == [15, 15, 10, 30]


def test_the_evaluation_view_is_the_resized_central_square():
    tv = pytest.importorskip("torchvision.transforms.v2.functional")
    image = torch.randint(0, 256, (2, 3, 40, 60), dtype=torch.uint8)
    plain = dict(mean=(0, 0, 0), std=(1, 1, 1))
    x = EvalTransform(20, **plain)(image)
    expected = tv.resize(image[..., 10:50].float() / 255, [20, 20], antialias=True)
    torch.testing.assert_close(x, expected, **CLOSE)
    assert torch.equal(EvalTransform(20, **plain)(list(image)), x)
    different = EvalTransform(20, **plain)([image[0], image[1, :, :30]])
    torch.testing.assert_close(different[0], x[0])
    same = EvalTransform(40, **plain)(image[..., :40])
    torch.testing.assert_close(same, image[..., :40].float() / 255)
    torch.testing.assert_close(EvalTransform(20)(image), (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None])
                               / torch.tensor([0.229, 0.224, 0.225])[:, None, None], **CLOSE)  # fmt: skip


def test_evaluation_leaves_the_generator_alone():
    state = torch.get_rng_state()
    EvalTransform(8)(torch.zeros(1, 3, 9, 9, dtype=torch.uint8))
    assert torch.equal(torch.get_rng_state(), state)


EVERYTHING = Compose([
    RandomVerticalFlip(),
    RandomResizedCrop((32, 32), (0.05, 1.0), (0.5, 2.0)),
    RandomSolarize(0.701, p=0.4),
    RandomQuarterTurn(),
    ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
    RandomApply([GaussianBlur(5), RandomGrayscale(1.0)], p=0.4),
    RandomRotation(20, "bilinear", p=0.4),
    RandomHorizontalFlip(),
    ColorJitter(brightness=0.5, p=0.5),
    Cutout(0.5, value=0.1),
])  # fmt: skip


def test_a_composition_is_torchvisions_sequence(images):
    p = compare(EVERYTHING, images, (32, 32))
    for name in ("solarize", "hue", "blur", "rotate", "cutout"):
        assert p.applied(name).any() and not p.applied(name).all(), name
    assert torch.equal(p.applied("blur"), p.applied("grayscale"))


@pytest.mark.parametrize(
    ("box", "size"),
    [((0, 0, 1, 1), 16), ((39, 39, 1, 1), 16), ((3, 5, 1, 30), 16), ((0, 0, 40, 40), 2), ((7, 9, 2, 3), 64)],
    ids=["pixel", "last pixel", "row", "20 times smaller", "20 times larger"],
)
def test_extreme_crops_are_torchvisions(images, box, size):
    pytest.importorskip("torchvision")
    from torchvision_views import torchvision_view

    for mode in ("bilinear", "bicubic"):
        view = RandomResizedCrop(size, interpolation=mode)
        p = view.sample(images, **KEY)
        p.top[:], p.left[:], p.height[:], p.width[:] = box
        x = view.apply(images, p)
        for i in range(8):
            torch.testing.assert_close(x[i], torchvision_view(images[i], p[i], (size, size), mode), **CLOSE)


def test_normalisation_comes_last_and_takes_its_mean_over_for_one_channel(images):
    x, plain = Normalize()(images), Resize(40)(images)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(x, (plain - mean) / std, **CLOSE)
    gray = Normalize()(images[:, :1])
    torch.testing.assert_close(gray, (plain[:, :1] - mean.mean()) / std.mean(), **CLOSE)
    torch.testing.assert_close(Normalize((0.5,), (0.25,))(images), (plain - 0.5) / 0.25, **CLOSE)


def test_a_cutout_with_the_mean_is_zero_after_normalisation(images):
    x, p = Compose([Cutout(1.0), Normalize()])(images, **KEY, return_parameters=True)
    for i in range(8):
        top, left, height, width = (int(p.values("cutout", key)[i]) for key in ("top", "left", "height", "width"))
        assert (x[i, :, top : top + height, left : left + width].abs() < 1e-6).all()
        assert (x[i].abs() < 1e-6).sum() <= 3 * height * width + 3


def test_one_channel_and_many_channels(images):
    jitter = ColorJitter(0.5, 0.5, 0.5, 0.2)
    p = compare(Compose([RandomResizedCrop(20), jitter, RandomGrayscale(1.0)]), images[:, :1], (20, 20))
    assert p.applied("hue").all()
    many = torch.randint(0, 256, (8, 5, 30, 30), dtype=torch.uint8)
    view = Compose([RandomResizedCrop(20), RandomHorizontalFlip(), RandomSolarize(0.501), GaussianBlur(3)])
    compare(view, many, (20, 20), channels="first")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_views_of_low_precision_are_rounded_ones(images, dtype):
    x = EVERYTHING(images, **KEY, dtype=dtype)
    assert x.dtype == dtype
    torch.testing.assert_close(x.float(), EVERYTHING(images, **KEY), atol=1 / 128, rtol=0)


def test_the_images_are_left_alone(images):
    before = images.clone()
    MultiViewTransform([EVERYTHING, EVERYTHING])(images, **KEY)
    assert torch.equal(images, before)


def test_a_transform_prints_its_arguments():
    assert str(RandomGrayscale(0.2)) == "RandomGrayscale(p=0.2)"
    assert str(GaussianBlur(3)) == "GaussianBlur(kernel_size=3, sigma=(0.1, 2.0), p=1.0)"
    assert "RandomResizedCrop(size=(24, 24), scale=(0.08, 1.0)" in str(Compose([RandomResizedCrop(24), Sobel()]))
    assert "GaussianBlur(kernel_size=5" in str(EVERYTHING)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RandomResizedCrop(0), ValueError, "RandomResizedCrop: size must be at least 1, got 0"),
        (lambda: RandomResizedCrop(2.5), TypeError, "size must be an int, got float"),
        (lambda: RandomResizedCrop((1, 2, 3)), ValueError, r"one number or \(height, width\), got \(1, 2, 3\)"),
        (lambda: RandomResizedCrop(8, scale=(0, 1)), ValueError, r"scale must be .* \(0, 1\], got \(0, 1\)"),
        (lambda: RandomResizedCrop(8, scale=(0.5, 0.2)), ValueError, r"increasing .* got \(0.5, 0.2\)"),
        (lambda: RandomResizedCrop(8, scale=0.5), ValueError, r"scale must be a pair \(low, high\), got 0.5"),
        (lambda: RandomResizedCrop(8, ratio=(0, 1)), ValueError, r"ratio must be .* \(0, inf\), got \(0, 1\)"),
        (lambda: RandomResizedCrop(8, ratio=(1, float("nan"))), ValueError, "ratio must be"),
        (
            lambda: RandomResizedCrop(8, interpolation="nearest"),
            ValueError,
            "interpolation must be one of 'bilinear', 'bicubic', got 'nearest'",
        ),
        (lambda: CenterView(8, share=1.2), ValueError, r"CenterView: share must be in \(0, 1\], got 1.2"),
        (lambda: RandomHorizontalFlip(1.5), ValueError, "RandomHorizontalFlip: p must be from 0 to 1, got 1.5"),
        (lambda: RandomGrayscale("a"), TypeError, "RandomGrayscale: p must be a number, got str"),
        (lambda: ColorJitter(brightness=-1), ValueError, "ColorJitter: brightness must be"),
        (lambda: ColorJitter(brightness=(-1, 1)), ValueError, r"brightness must be .* \[0, inf\), got \(-1, 1\)"),
        (lambda: ColorJitter(hue=0.6), ValueError, "hue must be from 0 to 0.5, got 0.6"),
        (lambda: ColorJitter(hue=(0.1, 0.6)), ValueError, r"hue must be .* \[-0.5, 0.5\], got \(0.1, 0.6\)"),
        (lambda: GaussianBlur(4), ValueError, "GaussianBlur: kernel_size must be odd, got 4"),
        (lambda: GaussianBlur((3, 5)), ValueError, r"the same in both directions, got \(3, 5\)"),
        (lambda: GaussianBlur(3, sigma=(0, 1)), ValueError, "sigma must be"),
        (lambda: RandomSolarize(128), ValueError, "threshold must be from 0 to 1, got 128"),
        (lambda: RandomRotation(-3), ValueError, "degrees must be finite and at least 0, got -3"),
        (lambda: RandomRotation(3, "bicubic"), ValueError, "one of 'nearest', 'bilinear', got 'bicubic'"),
        (lambda: RandomRotation(3, fill=255), ValueError, "fill must be from 0 to 1, got 255"),
        (lambda: Cutout(value="random"), ValueError, "value must be one of 'mean', got 'random'"),
        (lambda: GaussianNoise(sigma=-1), ValueError, "sigma must be"),
        (lambda: Normalize((0.5,), (0.0,)), ValueError, r"Normalize: std must be positive, .* got \(0.0,\)"),
        (lambda: Normalize((0.5,), (1, 1)), ValueError, "one for each mean"),
        (lambda: Normalize((), ()), ValueError, "Normalize: std must be positive"),
        (lambda: RandomApply([]), ValueError, "transforms must hold at least one transform, got none"),
        (lambda: RandomApply([RandomResizedCrop(3)]), ValueError, "steps and flips, got RandomResizedCrop"),
        (lambda: RandomApply([abs]), TypeError, "must be those of fastssl.augment"),
        (
            lambda: RandomApply([RandomGrayscale(0.2), GaussianBlur(3, p=0.5)]),
            ValueError,
            "may hold one that is random itself, .* got RandomGrayscale, GaussianBlur",
        ),
        (lambda: Compose([]), ValueError, "Compose: transforms must hold at least one transform, got none"),
        (lambda: Compose([abs]), TypeError, "got builtin_function_or_method; from_torchvision converts"),
        (lambda: MultiViewTransform([]), ValueError, "transforms must hold at least one view, got none"),
        (lambda: MultiViewTransform([abs]), TypeError, "must be those of fastssl.augment"),
        (
            lambda: MultiViewTransform([Compose([Resize(8), Normalize()]), Resize(8)]),
            ValueError,
            r"must have the same Normalize, got mean and std \(\(0.485.* and None",
        ),
        (
            lambda: Compose([RandomGrayscale(), RandomResizedCrop(8)]),
            ValueError,
            "Compose: RandomResizedCrop must stand before RandomGrayscale: colours change after the crop",
        ),
        (
            lambda: Compose([RandomResizedCrop(8), Resize(8), Normalize(), Sobel()]),
            ValueError,
            "Resize must be the only crop or resize, it follows RandomResizedCrop; Sobel must stand before Normalize",
        ),
        (lambda: Compose([RandomHorizontalFlip()] * 2), ValueError, "RandomHorizontalFlip must stand once"),
        (lambda: Compose([Normalize()] * 2), ValueError, "Normalize must stand once"),
        (
            lambda: Compose([RandomRotation((0, 30)), RandomHorizontalFlip()]),
            ValueError,
            "RandomHorizontalFlip must stand before RandomRotation, whose degrees are not symmetric about 0",
        ),
        (
            lambda: Compose([RandomResizedCrop((8, 9)), RandomQuarterTurn()]),
            ValueError,
            "RandomQuarterTurn needs a square view, got 8 x 9",
        ),
        (
            lambda: Compose([RandomResizedCrop(4), GaussianBlur(9)]),
            ValueError,
            "kernel_size must be below twice the shorter side of the view, got 9 for 4 x 4",
        ),
        (lambda: EvalTransform(0), ValueError, "size must be at least 1, got 0"),
    ],
)
def test_a_bad_argument_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RandomQuarterTurn()(torch.zeros(1, 3, 4, 5, dtype=torch.uint8)), "needs a square view, got 4 x 5"),
        (lambda: GaussianBlur(9)(torch.zeros(1, 3, 4, 5, dtype=torch.uint8)), "got 9 for 4 x 5"),
        (
            lambda: RandomGrayscale()(torch.zeros(1, 4, 5, 5, dtype=torch.uint8), channels="first"),
            "images must have 1 or 3 channels for RandomGrayscale, got 4",
        ),
        (
            lambda: Normalize()(torch.zeros(1, 4, 5, 5, dtype=torch.uint8), channels="first"),
            "images must have 3 channels like Normalize's mean, got 4",
        ),
    ],
)
def test_what_depends_on_the_images_is_refused_when_they_come(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_flips_may_stand_after_the_normalisation_and_after_steps_with_which_they_commute():
    Compose([RandomRotation(30), RandomHorizontalFlip(), RandomQuarterTurn(), Normalize(), RandomVerticalFlip()])
