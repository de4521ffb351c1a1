"""Random views: torchvision's definitions, per-image parameters, reproducible from (seed, epoch, index) alone."""

import pytest
import torch

pytest.importorskip("torchvision")
from torchvision.transforms.v2 import functional as tv

from fastssl.augment import EvalTransform, MultiViewTransform, SimCLRTransform, View
from fastssl.augment.apply import (
    apply_view,
    brightness,
    contrast,
    gaussian_blur,
    hue,
    luma,
    resize_matrix,
    saturation,
    separable,
)
from fastssl.augment.random import philox4x32, uniform
from fastssl.augment.view import sample


@pytest.fixture
def images() -> torch.Tensor:
    torch.manual_seed(0)
    # Smooth areas, saturated and equal channels, besides noise: hue has special cases there.
    x = torch.rand(6, 3, 40, 32)
    x[1] = x[1, :1]
    x[2] = x[2].round()
    x[3, :, :20] = 0
    return x


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
    words = philox4x32(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(word) for word in words) == expected


def test_uniform_is_uniform_and_depends_on_every_part_of_its_key():
    index = torch.arange(4000)
    u = uniform(5, seed=3, epoch=1, index=index, view=0)
    assert u.shape == (4000, 5)
    assert u.dtype == torch.float32
    assert u.min() >= 0 and u.max() < 1
    assert (u.mean(0) - 0.5).abs().max() < 0.02
    assert (u.var(0) - 1 / 12).abs().max() < 0.005
    assert torch.corrcoef(u.T).fill_diagonal_(0).abs().max() < 0.06
    for other in (
        dict(seed=4, epoch=1, view=0),
        dict(seed=3 + 2**32, epoch=1, view=0),
        dict(seed=3, epoch=2, view=0),
        dict(seed=3, epoch=1, view=1),
    ):
        assert (uniform(5, index=index, **other) == u).float().mean() < 0.01
    assert torch.equal(uniform(5, seed=3, epoch=1, index=index[7:9], view=0), u[7:9])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(seed=-1), r"seed must be in \[0, 2\^64\), got -1"),
        (dict(epoch=2**32), r"epoch must be in"),
        (dict(index=torch.zeros(2)), r"index must be int64 \[B\], got torch.float32 \(2,\)"),
    ],
)
def test_uniform_names_a_bad_argument(bad, message):
    arguments = dict(seed=0, epoch=0, view=0, index=torch.zeros(2, dtype=torch.int64)) | bad
    with pytest.raises(ValueError, match=message):
        uniform(1, **arguments)


@pytest.mark.parametrize(("height", "width", "size"), [(9, 30, 16), (40, 32, 24), (1, 1, 8), (25, 17, 17)])
def test_crop_and_resize_is_torchvisions(images, height, width, size):
    top, left = torch.tensor([0, 40 - height]), torch.tensor([32 - width, 0])
    h, w = torch.tensor([height] * 2), torch.tensor([width] * 2)
    ours = separable(images[:2], resize_matrix(top, h, 40, size), resize_matrix(left, w, 32, size))
    for i in range(2):
        theirs = tv.resized_crop(images[i], int(top[i]), int(left[i]), height, width, [size, size], antialias=True)
        torch.testing.assert_close(ours[i], theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (brightness, tv.adjust_brightness, [0.2, 0.7, 1.0, 1.3, 1.8, 0.0]),
        (contrast, tv.adjust_contrast, [0.2, 0.7, 1.0, 1.3, 1.8, 0.0]),
        (saturation, tv.adjust_saturation, [0.2, 0.7, 1.0, 1.3, 1.8, 0.0]),
        (hue, tv.adjust_hue, [-0.5, -0.2, 0.0, 0.1, 0.35, 0.5]),
        (lambda x, s: gaussian_blur(x, s, 7), None, [0.1, 0.3, 0.8, 1.0, 2.0, 5.0]),
    ],
    ids=["brightness", "contrast", "saturation", "hue", "blur"],
)
def test_each_operation_is_torchvisions_with_one_factor_per_image(images, ours, theirs, factors):
    theirs = theirs or (lambda x, sigma: tv.gaussian_blur(x, [7, 7], [sigma, sigma]))
    expected = torch.stack([theirs(x, f) for x, f in zip(images, factors, strict=True)])
    before = images.clone()
    torch.testing.assert_close(ours(images, torch.tensor(factors)), expected, atol=2e-5, rtol=0)
    assert torch.equal(images, before)


