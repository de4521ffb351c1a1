"""Moves of masked image modelling: against the formulas of facebookresearch/mae, and against the definition."""

from __future__ import annotations

import pytest
import torch
from harness import BACKENDS, serving
from torch import Tensor

from fastssl import functional

OPERATIONS = ["random_masks", "masks_from_noise", "visible_patches", "gather_tokens", "unshuffle_tokens"]


def published_masking(x: Tensor, mask_ratio: float, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``random_masking`` as He et al. publish it, with given noise."""
    keep = int(x.shape[1] * (1 - mask_ratio))
    order = noise.argsort(dim=1, stable=True)
    restore = order.argsort(dim=1)
    mask = torch.ones(noise.shape, device=x.device)
    mask[:, :keep] = 0
    return x.gather(1, order[:, :keep, None].expand(-1, -1, x.shape[2])), mask.gather(1, restore), restore


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize(("length", "ratio"), [(196, 0.75), (7, 0.0), (1, 0.5), (257, 0.9)])
def test_masks_equal_the_published_ones(backend: str, device: str, length: int, ratio: float) -> None:
    noise = torch.rand(3, length, device=device)
    noise[:, length // 2 :] = noise[:, : (length + 1) // 2]  # equal ones
    noise[0, 0] = torch.nan
    if int(length * (1 - ratio)) == 0:
        with pytest.raises(ValueError, match="mask_ratio must leave a patch"):
            functional.masks_from_noise(noise, mask_ratio=ratio)
        return
    x = torch.randn(3, length, 8, device=device)
    with serving(backend, device, noise.dtype, "masks_from_noise"):
        masks = functional.masks_from_noise(noise, mask_ratio=ratio)
        tokens = functional.gather_tokens(x, masks.keep)
    for got, wanted in zip((tokens, masks.mask, masks.restore), published_masking(x, ratio, noise), strict=True):
        assert torch.equal(got, wanted)
