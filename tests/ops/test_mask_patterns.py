"""Masks with a shape: counts, keys, and the distributions of the published generators."""

from __future__ import annotations

import math
import random

import pytest
import torch

from fastssl import functional
from fastssl.compat import mae
from fastssl.models import masking

IMAGES = 600


def published_blocks(height, width, count, smallest, aspect=0.3):
    """One mask of BEiT's generator, written from algorithm 1 and its published parameters."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    while (missing := count - int(mask.sum())) > 0:
        for _ in range(10):
            area, ratio = (
                random.uniform(smallest, missing),
                math.exp(random.uniform(math.log(aspect), -math.log(aspect))),
            )
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if h < height and w < width:
                top, left = random.randint(0, height - h), random.randint(0, width - w)
                new = h * w - int(mask[top : top + h, left : left + w].sum())
                if 0 < new <= missing:
                    mask[top : top + h, left : left + w] = True
                    break
        else:
            break
    return mask


def test_block_masks_have_the_published_distribution():
    random.seed(0)
    published = torch.stack([published_blocks(14, 14, 75, 16) for _ in range(IMAGES)])
    masks = functional.block_masks(torch.arange(IMAGES), (14, 14), count=75, min_patches=16, seed=0)
    for ours, theirs in ((masks, published), (masks.mT, published.mT)):
        a, b = ours.sum((1, 2)).double(), theirs.sum((1, 2)).double()
        assert a.max() <= 75 and abs(a.mean() - b.mean()) < 5 * float((a.var() + b.var()) / IMAGES) ** 0.5
        difference = (ours.double().mean(0) - theirs.double().mean(0)).abs()
        assert difference.max() < 5 * (0.5 / IMAGES) ** 0.5
        edges = [(m[:, 1:] != m[:, :-1]).sum((1, 2)).double() for m in (ours, theirs)]  # how broken up blocks are
        assert abs(edges[0].mean() - edges[1].mean()) < 5 * float((edges[0].var() + edges[1].var()) / IMAGES) ** 0.5


@pytest.mark.parametrize("grid", [(14, 14), (7, 12), (3, 2), (1, 1)])
def test_exact_counts_and_keys(grid):
    patches = grid[0] * grid[1]
    index = torch.tensor([3, 9, 4, 4])
    counts = torch.tensor([0, patches, patches // 2, patches // 2])
    key = {"seed": 5, "epoch": 2, "view": 1}
    masks = functional.block_masks(index, grid, count=counts, exact=True, **key)
    assert masks.shape == (4, *grid) and torch.equal(masks.sum((1, 2)), counts) and torch.equal(masks[2], masks[3])
    assert torch.equal(functional.block_masks(index[2:3], grid, count=counts[2:3], exact=True, **key), masks[2:3])
    at_most = functional.block_masks(index, grid, count=counts, **key)
    assert (at_most.sum((1, 2)) <= counts).all() and not (at_most & ~masks).any()


def test_counts_of_a_batch_share_out_the_ratios():
    index = torch.arange(100, 164)
    counts = functional.masked_counts(index, 1000, share=0.5, ratio=(0.1, 0.5), seed=1)
    masked = counts[counts > 0].sort().values
    assert len(masked) == 32 and not torch.equal(counts, functional.masked_counts(index, 1000, seed=2))
    bounds = 1000 * torch.linspace(0.1, 0.5, 33)
    assert (masked >= bounds[:-1].floor()).all() and (masked <= bounds[1:]).all()
    order = torch.randperm(64)
    assert torch.equal(functional.masked_counts(index[order], 1000, seed=1), counts[order])


@pytest.mark.parametrize("grid", [(14, 14), (16, 10)])
def test_targets_and_their_context(grid):
    index, patches = torch.arange(IMAGES), grid[0] * grid[1]
    masks = functional.target_masks(index, grid, batch=3, seed=0)
    assert masks.targets.shape[:2] == (IMAGES, 4) and masks.context.shape[1] > 10
    rows, columns = masks.targets // grid[1], masks.targets % grid[1]
    h, w = (int(x[0, 0].max() - x[0, 0].min()) + 1 for x in (rows, columns))
    assert h * w == masks.targets.shape[2] and 0.12 < h * w / patches < 0.24 and 0.6 < h / w < 1.8
    for side, places in ((h, rows), (w, columns)):
        assert (places.amax(2) - places.amin(2) == side - 1).all()
    seen = torch.zeros(IMAGES, patches).scatter_(1, masks.targets.flatten(1), 1.0)
    assert seen.mean(0).min() > 0  # every patch can be a target, the last ones too
    assert not seen.gather(1, masks.context).any() and (masks.context.diff(dim=1) > 0).all()
    tops = rows.amin(2).flatten().bincount(minlength=grid[0] - h + 1) / (4 * IMAGES)
    assert (tops - 1 / (grid[0] - h + 1)).abs().max() < 0.04  # uniform
    again = functional.target_masks(index[5:9], grid, batch=3, seed=0)
    assert torch.equal(again.targets, masks.targets[5:9])
    sizes = {functional.target_masks(index[:2], grid, batch=n, seed=0).targets.shape[2] for n in range(20)}
    assert len(sizes) > 1


def test_a_context_gives_up_targets_where_nothing_is_left():
    masks = functional.target_masks(torch.arange(8), (6, 6), batch=0, targets=8, target_scale=(0.5, 0.6), seed=0)
    assert masks.context.shape[1] > 10


def test_units_and_grids():
    masks = functional.unit_masks(torch.arange(50), (12, 8), unit=(4, 2), mask_ratio=0.6, seed=3)
    assert masks.shape == (50, 12, 8) and (masks.sum((1, 2)) == 8 * math.ceil(0.6 * 12)).all()
    units = masks.unflatten(2, (4, 2)).unflatten(1, (3, 4)).transpose(2, 3).flatten(3)
    assert torch.equal(units.any(3), units.all(3))
    assert functional.grid_mask((14, 14)).sum() == 147 and functional.grid_mask((3, 5), 3).sum() == 13


@pytest.mark.parametrize("alpha", [0.3, 1.0, 5.0])
def test_shares_of_modalities_are_dirichlet(alpha):
    images, lengths, keep = 3000, (196, 196, 100), 98
    masks = functional.modality_masks(torch.arange(images), lengths, keep=keep, alpha=alpha, seed=0)
    assert masks.keep.shape == (images, keep) and (masks.mask.sum(1) == sum(lengths) - keep).all()
    visible = torch.stack([(1 - part).sum(1) for part in masks.mask.split(lengths, 1)], 1).double()
    share = visible[:, 0] / keep  # of a modality that has tokens enough
    mean, variance = 1 / 3, 2 / 9 / (3 * alpha + 1)
    if alpha >= 1:  # else one modality alone may be asked for more than the last one has
        assert abs(float(share.mean()) - mean) < 5 * (variance / images) ** 0.5
    assert abs(float(share.var()) / variance - 1) < 0.15
    within = 1 - masks.mask[:, :196]
    assert (within.mean(0) - within.mean()).abs().max() < 0.05  # any patch of a modality


def test_the_published_masking_with_the_same_seed():
    x = torch.randn(4, 50, 8)
    torch.manual_seed(1)
    tokens, mask, restore = mae.random_masking(x, 0.75)
    torch.manual_seed(1)
    noise = torch.rand(4, 50)
    order = noise.argsort(1)
    assert torch.equal(restore, order.argsort(1))
    assert torch.equal(tokens, x.gather(1, order[:, :12, None].expand(-1, -1, 8)))
    assert torch.equal(mask, (restore >= 12).float())


def test_lightlys_utilities():
    utils = pytest.importorskip("lightly.models.utils")
    tokens, value, token = torch.randn(3, 9, 4), torch.randn(3, 2, 4), torch.randn(1, 1, 4)
    index = torch.tensor([[1, 4], [0, 8], [7, 2]])
    mask = torch.rand(3, 9) < 0.5
    for name, arguments in {
        "repeat_token": (token, (3, 5)), "expand_index_like": (index, tokens), "get_at_index": (tokens, index),
        "set_at_index": (tokens, index, value), "mask_at_index": (tokens, index, token),
        "mask_bool": (tokens, mask, token), "prepend_class_token": (tokens, token),
        "patchify": (torch.randn(2, 3, 8, 8), 4), "unpatchify": (torch.randn(2, 4, 48), 4),
    }.items():  # fmt: skip
        assert torch.equal(getattr(masking, name)(*arguments), getattr(utils, name)(*arguments)), name
    assert torch.equal(masking.apply_masks(tokens, index), utils.apply_masks(tokens, index))
    assert torch.equal(masking.apply_masks(tokens, [index, index % 3]), utils.apply_masks(tokens, [index, index % 3]))
    assert masking.patchify(torch.randn(1, 3, 8, 12), 4).shape == (1, 6, 48)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("random_token_mask", {"size": (4, 50)}),
        ("random_token_mask", {"size": (4, 50), "mask_ratio": 0.9}),
        ("random_token_mask", {"size": (4, 50), "mask_class_token": True}),
        ("random_grid_token_mask", {"size": (4, 65)}),
        ("random_grid_token_mask", {"size": (3, 36), "grid_size": 3, "num_prefix_tokens": 0, "mask_ratio": 0.4}),
        ("random_grid_token_mask", {"size": (3, 20), "grid_size": 1, "num_prefix_tokens": 4, "mask_ratio": 0.0}),
        ("random_prefix_mask", {"size": (6, 9), "max_prefix_length": 5}),
    ],
)
def test_lightlys_masks_with_the_same_seed(name, arguments):
    utils = pytest.importorskip("lightly.models.utils")
    if not hasattr(utils, name):
        pytest.skip(f"this lightly has no {name}")
    results = []
    for module in (masking, utils):
        torch.manual_seed(2)
        made = getattr(module, name)(**arguments)
        results.append(made if isinstance(made, tuple) else (made,))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(*results, strict=True))


def test_lightlys_block_masks():
    blocks = masking.random_block_mask((8, 14, 14), max_attempts_per_block=3)
    assert blocks.shape == (8, 14, 14) and (blocks.sum((1, 2)) > 0).sum() == 4
    for count in (0, 20, 196):
        mask = masking.random_block_mask_image((14, 14), count)
        assert mask.shape == (14, 14) and mask.dtype == torch.bool and count // 2 <= mask.sum() <= count
    one = masking.random_block_mask_image((14, 14), 20, min_num_masks_per_block=20, max_attempts_per_block=1)
    assert one.sum() in (0, *range(16, 21))  # one block, of rounded sides, or none


@pytest.mark.parametrize(
    "settings",
    [{}, {"roll": False, "num_prefix_tokens": 0}, {"mask_ratio": 0.9, "min_aspect": 0.2, "max_aspect": 0.3},
     {"mask_ratio": 0.0}, {"mask_ratio": 1.0}],
)  # fmt: skip
def test_inverse_block_masks_have_lightlys_distribution(settings):
    utils = pytest.importorskip("lightly.models.utils")
    if not hasattr(utils, "random_inverse_block_mask"):
        pytest.skip("this lightly has no random_inverse_block_mask")
    prefix = settings.get("num_prefix_tokens", 1)
    size = (IMAGES, prefix + 64)
    grids, shapes = [], []
    for module in (masking, utils):
        keep, masked = module.random_inverse_block_mask(size, **settings)
        assert torch.equal(torch.cat([keep, masked], 1).sort(1).values, torch.arange(size[1]).expand(size))
        assert torch.equal(keep[:, :prefix], torch.arange(prefix).expand(IMAGES, -1))
        kept = torch.zeros(size, dtype=torch.bool).scatter_(1, keep, True)[:, prefix:].unflatten(1, (8, 8))
        grids.append(kept)
        shapes.append((keep.shape, masked.shape))
    assert shapes[0] == shapes[1]
    difference = (grids[0].double().mean(0) - grids[1].double().mean(0)).abs()
    assert difference.max() < 5 * (0.5 / IMAGES) ** 0.5
    for along in (1, 2):  # how many rows and columns have a patch
        a, b = (grid.any(along).sum(1).double() for grid in grids)
        assert abs(a.mean() - b.mean()) <= 5 * float((a.var() + b.var()) / IMAGES) ** 0.5


INDEX = torch.arange(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: functional.block_masks(INDEX, (4, 4), count=17, seed=0), "count must be at most .* 16, got 17"),
        (lambda: functional.block_masks(INDEX, (4, 4), count=3, aspect=(2, 1), seed=0), "aspect must be an interval"),
        (lambda: functional.block_masks(INDEX, (0, 4), count=0, seed=0), "grid must be at least 1, got 0"),
        (lambda: functional.block_masks(INDEX.float(), (4, 4), count=1, seed=0), "index must be int64"),
        (lambda: functional.target_masks(INDEX, (4, 4), batch=-1, seed=0), "batch must be at least 0"),
        (lambda: functional.unit_masks(INDEX, (4, 4), unit=3, mask_ratio=0.5, seed=0), "unit must divide the grid"),
        (lambda: functional.modality_masks(INDEX, [], keep=1, seed=0), "lengths must have a number"),
        (lambda: functional.modality_masks(INDEX, [4], keep=5, seed=0), "keep must be at most"),
        (lambda: functional.block_masks(INDEX, (4, 4), count=3, attempts=0, seed=0), "attempts must be at least 1"),
        (lambda: masking.random_grid_token_mask((2, 51)), "random_grid_token_mask: size must be .* got 51 tokens"),
        (lambda: masking.random_grid_token_mask((2, 50), grid_size=4), "grid_size must divide .* 7, got 4"),
        (lambda: masking.random_inverse_block_mask((2, 1)), "random_inverse_block_mask: size must be"),
        (lambda: masking.random_inverse_block_mask((2, 50), min_aspect=2.0), "max_aspect must be at least min_aspect"),
        (lambda: masking.random_prefix_mask((2, 5), 0), "max_prefix_length must be at least 1, got 0"),
        (lambda: masking.patchify(torch.zeros(1, 3, 9, 8), 4), "sides divisible by 4"),
        (lambda: masking.unpatchify(torch.zeros(1, 3, 48), 4), "unpatchify: patches must be"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