def test_grayscale_is_torchvisions(images):
    torch.testing.assert_close(luma(images), tv.rgb_to_grayscale(images), atol=1e-6, rtol=0)


def test_a_whole_view_is_torchvisions_with_the_same_parameters():
    image = torch.randint(0, 256, (12, 3, 48, 40), generator=torch.Generator().manual_seed(0)).byte()
    view = View(32, jitter=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, gray=0.3, blur=0.5)
    p = sample(view, 1, 48, 40, seed=5, epoch=2, index=torch.arange(12))
    ours = apply_view(image, view, p)
    changes = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for i in range(12):
        box = (int(p.top[i]), int(p.left[i]), int(p.height[i]), int(p.width[i]))
        x = tv.resized_crop(image[i].float() / 255, *box, [32, 32], antialias=True)
        if p.flip[i]:
            x = tv.horizontal_flip(x)
        if p.jitter[i]:
            for which in p.order[i].tolist():
                x = changes[which](x, float((p.brightness, p.contrast, p.saturation, p.hue)[which][i]))
        if p.gray[i]:
            x = tv.rgb_to_grayscale(x, num_output_channels=3)
        if p.blur[i]:
            x = tv.gaussian_blur(x, [3, 3], [float(p.sigma[i])] * 2)
        torch.testing.assert_close(ours[i], x, atol=5e-5, rtol=0)
    assert p.flip.any() and p.jitter.any() and p.gray.any() and p.blur.any()


def test_parameters_follow_their_distribution():
    view = View(32, scale=(0.2, 1), jitter=0.8, brightness=0.4, hue=0.1, gray=0.2, flip=0.5, blur=0.5)
    p = sample(view, 0, 64, 64, seed=0, epoch=0, index=torch.arange(5000))
    area = p.height * p.width / 64**2
    assert area.min() > 0.19 and area.max() <= 1
    assert 0.5 < area.mean() < 0.62  # 0.6, a little less for the large draws that do not fit
    assert (p.top + p.height).max() <= 64 and (p.left + p.width).max() <= 64
    for part, probability in ((p.flip, 0.5), (p.jitter, 0.8), (p.gray, 0.2), (p.blur, 0.5)):
        assert abs(part.float().mean() - probability) < 0.03
    assert p.brightness.min() >= 0.6 and p.brightness.max() <= 1.4
    assert p.hue.abs().max() <= 0.1
    assert (p.contrast == 1).all()
    assert torch.equal(p.order.sort(1).values, torch.arange(4).expand(5000, 4))
    assert len(p.order.unique(dim=0)) == 24


def test_narrow_images_fall_back_to_the_centre_as_torchvision_does():
    p = sample(View(8, scale=(1, 1)), 0, 10, 100, seed=0, epoch=0, index=torch.arange(3))
    assert p.height.tolist() == [10] * 3
    assert p.width.tolist() == [13] * 3
    assert p.left.tolist() == [43] * 3


def test_views_have_the_promised_shape_and_range_and_leave_the_images_alone():
    image = torch.randint(0, 256, (5, 3, 64, 48), dtype=torch.uint8)
    before = image.clone()
    transform = SimCLRTransform(32, mean=(0.5,) * 3, std=(0.5,) * 3)
    views = transform(image, seed=0, epoch=0, index=torch.arange(5))
    assert [tuple(view.shape) for view in views] == [(5, 3, 32, 32)] * 2
    assert all(view.dtype == torch.float32 and view.abs().max() <= 1 + 1e-5 for view in views)
    assert torch.equal(image, before)


