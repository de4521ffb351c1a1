"""Maps over the patches of an image: enlarged to pixels, coloured, and cut where they hold a share of their mass."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Interpolation = Literal["nearest", "bilinear"]


def enlarge(maps: Tensor, size: int, interpolation: Interpolation = "nearest") -> Tensor:
    """Maps [..., rows, columns] as [..., size, size]."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:]).double()
    options = {} if interpolation == "nearest" else {"align_corners": False}
    large = F.interpolate(flat, (size, size), mode=interpolation, **options)  # type: ignore[arg-type]
    return large.reshape(*maps.shape[:-2], size, size)


def heat(map_: Tensor) -> np.ndarray:
    """Colours from dark blue at the smallest to yellow at the largest value (matplotlib's viridis), uint8 [h, w, 3].

    A map that is the same everywhere has the darkest colour.
    """
    from matplotlib import colormaps

    low, high = map_.min(), map_.max()
    unit = (map_ - low) / (high - low) if high > low else torch.zeros_like(map_)
    return colormaps["viridis"](unit.numpy(), bytes=True)[..., :3]


def keep_mass(maps: Tensor, share: float) -> Tensor:
    """Whether a patch is among the fewest that hold `share` of a map's sum, bool [..., rows, columns]."""
    flat = maps.flatten(-2)
    ordered, order = flat.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered  # what the larger ones hold
    kept = before < share * flat.sum(-1, keepdim=True)
    return torch.zeros_like(kept).scatter(-1, order, kept).view_as(maps)
