"""The augmentations of published methods that make one or two views of one size, with lightly's arguments.

Argument names and defaults are those of ``lightly.transforms``, so that changing the import is enough; where a default
is not the paper's, the docstring says so and names the arguments that are. In place of Pillow's blur stands the
Gaussian itself, over ten times ``sigmas[1]`` pixels, or over a tenth of the view where the paper says so.

Arguments that all of them share:

    input_size           side of the views in pixels, or height and width
    cj_prob              probability of the colour jitter
    cj_strength          factor of the next four
    cj_bright, cj_contrast, cj_sat, cj_hue
                         strengths: factors from 1 - s to 1 + s, a shift from -s to s turns
    min_scale            smallest area of the crop as a share of the image
    random_gray_scale    probability of grayscale
    gaussian_blur        probability of the blur
    sigmas               range of its standard deviation in pixels
    solarization_prob    probability of solarisation at 128 of 255
    vf_prob, hf_prob     probabilities of a vertical and a horizontal flip
    rr_prob              probability of a rotation: by rr_degrees, see RandomRotation; None: by 90 degrees
    normalize            {"mean": ..., "std": ...}, or None for values in [0, 1]
    interpolation        not in lightly: "bilinear" or "bicubic"

Steps of probability 0 are left out. All raise ValueError where a number is out of range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .base import Transform
from .compose import Compose, MultiViewTransform
from .geometry import RandomHorizontalFlip, RandomResizedCrop, RandomVerticalFlip, Size
from .steps import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ColorJitter,
    GaussianBlur,
    Normalize,
    RandomGrayscale,
    RandomRotation,
    RandomSolarize,
)

IMAGENET_NORMALIZE = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}

Range = tuple[float, float]
Statistics = Mapping[str, Sequence[float]] | None
Degrees = float | Range | None


def tenth_of(side: int) -> int:
    """Width of the blur in SimCLR and BYOL: a tenth of the view, odd, at least 3."""
    return max(3, side // 10 | 1)


def whole_gaussian(side: int, sigma: float) -> int:
    """Width of a blur that cuts nothing visible off: five standard deviations to both sides, if the view has them."""
    return min(2 * math.ceil(5 * sigma) + 1, 2 * side - 1)


class _View(Compose):
    """One view: crop, flips, rotation, jitter, grayscale, then blur and solarisation in either order."""

    def __init__(
        self,
        size: Size,
        scale: Range,
        interpolation: str,
        flips: Range,  # horizontal, vertical
        rotation: tuple[float, Degrees],
        jitter: tuple[float, ...],  # probability, strength, brightness, contrast, saturation, hue
        gray: float,
        blur: tuple[float, Range],
        solarize: float = 0.0,
        normalize: Statistics = IMAGENET_NORMALIZE,
        *,
        kernel_of_a_tenth: bool = False,
        solarize_first: bool = False,
    ) -> None:
        crop = RandomResizedCrop(size, scale=scale, interpolation=interpolation)
        jitter_prob, strength, *amounts = jitter
        bright, contrast, saturation, hue = (strength * amount for amount in amounts)
        degrees = (90.0, 90.0) if rotation[1] is None else rotation[1]
        side, (blur_prob, sigmas) = min(crop.size or ()), blur
        kernel = tenth_of(side) if kernel_of_a_tenth else whole_gaussian(side, sigmas[1])
        end: list[Transform] = [GaussianBlur(kernel, sigmas, p=blur_prob), RandomSolarize(128 / 255, p=solarize)]
        steps: list[Transform] = [
            RandomHorizontalFlip(flips[0]),
            RandomVerticalFlip(flips[1]),
            RandomRotation(degrees, p=rotation[0]),
            ColorJitter(bright, contrast, saturation, hue, p=jitter_prob),
            RandomGrayscale(gray),
            *(reversed(end) if solarize_first else end),
        ]
        last = [Normalize(normalize["mean"], normalize["std"])] if normalize else []
        super().__init__([crop, *(step for step in steps if any(entry.p for entry in step.entries())), *last])


class SimCLRViewTransform(_View):
    """One view of SimCLR; see :class:`SimCLRTransform`."""

    def __init__(
        self,
        input_size: Size = 224,
        cj_prob: float = 0.8,
        cj_strength: float = 1.0,
        cj_bright: float = 0.8,
        cj_contrast: float = 0.8,
        cj_sat: float = 0.8,
        cj_hue: float = 0.2,
        min_scale: float = 0.08,
        random_gray_scale: float = 0.2,
        gaussian_blur: float = 0.5,
        sigmas: Range = (0.1, 2),
        vf_prob: float = 0.0,
        hf_prob: float = 0.5,
        rr_prob: float = 0.0,
        rr_degrees: Degrees = None,
        normalize: Statistics = IMAGENET_NORMALIZE,
        *,
        interpolation: str = "bilinear",
    ) -> None:
        super().__init__(
            input_size,
            (min_scale, 1.0),
            interpolation,
            (hf_prob, vf_prob),
            (rr_prob, rr_degrees),
            (cj_prob, cj_strength, cj_bright, cj_contrast, cj_sat, cj_hue),
            random_gray_scale,
            (gaussian_blur, sigmas),
            normalize=normalize,
            kernel_of_a_tenth=True,
        )


class SimCLRTransform(MultiViewTransform):
    """The two views of SimCLR: Chen et al. 2020 (arXiv 2002.05709), appendix A.

    The defaults are the paper's for ImageNet; its blur goes over a tenth of the view. On small images it halves the
    colours, ``cj_strength=0.5``, and does not blur, ``gaussian_blur=0`` (appendix B.9). Arguments: see the module.
    """

    def __init__(
        self,
        input_size: Size = 224,
        cj_prob: float = 0.8,
        cj_strength: float = 1.0,
        cj_bright: float = 0.8,
        cj_contrast: float = 0.8,
        cj_sat: float = 0.8,
        cj_hue: float = 0.2,
        min_scale: float = 0.08,
        random_gray_scale: float = 0.2,
        gaussian_blur: float = 0.5,
        sigmas: Range = (0.1, 2),
        vf_prob: float = 0.0,
        hf_prob: float = 0.5,
        rr_prob: float = 0.0,
        rr_degrees: Degrees = None,
        normalize: Statistics = IMAGENET_NORMALIZE,
        *,
        interpolation: str = "bilinear",
    ) -> None:
        view = SimCLRViewTransform(
            input_size, cj_prob, cj_strength, cj_bright, cj_contrast, cj_sat, cj_hue, min_scale, random_gray_scale,
            gaussian_blur, sigmas, vf_prob, hf_prob, rr_prob, rr_degrees, normalize, interpolation=interpolation,
        )  # fmt: skip
        super().__init__([view, view])


class MoCoV2Transform(MultiViewTransform):
    """The two views of MoCo v2: Chen et al. 2020 (arXiv 2003.04297); the defaults are the paper's.

    Arguments: see the module.
    """

    def __init__(
        self,
        input_size: Size = 224,
        cj_prob: float = 0.8,
        cj_strength: float = 1.0,
        cj_bright: float = 0.4,
        cj_contrast: float = 0.4,
        cj_sat: float = 0.4,
        cj_hue: float = 0.1,
        min_scale: float = 0.2,
        random_gray_scale: float = 0.2,
        gaussian_blur: float = 0.5,
        sigmas: Range = (0.1, 2),
        vf_prob: float = 0.0,
        hf_prob: float = 0.5,
        rr_prob: float = 0.0,
        rr_degrees: Degrees = None,
        normalize: Statistics = IMAGENET_NORMALIZE,
        *,
        interpolation: str = "bilinear",
    ) -> None:
        view = _View(
            input_size,
            (min_scale, 1.0),
            interpolation,
            (hf_prob, vf_prob),
            (rr_prob, rr_degrees),
            (cj_prob, cj_strength, cj_bright, cj_contrast, cj_sat, cj_hue),
            random_gray_scale,
            (gaussian_blur, sigmas),
            normalize=normalize,
        )
        super().__init__([view, view])


class SimSiamTransform(MoCoV2Transform):
    """The two views of SimSiam: Chen and He 2020 (arXiv 2011.10566), those of MoCo v2."""


MoCoTransform = MoCoV2Transform


class MoCoV1Transform(MoCoV2Transform):
    """The two views of MoCo v1: He et al. 2019 (arXiv 1911.05722).

    lightly jitters 80 % of the views and then makes 20 % gray; the published code makes 20 % gray and then jitters all
    (``cj_prob=1``). Arguments: see the module.
    """

    def __init__(
        self,
        input_size: Size = 224,
        cj_prob: float = 0.8,
        cj_strength: float = 1.0,
        cj_bright: float = 0.4,
        cj_contrast: float = 0.4,
        cj_sat: float = 0.4,
        cj_hue: float = 0.4,
        min_scale: float = 0.2,
        random_gray_scale: float = 0.2,
        gaussian_blur: float = 0.0,
        sigmas: Range = (0.1, 2),
        vf_prob: float = 0.0,
        hf_prob: float = 0.5,
        rr_prob: float = 0.0,
        rr_degrees: Degrees = None,
        normalize: Statistics = IMAGENET_NORMALIZE,
        *,
        interpolation: str = "bilinear",
    ) -> None:
        super().__init__(
            input_size, cj_prob, cj_strength, cj_bright, cj_contrast, cj_sat, cj_hue, min_scale, random_gray_scale,
            gaussian_blur, sigmas, vf_prob, hf_prob, rr_prob, rr_degrees, normalize, interpolation=interpolation,
        )  # fmt: skip


class BYOLView1Transform(_View):
    """The first view of BYOL, always blurred and never solarised; see :class:`BYOLTransform`."""

    def __init__(
        self,
        input_size: Size = 224,
        cj_prob: float = 0.8,
        cj_strength: float = 1.0,
        cj_bright: float = 0.4,
        cj_contrast: float = 0.4,
        cj_sat: float = 0.2,
        cj_hue: float = 0.1,
        min_scale: float = 0.08,
        random_gray_scale: float = 0.2,
        gaussian_blur: float = 1.0,
        solarization_prob: float = 0.0,
        sigmas: Range = (0.1, 2),
        vf_prob: float = 0.0,
        hf_prob: float = 0.5,
        rr_prob: float = 0.0,
        rr_degrees: Degrees = None,
        normalize: Statistics = IMAGENET_NORMALIZE,
        *,
        interpolation: str = "bilinear",
    ) -> None:
        super().__init__(
            input_size,
            (min_scale, 1.0),
            interpolation,
            (hf_prob, vf_prob),
            (rr_prob, rr_degrees),
            (cj_prob, cj_strength, cj_bright, cj_contrast, cj_sat, cj_hue),
            random_gray_scale,
            (gaussian_blur, sigmas),
            solarization_prob,
            normalize,
            kernel_of_a_tenth=True,
        )


class BYOLView2Transform(BYOLView1Transform):
    """The second view of BYOL, seldom blurred and sometimes solarised; see :class:`BYOLTransform`."""

    def __init__(
        self,
        input_size: Size = 224,
        cj_prob: float = 0.8,
        cj_strength: float = 1.0,
        cj_bright: float = 0.4,
        cj_contrast: float = 0.4,
        cj_sat: float = 0.2,
        cj_hue: float = 0.1,
        min_scale: float = 0.08,
        random_gray_scale: float = 0.2,
        gaussian_blur: float = 0.1,
        solarization_prob: float = 0.2,
        sigmas: Range = (0.1, 2),
        vf_prob: float = 0.0,
        hf_prob: float = 0.5,
        rr_prob: float = 0.0,
        rr_degrees: Degrees = None,
        normalize: Statistics = IMAGENET_NORMALIZE,
        *,
        interpolation: str = "bilinear",
    ) -> None:
        super().__init__(
            input_size, cj_prob, cj_strength, cj_bright, cj_contrast, cj_sat, cj_hue, min_scale, random_gray_scale,
            gaussian_blur, solarization_prob, sigmas, vf_prob, hf_prob, rr_prob, rr_degrees, normalize,
            interpolation=interpolation,
        )  # fmt: skip


class BYOLTransform(MultiViewTransform):
    """The two views of BYOL, which differ: Grill et al. 2020 (arXiv 2006.07733), appendix B and table 6.

    The first is always blurred; the second is blurred in 10 % and solarised in 20 % of the cases. lightly resizes
    bilinearly; the paper is bicubic: ``BYOLView1Transform(interpolation="bicubic")``, the second likewise.

    Args:
        view_1_transform: the first view; None takes its defaults.
        view_2_transform: the second view; None takes its defaults.
    """

    def __init__(
        self, view_1_transform: BYOLView1Transform | None = None, view_2_transform: BYOLView2Transform | None = None
    ) -> None:
        super().__init__([view_1_transform or BYOLView1Transform(), view_2_transform or BYOLView2Transform()])


class VICRegTransform(MultiViewTransform):
    """The two views of VICReg: Bardes et al. 2022 (arXiv 2105.04906), appendix C.1.

    The published code resizes bicubically, ``interpolation="bicubic"``, and blurs before it solarises; here
    solarisation comes first, as in lightly. Arguments: see the module.
    """

    def __init__(
        self,
        input_size: Size = 224,
        cj_prob: float = 0.8,
        cj_strength: float = 0.5,
        cj_bright: float = 0.8,
        cj_contrast: float = 0.8,
        cj_sat: float = 0.4,
        cj_hue: float = 0.2,
        min_scale: float = 0.08,
        random_gray_scale: float = 0.2,
        solarize_prob: float = 0.1,
        gaussian_blur: float = 0.5,
        sigmas: Range = (0.1, 2),
        vf_prob: float = 0.0,
        hf_prob: float = 0.5,
        rr_prob: float = 0.0,
        rr_degrees: Degrees = None,
        normalize: Statistics = IMAGENET_NORMALIZE,
        *,
        interpolation: str = "bilinear",
    ) -> None:
        view = _View(
            input_size,
            (min_scale, 1.0),
            interpolation,
            (hf_prob, vf_prob),
            (rr_prob, rr_degrees),
            (cj_prob, cj_strength, cj_bright, cj_contrast, cj_sat, cj_hue),
            random_gray_scale,
            (gaussian_blur, sigmas),
            solarize_prob,
            normalize,
            solarize_first=True,
        )
        super().__init__([view, view])


class MAETransform(MultiViewTransform):
    """The one view of a masked autoencoder: He et al. 2021 (arXiv 2111.06377): a bicubic crop and a flip.

    The defaults are the paper's. As lightly's it returns a list of one.

    Args:
        input_size: side of the view in pixels, or height and width.
        min_scale: smallest area of the crop as a share of the image.
        normalize: {"mean": ..., "std": ...}, or None for values in [0, 1].
    """

    def __init__(
        self, input_size: Size = 224, min_scale: float = 0.2, normalize: Statistics = IMAGENET_NORMALIZE
    ) -> None:
        crop = RandomResizedCrop(input_size, scale=(min_scale, 1.0), interpolation="bicubic")
        last: list[Transform] = [Normalize(normalize["mean"], normalize["std"])] if normalize else []
        super().__init__([Compose([crop, RandomHorizontalFlip(), *last])])