def test_every_image_and_every_view_is_drawn_on_its_own():
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8).expand(8, -1, -1, -1)
    a, b = SimCLRTransform(32)(image, seed=0, epoch=0, index=torch.arange(8))
    everything = torch.cat([a, b])
    distance = torch.cdist(everything.flatten(1), everything.flatten(1)).fill_diagonal_(1e9)
    assert distance.min() > 1


def test_views_depend_on_seed_epoch_and_index_and_not_on_the_batch():
    image = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    index = torch.tensor([5, 0, 17, 3, 200, 9])
    transform = SimCLRTransform(32)
    torch.manual_seed(0)
    views = transform(image, seed=1, epoch=4, index=index)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again = transform(image, seed=1, epoch=4, index=index)
    assert torch.equal(torch.get_rng_state(), state)
    for view, same in zip(views, again, strict=True):
        assert torch.equal(view, same)
    part = torch.tensor([4, 1])
    for view, alone in zip(views, transform(image[part], seed=1, epoch=4, index=index[part]), strict=True):
        torch.testing.assert_close(alone, view[part], atol=1e-5, rtol=0)
    for other in (dict(seed=2, epoch=4), dict(seed=1, epoch=5)):
        assert not torch.allclose(transform(image, index=index, **other)[0], views[0], atol=0.1)


def test_autocast_does_not_round_the_views():
    image = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    key = dict(seed=0, epoch=0, index=torch.arange(4))
    expected = [*SimCLRTransform(24)(image, **key), EvalTransform(24)(image)]
    with torch.autocast("cpu", torch.bfloat16):
        views = [*SimCLRTransform(24)(image, **key), EvalTransform(24)(image)]
    assert all(torch.equal(a, b) for a, b in zip(views, expected, strict=True))


def test_multi_crop_views_may_differ_in_size():
    image = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    transform = MultiViewTransform([View(24), View(12, scale=(0.05, 0.3), jitter=1, brightness=0.5)])
    views = transform(image, seed=0, epoch=0, index=torch.arange(2))
    assert [tuple(view.shape) for view in views] == [(2, 1, 24, 24), (2, 1, 12, 12)]


def test_evaluation_view_is_the_resized_central_square():
    image = torch.randint(0, 256, (2, 3, 40, 60), dtype=torch.uint8)
    x = EvalTransform(20, mean=(0, 0, 0), std=(1, 1, 1))(image)
    expected = tv.resize(image[..., 10:50].float() / 255, [20, 20], antialias=True)
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=0)
    same = EvalTransform(40, mean=(0, 0, 0), std=(1, 1, 1))(image[..., :40])
    assert torch.equal(same, image[..., :40].float() / 255)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: View(0), "View: size must be at least 1, got 0"),
        (lambda: View(8, scale=(0, 1)), r"View: scale must be increasing and in \(0, 1\], got \(0, 1\)"),
        (lambda: View(8, gray=1.5), r"View: gray must be in \[0, 1\], got 1.5"),
        (lambda: View(8, hue=0.6), r"View: hue must be in \[0, 0.5\], got 0.6"),
        (lambda: View(8, blur=1, blur_kernel=4), "View: blur_kernel must be odd and positive, got 4"),
        (lambda: View(4, blur=1, blur_kernel=9), "View: blur_kernel must be below twice the size 4, got 9"),
        (lambda: MultiViewTransform([]), "views must hold at least one view"),
        (lambda: SimCLRTransform(8, std=(0, 1, 1)), "std must be positive"),
    ],
)
def test_a_bad_distribution_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_bad_batch_is_named():
    transform = SimCLRTransform(8)
    key = dict(seed=0, epoch=0, index=torch.arange(2))
    with pytest.raises(ValueError, match=r"image must be uint8 \[B, 1 or 3, H, W\], got torch.float32"):
        transform(torch.rand(2, 3, 8, 8), **key)
    with pytest.raises(ValueError, match=r"index must be \[3\] for 3 images, got \(2,\)"):
        transform(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), **key)
