"""Which images transforms take: both layouts, lists of different sizes, several views of different sizes at once."""

from __future__ import annotations

import pytest
import torch

from fastssl.augment import (
    ColorJitter,
    Compose,
    GaussianBlur,
    MultiViewTransform,
    Normalize,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
)

LARGE = Compose([RandomResizedCrop(24), RandomHorizontalFlip(), ColorJitter(0.4, 0.4, 0.4, 0.1), Normalize()])
SMALL = Compose([RandomResizedCrop((10, 12), (0.05, 0.3), interpolation="bicubic"), GaussianBlur(3), Normalize()])
CROPS = MultiViewTransform([LARGE, SMALL, SMALL])
KEY = dict(seed=3, epoch=2)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, 30, 26), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_views_of_different_sizes_come_from_one_call(images, monkeypatch):
    from fastssl import functional

    calls = []
    made = functional.augment_views
    monkeypatch.setattr(functional, "augment_views", lambda *a, **k: calls.append(1) or made(*a, **k))
    views = CROPS(images, **KEY)
    assert [tuple(view.shape) for view in views] == [(4, 3, 24, 24), (4, 3, 10, 12), (4, 3, 10, 12)]
    assert all(view.dtype == torch.float32 and view.is_contiguous() for view in views)
    assert len(calls) == 1
    assert not torch.allclose(views[1], views[2])


@pytest.mark.parametrize("count", [1, 3])
def test_channels_may_come_last(images, count):
    images = images[:, :count]
    expected = CROPS(images, **KEY)
    last = images.permute(0, 2, 3, 1).contiguous()
    for given in (last, last.contiguous().clone(), images.contiguous(memory_format=torch.channels_last)):
        for a, b in zip(CROPS(given, **KEY), expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    for a, b in zip(CROPS(last, **KEY, channels="last"), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_where_channels_could_be_first_or_last_one_has_to_say(images):
    square = torch.randint(0, 256, (2, 3, 8, 3), dtype=torch.uint8)
    with pytest.raises(ValueError, match=r'channels must be given as "first" or "last".* could be .* in \(3, 8, 3\)'):
        LARGE(square)
    first, last = LARGE(square, **KEY, channels="first"), LARGE(square, **KEY, channels="last")
    assert first.shape == last.shape == (2, 3, 24, 24)
    assert not torch.allclose(first, last)
    with pytest.raises(ValueError, match=r"are not the one axis of 1 or 3 in \(4, 9, 9\)"):
        RandomHorizontalFlip()(torch.zeros(1, 4, 9, 9, dtype=torch.uint8))
    with pytest.raises(ValueError, match="channels must be one of 'first', 'last', got 'middle'"):
        LARGE(images, channels="middle")


@pytest.mark.parametrize("last", [False, True])
def test_a_list_of_images_of_different_sizes_gives_the_views_of_each_alone(images, last):
    ragged = [images[0], images[1, :, :7, :9], images[2, :, 3:], torch.full((3, 200, 90), 77, dtype=torch.uint8)]
    index = torch.tensor([3, 8, 2, 11])
    given = [image.permute(1, 2, 0).contiguous() for image in ragged] if last else ragged
    views, parameters = CROPS(given, **KEY, index=index, return_parameters=True)
    for i, image in enumerate(ragged):
        for view, alone in zip(views, CROPS(image[None], **KEY, index=index[i : i + 1]), strict=True):
            torch.testing.assert_close(view[i : i + 1], alone, atol=1e-5, rtol=0)
        assert all(p.top[i] + p.height[i] <= image.shape[1] for p in parameters)
    for view, same in zip(CROPS.apply(given, parameters), views, strict=True):
        assert torch.equal(view, same)


def test_a_list_of_images_of_one_size_is_a_batch(images):
    for a, b in zip(CROPS(list(images), **KEY), CROPS(images, **KEY), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert RandomGrayscale()(list(images)).shape == images.shape


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (torch.rand(2, 3, 8, 8), TypeError, "images must be uint8, values 0 to 255 as decoded, got torch.float32$"),
        (torch.rand(2, 3, 8, 8, requires_grad=True), TypeError, "got torch.float32; views carry no gradient"),
        ([torch.rand(3, 8, 8)], TypeError, r"images\[0\] must be uint8"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), ValueError, r"\[B, C, H, W\] .* got \(3, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), ValueError, r"not empty, got \(0, 3, 8, 8\)"),
        (
            [torch.zeros(1, 3, 8, 8, dtype=torch.uint8)],
            ValueError,
            r"images\[0\] must be \[C, H, W\] .* \(1, 3, 8, 8\)",
        ),
        ([], TypeError, "got an empty list"),
        ("cat.jpg", TypeError, r"images\[0\] must be a uint8 tensor, got str"),
        (3, TypeError, "images must be a uint8 tensor .* or a list .* got int"),
        (
            [torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(1, 8, 8, dtype=torch.uint8)],
            ValueError,
            r'channels must be given as "first" or "last"',
        ),
    ],
)
def test_bad_images_are_named(given, error, message):
    with pytest.raises(error, match=message):
        LARGE(given)


def test_images_of_different_channels_and_sizes_without_a_crop_are_refused(images):
    mixed = [images[0], images[1, :1]]
    with pytest.raises(ValueError, match=r"the same channels, got 3 in images\[0\] \(3, 30, 26\) and 1 in images\[1\]"):
        LARGE(mixed, channels="first")
    with pytest.raises(ValueError, match="RandomGrayscale: images of different sizes need a crop or a resize"):
        RandomGrayscale()([images[0], images[1, :, :9]])
    with pytest.raises(TypeError, match=r"dtype must be float32, bfloat16 or float16, got torch\.float64"):
        LARGE(images, dtype=torch.float64)
