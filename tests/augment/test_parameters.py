"""What was drawn: readable, changeable, given back; and distributed as the arguments say."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from fastssl.augment import (
    ColorJitter,
    Compose,
    Cutout,
    GaussianBlur,
    GaussianNoise,
    MultiViewTransform,
    RandomApply,
    RandomCrop,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomQuarterTurn,
    RandomResizedCrop,
    RandomRotation,
    RandomSolarize,
    RandomVerticalFlip,
    Sobel,
    ViewParameters,
)

MANY = 20_000
INDEX = torch.arange(MANY)


def sample(*transforms, size=(200, 200), seed=0) -> ViewParameters:
    return Compose(transforms).sample(size, seed=seed, index=INDEX)


def assert_uniform(x: torch.Tensor, low: float, high: float) -> None:
    """Chi-square over 20 bins: 19 degrees of freedom, exceeded by chance once in a million times."""
    x = (x.double() - low) / (high - low)
    assert x.min() > -2e-3 and x.max() < 1 + 2e-3  # whole pixels lie a little outside
    assert x.min() < 5e-3 and x.max() > 1 - 5e-3
    counts = torch.histc(x.clamp(0, 1), 20, 0, 1)
    assert ((counts - len(x) / 20) ** 2 / (len(x) / 20)).sum() < 70


def assert_share(happened: torch.Tensor, p: float) -> None:
    """Within five standard deviations."""
    share = happened.double().mean()
    assert abs(share - p) <= 5 * math.sqrt(p * (1 - p) / len(happened)), (float(share), p)


# Distributions


def test_crops_have_uniform_areas_log_uniform_ratios_and_uniform_places():
    # On so large an image, and so small a largest area, every first draw fits.
    p = sample(RandomResizedCrop(32, (0.1, 0.5), (0.5, 2.0)), size=(4000, 4000))
    assert_uniform(p.height.double() * p.width / 4000**2, 0.1, 0.5)
    assert_uniform((p.width.double() / p.height).log(), math.log(0.5), math.log(2))
    assert_uniform(p.top.double() / (4000 - p.height), 0, 1)
    assert_uniform(p.left.double() / (4000 - p.width), 0, 1)
    together = torch.stack([p.height * p.width, p.width / p.height, p.top, p.left])
    assert torch.corrcoef(together)[0, 1].abs() < 0.04


def test_crops_stay_inside_and_large_draws_that_do_not_fit_are_drawn_again():
    p = sample(RandomResizedCrop(32), size=(64, 48))
    assert (p.top + p.height).max() <= 64 and (p.left + p.width).max() <= 48
    assert p.height.min() >= 1 and p.width.min() >= 1 and p.top.min() == 0 and p.left.min() == 0
    share = p.height.double() * p.width / (64 * 48)
    assert share.min() > 0.07 and 0.42 < share.mean() < 0.54  # the middle, less what did not fit


def test_crops_are_as_often_of_each_size_as_torchvisions():
    transforms = pytest.importorskip("torchvision.transforms.v2")
    theirs = transforms.RandomResizedCrop(32)
    torch.manual_seed(0)
    image = torch.empty(3, 40, 60, dtype=torch.uint8)
    drawn = [theirs.make_params([image]) for _ in range(4000)]
    p = sample(RandomResizedCrop(32), size=(40, 60))
    for name in ("top", "left", "height", "width"):
        a = torch.tensor([float(d[name]) for d in drawn]).sort().values
        b = getattr(p, name)[:4000].sort().values
        grid = torch.arange(61.0)
        distance = (torch.searchsorted(a, grid) - torch.searchsorted(b, grid)).abs().max() / 4000
        assert distance < 0.055, name  # Kolmogorov and Smirnov, one in a million


def test_narrow_images_fall_back_to_the_centre_as_torchvisions_do():
    p = sample(RandomResizedCrop(8, (1, 1)), size=(10, 100))
    assert {*p.height.tolist()} == {10} and {*p.width.tolist()} == {13} and {*p.left.tolist()} == {43}
    p = sample(RandomResizedCrop(8, (1, 1)), size=(100, 10))
    assert {*p.width.tolist()} == {10} and {*p.height.tolist()} == {13} and {*p.top.tolist()} == {43}


def test_a_random_crop_is_at_every_place_as_often():
    p = sample(RandomCrop(10), size=(14, 12))
    assert {*p.height.tolist()} == {10} == {*p.width.tolist()}
    for place in range(5):
        assert_share(p.top == place, 1 / 5)
    for place in range(3):
        assert_share(p.left == place, 1 / 3)
    p = sample(RandomCrop(10), size=(8, 30))
    assert {*p.height.tolist()} == {8} and {*p.width.tolist()} == {10}


def test_steps_are_as_often_as_their_probability_says_and_independent():
    p = sample(
        RandomResizedCrop(8),
        RandomHorizontalFlip(0.3),
        RandomVerticalFlip(0.6),
        RandomQuarterTurn(0.75),
        ColorJitter(0.4, p=0.8),
        RandomGrayscale(0.2),
        RandomSolarize(0.5, 0.1),
        GaussianBlur(3, p=0.5),
        RandomRotation(10, p=0.25),
        Cutout(0.7),
        GaussianNoise(p=0.9),
        Sobel(0.05),
    )
    turns = p.quarter_turns
    happened = {
        0.3: p.horizontal_flip != 0,
        0.6: p.vertical_flip != 0,
        0.75: turns != 0,
        0.8: p.applied("brightness"),
        0.2: p.applied("grayscale"),
        0.1: p.applied("solarize"),
        0.5: p.applied("blur"),
        0.25: p.applied("rotate"),
        0.9: p.applied("noise"),
        0.05: p.applied("sobel"),
    }
    for probability, there in happened.items():
        assert_share(there, probability)
    for turn in (1, 2, 3):
        assert_share(turns == turn, 0.25)
    together = torch.stack([there.float() for there in happened.values()])
    assert torch.corrcoef(together).fill_diagonal_(0).abs().max() < 0.036  # five standard deviations


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_never_and_always(p):
    drawn = sample(RandomHorizontalFlip(p), RandomGrayscale(p), RandomApply([Sobel()], p))
    assert (drawn.horizontal_flip == p).all()
    assert (drawn.applied("grayscale") == bool(p)).all() and (drawn.applied("sobel") == bool(p)).all()


def test_colours_change_by_uniform_amounts_in_all_orders():
    p = sample(ColorJitter(0.4, (0.3, 3), 1.5, 0.1))
    assert_uniform(p.values("brightness", "factor"), 0.6, 1.4)
    assert_uniform(p.values("contrast", "factor"), 0.3, 3)
    assert_uniform(p.values("saturation", "factor"), 0, 2.5)
    assert_uniform(p.values("hue", "turns"), -0.1, 0.1)
    orders, counts = p.codes.unique(dim=0, return_counts=True)
    assert len(orders) == 24
    assert ((counts - MANY / 24) ** 2 / (MANY / 24)).sum() < 80  # chi-square, 23 degrees of freedom


def test_neutral_colours_leave_no_step():
    p = sample(ColorJitter(contrast=0.4))
    assert (p.codes != 0).sum(1).eq(1).all() and p.applied("contrast").all()


def test_numbers_of_the_other_steps_are_uniform_in_their_range():
    p = sample(
        GaussianBlur(5, (0.1, 2.0)), RandomRotation((-20, 40), "bilinear", 0.3), RandomSolarize(0.25, p=1.0),
        GaussianNoise(0.5, 0.2, clip=False),
    )  # fmt: skip
    assert_uniform(p.values("blur", "sigma"), 0.1, 2.0)
    assert_uniform(p.values("rotate", "degrees"), -20, 40)
    for name, number, value in (
        ("blur", "kernel_size", 5), ("rotate", "bilinear", 1), ("rotate", "fill", 0.3), ("solarize", "threshold", 0.25),
        ("noise", "mean", 0.5), ("noise", "sigma", 0.2), ("noise", "clip", 0),
    ):  # fmt: skip
        torch.testing.assert_close(p.values(name, number), torch.full((MANY,), float(value)))
    keys = torch.stack([p.values("noise", "key0"), p.values("noise", "key1")], 1)
    assert_uniform(keys[:, 0], 0, 2**24)
    assert len(keys.unique(dim=0)) == MANY


def test_boxes_have_uniform_areas_log_uniform_ratios_and_uniform_places():
    p = sample(Cutout(1.0, (0.05, 0.2), (0.5, 2.0)), size=(2000, 2000))
    top, left, height, width = (p.values("cutout", key).double() for key in ("top", "left", "height", "width"))
    assert_uniform(height * width / 2000**2, 0.05, 0.2)
    assert_uniform((height / width).log(), math.log(0.5), math.log(2))
    assert_uniform(top / (2000 - height), 0, 1)
    assert_uniform(left / (2000 - width), 0, 1)
    assert (p.values("cutout", "value") < 0).all()
    assert not sample(Cutout(1.0, (1, 1), (1, 1))).applied("cutout").any()


def test_grouped_steps_are_applied_together_and_what_is_random_in_them_as_often_as_it_says():
    p = sample(RandomApply([GaussianBlur(3), RandomGrayscale(0.25), RandomVerticalFlip(1.0)], p=0.4))
    blur, gray = p.applied("blur"), p.applied("grayscale")
    assert_share(blur, 0.4)
    assert_share(gray, 0.1)
    assert not (gray & ~blur).any()
    assert torch.equal(p.vertical_flip != 0, blur)
    nested = sample(
        RandomHorizontalFlip(), RandomApply([Sobel(), RandomApply([RandomGrayscale(1.0), GaussianBlur(3)])])
    )
    assert_share(nested.applied("sobel"), 0.5)
    assert_share(nested.applied("blur"), 0.25)
    assert torch.equal(nested.applied("blur"), nested.applied("grayscale"))
    free = sample(RandomApply([RandomGrayscale(0.5), GaussianBlur(3, p=0.5)], p=1.0))
    assert_share(free.applied("grayscale") & free.applied("blur"), 0.25)


# Reading, changing, giving back

VIEW = Compose([
    RandomResizedCrop(16), RandomHorizontalFlip(), ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8), RandomGrayscale(0.2),
    GaussianBlur(3, p=0.5),
])  # fmt: skip
IMAGES = torch.randint(0, 256, (12, 3, 24, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_parameters_given_back_make_the_same_views():
    transform = MultiViewTransform([VIEW, VIEW])
    views, drawn = transform(IMAGES, seed=1, return_parameters=True)
    sampled = transform.sample(IMAGES, seed=1)
    for view, made, again in zip(views, transform.apply(IMAGES, drawn), transform.apply(IMAGES, sampled), strict=True):
        assert torch.equal(view, made) and torch.equal(view, again)
    view, one = VIEW(IMAGES, seed=1, return_parameters=True)
    assert torch.equal(VIEW.apply(IMAGES, one), view)
    assert torch.equal(VIEW.apply(IMAGES[4:6], one[4:6]), view[4:6])


def test_parameters_can_be_drawn_from_sizes_alone():
    index = torch.arange(12)
    expected = VIEW.sample(IMAGES, seed=1).records
    assert torch.equal(VIEW.sample((24, 20), seed=1, index=index).records, expected)
    assert torch.equal(VIEW.sample(torch.tensor([[24, 20]] * 12), seed=1).records, expected)
    assert torch.equal(VIEW.sample(list(IMAGES), seed=1).records, expected)
    with pytest.raises(ValueError, match=r"index must be given with one size \(24, 20\)"):
        VIEW.sample((24, 20), seed=1)


def test_changed_parameters_make_changed_views():
    p = VIEW.sample(IMAGES, seed=1)
    assert p.applied("blur").any()
    before = VIEW.apply(IMAGES, p)
    flipped = p.clone()
    flipped.horizontal_flip[:] = 1 - flipped.horizontal_flip
    flipped.quarter_turns[:3] = 2
    changed = VIEW.apply(IMAGES, flipped)
    torch.testing.assert_close(changed[3:], before[3:].flip(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(changed[:3], before[:3].flip(-2), atol=1e-5, rtol=0)
    assert torch.equal(VIEW.apply(IMAGES, p), before)

    calm = p.clone()
    for name, number in (("brightness", "factor"), ("contrast", "factor"), ("saturation", "factor")):
        calm.change(name, **{number: 1.0})
    calm.change("hue", turns=torch.zeros(12))
    calm.change("blur", sigma=1e-4)
    torch.testing.assert_close(calm.values("hue", "turns")[p.applied("hue")], torch.zeros(int(p.applied("hue").sum())))
    plain = p.clone()
    plain.records[:, 8:] = 0
    plain.records[:, 8] = 5 * p.applied("grayscale")
    torch.testing.assert_close(VIEW.apply(IMAGES, calm), VIEW.apply(IMAGES, plain), atol=2e-5, rtol=0)


def test_more_steps_may_be_added_than_the_view_draws():
    p = RandomResizedCrop(16).sample(IMAGES, seed=1)
    contrast = torch.tensor([2.0, 0.5, 0, 0, 0, 0]).expand(12, -1)
    longer = ViewParameters(torch.cat([p.records, contrast, contrast, contrast], 1))
    x = RandomResizedCrop(16).apply(IMAGES, longer)
    spread = RandomResizedCrop(16).apply(IMAGES, p)
    torch.testing.assert_close(x.std((1, 2, 3)) * 8, spread.std((1, 2, 3)), atol=0.05, rtol=0.2)


def test_parameters_read_like_what_happens():
    p = ViewParameters(torch.zeros(2, 26))
    p.top[0], p.left[0], p.height[:], p.width[:] = 3, 4, 20, 10
    p.horizontal_flip[0], p.quarter_turns[0] = 1, 3
    p.records[0, 8:11] = torch.tensor([7, 0.75, 5])
    p.records[0, 20] = 5
    assert repr(p) == "ViewParameters(2 images, up to 3 steps)"
    assert str(p[0]) == (
        "ViewParameters(crop 20 x 10 at (3, 4); horizontal flip; turn by 270 degrees; "
        "blur(sigma 0.75, kernel_size 5); grayscale)"
    )
    assert str(p[-1]) == "ViewParameters(crop 20 x 10 at (0, 0))"
    assert p.steps(0) == [("blur", {"sigma": 0.75, "kernel_size": 5}), ("grayscale", {})]
    assert p.steps(1) == []
    assert len(p) == 2 and [len(one) for one in p] == [1, 1]
    assert p.values("blur", "sigma")[0] == 0.75 and p.values("blur", "sigma")[1].isnan()
    assert ViewParameters(p.records[:, :8]).values("blur", "sigma").isnan().all()
    with pytest.raises(IndexError):
        p[2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.applied("blurr"), "a step is one of brightness, contrast, .* got 'blurr'"),
        (lambda p: p.values("blur", "radius"), "blur has sigma, kernel_size, got 'radius'"),
        (lambda p: p.change("sobel", sigma=1), "sobel has no numbers, got 'sigma'"),
        (lambda p: VIEW.apply(IMAGES[:1], p), "parameters must be float32"),
        (lambda p: MultiViewTransform([VIEW, VIEW]).apply(IMAGES, [p]), "for each of 2 views, got 1"),
    ],
)
def test_a_bad_name_or_number_of_parameters_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(VIEW.sample(IMAGES, seed=0))


def test_only_parameters_are_parameters():
    with pytest.raises(TypeError, match="parameters must be what sample returns, got Tensor"):
        MultiViewTransform([VIEW]).apply(IMAGES, torch.zeros(12, 44))
    with pytest.raises(TypeError, match="parameters must be what sample returns"):
        VIEW.apply(IMAGES, torch.zeros(12, 44))


def test_going_through_the_parts_of_a_model_still_works():
    seen = []
    model = torch.nn.Sequential(MultiViewTransform([VIEW]), torch.nn.Linear(2, 2))
    model.apply(lambda module: seen.append(type(module).__name__))
    assert {"MultiViewTransform", "Compose", "GaussianBlur", "Linear"} <= set(seen)
    assert copy.deepcopy(model)[0].state_dict() == {}


@pytest.mark.parametrize(
    ("transforms", "most"),
    [
        ([RandomGrayscale(), Cutout(), GaussianNoise(), RandomSolarize(0.5), ColorJitter(0.4, 0, 0.4, 0.1)], 0),
        ([ColorJitter(contrast=0.4, p=0.5), GaussianBlur(3, p=0.5)], 2),
        ([RandomApply([Sobel(), RandomRotation(9), GaussianBlur(3)]), GaussianBlur(3), ColorJitter(contrast=0.1)], 5),
        ([Sobel(0.0), GaussianBlur(3, p=0.0)], 0),
    ],
)
def test_the_bound_on_contrast_and_neighbourhood_steps_is_what_the_fullest_image_has(transforms, most):
    barriers = torch.tensor([2, 7, 8, 11])  # contrast, blur, rotate, Sobel
    assert torch.isin(sample(*transforms).codes, barriers).sum(1).max() == most
    assert Compose(transforms).plans()[0].passes == most
