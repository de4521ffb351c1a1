"""The augmentations of methods that cut several views of different sizes from an image, with lightly's arguments.

Arguments that are not explained here: see :mod:`fastssl.augment.presets`.
"""

from __future__ import annotations

from .compose import MultiViewTransform
from .presets import IMAGENET_NORMALIZE, Degrees, Range, Statistics, _View


class SwAVTransform(MultiViewTransform):
    """The crops of SwAV: Caron et al. 2020 (arXiv 2006.09882): two of 224 and six of 96 pixels, the paper's defaults.

    Args:
        crop_sizes: side in pixels for each kind of crop.
        crop_counts: how many of each kind.
        crop_min_scales: smallest area of each kind, as a share of the image.
        crop_max_scales: largest area of each kind.
        hf_prob: as the others, see :mod:`fastssl.augment.presets`.

    Raises:
        ValueError: if the tuples differ in length or a number is out of range.
    """

    def __init__(
        self,
        crop_sizes: tuple[int, ...] = (224, 96),
        crop_counts: tuple[int, ...] = (2, 6),
        crop_min_scales: tuple[float, ...] = (0.14, 0.05),
        crop_max_scales: tuple[float, ...] = (1.0, 0.14),
        hf_prob: float = 0.5,
        vf_prob: float = 0.0,
        rr_prob: float = 0.0,
        rr_degrees: Degrees = None,
        cj_prob: float = 0.8,
        cj_strength: float = 1.0,
        cj_bright: float = 0.8,
        cj_contrast: float = 0.8,
        cj_sat: float = 0.8,
        cj_hue: float = 0.2,
        random_gray_scale: float = 0.2,
        gaussian_blur: float = 0.5,
        sigmas: Range = (0.1, 2),
        normalize: Statistics = IMAGENET_NORMALIZE,
        *,
        interpolation: str = "bilinear",
    ) -> None:
        lengths = [len(crop_sizes), len(crop_counts), len(crop_min_scales), len(crop_max_scales)]
        if len(set(lengths)) > 1:
            raise ValueError(
                f"{type(self).__name__}: crop_sizes, crop_counts, crop_min_scales and crop_max_scales must have the "
                f"same length, got {', '.join(map(str, lengths))}"
            )
        views = []
        for size, count, *scale in zip(crop_sizes, crop_counts, crop_min_scales, crop_max_scales, strict=True):
            view = _View(
                size,
                (scale[0], scale[1]),
                interpolation,
                (hf_prob, vf_prob),
                (rr_prob, rr_degrees),
                (cj_prob, cj_strength, cj_bright, cj_contrast, cj_sat, cj_hue),
                random_gray_scale,
                (gaussian_blur, sigmas),
                normalize=normalize,
            )
            views += [view] * count
        super().__init__(views)


SwaVTransform = SwAVTransform  # as lightly writes it


class DINOViewTransform(_View):
    """One view of DINO; see :class:`DINOTransform`."""

    def __init__(
        self,
        crop_size: int = 224,
        crop_scale: Range = (0.4, 1.0),
        hf_prob: float = 0.5,
        vf_prob: float = 0,
        rr_prob: float = 0,
        rr_degrees: Degrees = None,
        cj_prob: float = 0.8,
        cj_strength: float = 0.5,
        cj_bright: float = 0.8,
        cj_contrast: float = 0.8,
        cj_sat: float = 0.4,
        cj_hue: float = 0.2,
        random_gray_scale: float = 0.2,
        gaussian_blur: float = 1.0,
        sigmas: Range = (0.1, 2),
        solarization_prob: float = 0.2,
        normalize: Statistics = IMAGENET_NORMALIZE,
    ) -> None:
        super().__init__(
            crop_size,
            crop_scale,
            "bicubic",
            (hf_prob, vf_prob),
            (rr_prob, rr_degrees),
            (cj_prob, cj_strength, cj_bright, cj_contrast, cj_sat, cj_hue),
            random_gray_scale,
            (gaussian_blur, sigmas),
            solarization_prob,
            normalize,
        )


class DINOTransform(MultiViewTransform):
    """The crops of DINO: Caron et al. 2021 (arXiv 2104.14294): two global ones that differ, then the local ones.

    lightly cuts 6 local crops; the published code's default is 8. lightly's second global view keeps half the strength
    of the jitter whatever ``cj_strength`` is; here it is that of all views.

    Args:
        global_crop_size: side of the global views in pixels.
        global_crop_scale: smallest and largest area of a global crop, as a share of the image.
        local_crop_size: of the local views; ``local_crop_scale`` likewise.
        n_local_views: how many local views.
        gaussian_blur: probabilities of the blur in the first and second global view and in the local views.
        solarization_prob: in the second global view, at 128 of 255.
        hf_prob: as the others, see :mod:`fastssl.augment.presets`.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        global_crop_size: int = 224,
        global_crop_scale: Range = (0.4, 1.0),
        local_crop_size: int = 96,
        local_crop_scale: Range = (0.05, 0.4),
        n_local_views: int = 6,
        hf_prob: float = 0.5,
        vf_prob: float = 0,
        rr_prob: float = 0,
        rr_degrees: Degrees = None,
        cj_prob: float = 0.8,
        cj_strength: float = 0.5,
        cj_bright: float = 0.8,
        cj_contrast: float = 0.8,
        cj_sat: float = 0.4,
        cj_hue: float = 0.2,
        random_gray_scale: float = 0.2,
        gaussian_blur: tuple[float, float, float] = (1.0, 0.1, 0.5),
        sigmas: Range = (0.1, 2),
        solarization_prob: float = 0.2,
        normalize: Statistics = IMAGENET_NORMALIZE,
    ) -> None:
        def view(size: int, scale: Range, blur: float, solarize: float) -> DINOViewTransform:
            return DINOViewTransform(
                size, scale, hf_prob, vf_prob, rr_prob, rr_degrees, cj_prob, cj_strength, cj_bright, cj_contrast,
                cj_sat, cj_hue, random_gray_scale, blur, sigmas, solarize, normalize,
            )  # fmt: skip

        local = view(local_crop_size, local_crop_scale, gaussian_blur[2], 0)
        super().__init__([
            view(global_crop_size, global_crop_scale, gaussian_blur[0], 0),
            view(global_crop_size, global_crop_scale, gaussian_blur[1], solarization_prob),
            *[local] * n_local_views,
        ])  # fmt: skip
