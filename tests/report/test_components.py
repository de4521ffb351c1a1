"""Principal components and colours, masks of mass, maps enlarged."""

import numpy as np
import pytest
import torch

from fastssl.report.components import as_colors, foreground, principal_components
from fastssl.report.heat import enlarge, heat, keep_mass


def test_components_are_those_of_a_singular_value_decomposition():
    x = np.random.default_rng(0).normal(size=(50, 7)) * np.arange(1, 8) + 3
    found = principal_components(torch.tensor(x), 3)
    left, values, right = np.linalg.svd(x - x.mean(0), full_matrices=False)
    signs = np.sign(right[np.arange(7), np.abs(right).argmax(1)])[:, None]
    np.testing.assert_allclose(found.directions.numpy(), (signs * right)[:3], atol=1e-10)
    np.testing.assert_allclose(found.scores.numpy(), (left * values * signs[:, 0])[:, :3], atol=1e-10)
    np.testing.assert_allclose(found.share.numpy(), (values**2 / (values**2).sum())[:3], atol=1e-12)


def test_signs_do_not_depend_on_the_order_of_rows():
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    found, again = principal_components(x), principal_components(x[order])
    torch.testing.assert_close(found.directions, again.directions)
    torch.testing.assert_close(found.scores[order], again.scores)


@pytest.mark.parametrize("shape", [(1, 4), (2, 4), (10, 2), (10, 1)])
def test_what_there_is_not_is_zero(shape):
    found = principal_components(torch.randn(shape, generator=torch.Generator().manual_seed(0)), 3)
    assert found.scores.shape == (shape[0], 3) and found.scores.isfinite().all() and found.share.isfinite().all()
    rank = min(shape[0] - 1, shape[1])
    assert found.scores[:, rank:].abs().max() < 1e-6
    assert as_colors(found.scores)[:, rank:].eq(128).all()


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"x must be finite .* got numbers that are not finite"):
        principal_components(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match=r"got the shape \(0, 3\)"):
        principal_components(torch.zeros(0, 3))


def test_colors_fill_the_range_whatever_a_few_patches_do():
    scores = torch.linspace(-1, 1, 1000).double()[:, None].repeat(1, 3)
    scores[0] = -1000
    colors = as_colors(scores)
    assert colors.dtype == torch.uint8 and colors[500, 0] in range(120, 136)
    assert colors[5].eq(0).all() and colors[-5].eq(255).all()


def test_the_foreground_is_what_the_borders_are_not():
    generator = torch.Generator().manual_seed(0)
    inner = torch.zeros(3, 6, 6, dtype=torch.bool)
    inner[:, 2:4, 2:4] = True
    border = torch.ones(3, 6, 6, dtype=torch.bool)
    border[:, 1:-1, 1:-1] = False
    for sign in (1, -1):
        x = torch.randn(108, 8, generator=generator) * 0.01
        x[inner.flatten()] += sign * 5
        assert torch.equal(foreground(x, border.flatten()), inner.flatten())


def test_a_mask_holds_its_share_in_the_fewest_patches():
    map_ = torch.tensor([[0.4, 0.05, 0.1], [0.25, 0.15, 0.05]])
    assert keep_mass(map_, 0.6).tolist() == [[True, False, False], [True, False, False]]  # 0.65
    assert keep_mass(map_, 0.66).sum() == 3 and keep_mass(map_, 0.39).sum() == 1
    maps = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    kept = keep_mass(maps, 0.6)
    for map_, mask in zip(maps.flatten(0, 1), kept.flatten(0, 1), strict=True):
        held = map_[mask].sum() / map_.sum()
        assert held >= 0.6 and held - map_[mask].min() / map_.sum() < 0.6
        assert map_[mask].min() > map_[~mask].max()


def test_maps_are_enlarged_patch_by_patch_or_smoothly():
    map_ = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    assert torch.equal(enlarge(map_, 4), map_.double().repeat_interleave(2, 0).repeat_interleave(2, 1))
    smooth = enlarge(map_, 4, "bilinear")
    assert smooth[0].tolist() == [0.0, 0.25, 0.75, 1.0]


def test_colours_go_from_the_smallest_to_the_largest_value():
    colors = heat(torch.tensor([[0.2, 0.3], [0.4, 0.6]]).double())
    assert colors.dtype == np.uint8 and colors.shape == (2, 2, 3)
    assert colors[0, 0].tolist() == [68, 1, 84] and colors[1, 1].tolist() == [253, 231, 36]  # viridis
    assert (heat(torch.ones(2, 2).double()) == colors[0, 0]).all()
