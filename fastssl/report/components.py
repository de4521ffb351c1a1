"""Principal components of the features of patches, as colours.

Oquab et al. 2023 (DINOv2, arXiv 2304.07193), figure 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Components(NamedTuple):
    """The directions of largest variance.

    Attributes:
        scores: float64 [P, count], what each row has of each; 0 for components that there are not.
        directions: float64 [count, D], of length 1; the entry that is largest in size is positive.
        share: float64 [count], of the variance, in [0, 1].
    """

    scores: Tensor
    directions: Tensor
    share: Tensor


def principal_components(x: Tensor, count: int = 3) -> Components:
    """Principal components of rows, in float64, with signs that are always the same.

    Args:
        x: [P, D].
        count: how many, from the largest on.

    Raises:
        ValueError: if `x` has no rows or numbers that are not finite.
    """
    if x.ndim != 2 or not len(x) or not x.isfinite().all():
        problem = "numbers that are not finite" if x.ndim == 2 and len(x) else f"the shape {tuple(x.shape)}"
        raise ValueError(f"principal_components: x must be finite [P, D] with P >= 1, got {problem}")
    x = x.double()
    centered = x - x.mean(0)
    variances, vectors = torch.linalg.eigh(centered.mT @ centered)  # ascending
    kept = min(count, x.shape[1])
    directions = x.new_zeros(count, x.shape[1])
    directions[:kept] = vectors.mT.flip(0)[:kept]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * torch.where(largest < 0, -1.0, 1.0)
    share = x.new_zeros(count)
    if (total := variances.clamp(min=0).sum()) > 0:
        share[:kept] = variances.clamp(min=0).flip(0)[:kept] / total
    return Components(centered @ directions.mT, directions, share)


def foreground(x: Tensor, border: Tensor) -> Tensor:
    """Patches on the inner side of the first component: where images have one subject, it is the subject.

    Which side is the inner one: the one to which fewer of the patches at the borders of images belong.

    Args:
        x: [P, D], patches of all images.
        border: bool [P], whether a patch lies at the border of its image.

    Returns:
        bool [P].
    """
    first = principal_components(x, 1).scores[:, 0]
    return first > 0 if first[border].mean() <= first[~border].mean() else first < 0


def as_colors(scores: Tensor) -> Tensor:
    """Scores [P, 3] as red, green and blue, uint8 [P, 3].

    Each component is stretched over all rows so that its 1st to 99th percentile fill the range: without the few
    patches beyond, which would leave all others alike. One that does not vary becomes a medium value.
    """
    if not len(scores):
        return torch.zeros(0, 3, dtype=torch.uint8)
    low, high = torch.quantile(scores, torch.tensor([0.01, 0.99], dtype=scores.dtype), dim=0)
    width = high - low
    flat = width <= 1e-6 * scores.abs().max()  # rounding, of a component that there is not
    unit = ((scores - low) / torch.where(flat, 1.0, width)).clamp(0, 1)
    return (torch.where(flat, 0.5, unit) * 255).round().byte()
