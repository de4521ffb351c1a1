"""Two gates for views. fastssl's are compared with float64, pixel by pixel; those of libraries that draw random numbers
of their own by the statistics of some hundred views.

Each statistic is one number per view that a step of the recipe moves, so that a library which leaves a step out is
refused. Its mean is compared with that over views of the same images by the definition::

    difference <= 5 standard errors + what the libraries' own definitions and 8 bit arithmetic make of it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

import fastssl
from fastssl.ops.augment import reference
from fastssl.ops.augment.record import STEP, Code, Kind

from .augment_recipes import FLIP, GRAY, JITTER, MEAN, RATIO, SIGMA, STD, Recipe, charts, recipes
from .cases import Case, Expected, Function, outputs
from .verify import Check

ALLOWED = {"cpu": 2e-5, "cuda": 1 / 255}  # of a view before normalisation
COMPARED = 16  # images of a batch whose views are compared pixel by pixel
VIEWS, VIEWS_OF_LARGE = 512, 192  # whose statistics are compared, at least; of images that are slow to read
LARGE = 1 << 20  # pixels
STANDARD_ERRORS = 5
TRUSTED = 0.05  # normalised: what no statistic notices

# --- By the definition ----------------------------------------------------------------------------------------------


def program(recipe: Recipe) -> list[float]:
    """The recipe as `fastssl.functional.view_parameters` takes it."""
    rows: list[tuple[float, ...]] = [
        (Kind.RESIZED_CROP, 1.0, *recipe.scale, *RATIO),
        (Kind.HORIZONTAL_FLIP, FLIP),
        (Kind.JITTER, JITTER, *_bounds(recipe.jitter)),
        (Kind.GRAYSCALE, GRAY),
    ]
    if recipe.blur > 0:
        rows.append((Kind.BLUR, recipe.blur, *SIGMA, recipe.kernel))
    if recipe.solarize > 0:
        rows.append((Kind.SOLARIZE, recipe.solarize, 128 / 255))
    return program_of(rows)


def program_of(rows: Sequence[tuple[float, ...]]) -> list[float]:
    """A program of rows (kind, probability, parameters), each applied on its own."""
    numbers: list[float] = []
    for place, (kind, probability, *parameters) in enumerate(rows):
        numbers += [float(kind), probability, float(place), *parameters, *[0.0] * (9 - len(parameters))]
    return numbers


def _bounds(jitter: Sequence[float]) -> list[float]:
    *factors, hue = jitter
    return [bound for strength in factors for bound in (max(0.0, 1 - strength), 1 + strength)] + [-hue, hue]


def passes(recipe: Recipe) -> int:
    """At most so many contrast and neighbourhood steps has a view."""
    return 1 + (recipe.blur > 0)


def records(index: Tensor, sizes: Mapping[str, float], *, epoch: int = 0) -> list[Tensor]:
    """Of each view of a case, drawn for samples ``index`` [B]."""
    return [
        fastssl.functional.view_parameters(
            index,
            size=(int(sizes["height"]), int(sizes["width"])),
            out_size=(recipe.size, recipe.size),
            program=program(recipe),
            seed=0,
            epoch=epoch,
            view=number,
        )
        for number, recipe in enumerate(recipes(sizes))
    ]


def _records_by_definition(index: Tensor, sizes: Mapping[str, float], *, epoch: int = 0) -> list[Tensor]:
    with fastssl.backend("reference"):
        return records(index, sizes, epoch=epoch)


def views_of(images: Tensor, drawn: Sequence[Tensor], wanted: Sequence[Recipe], dtype: torch.dtype) -> list[Tensor]:
    """fastssl's views of uint8 [B, H, W, 3], by the backend that serves."""
    return fastssl.functional.augment_views(
        images.permute(0, 3, 1, 2),
        drawn,
        sizes=[(recipe.size, recipe.size) for recipe in wanted],
        bicubic=[recipe.bicubic for recipe in wanted],
        passes=[passes(recipe) for recipe in wanted],
        mean=MEAN,
        std=STD,
        dtype=dtype,
    )


def by_definition(images: Tensor, drawn: Sequence[Tensor], wanted: Sequence[Recipe]) -> list[Tensor]:
    """Views by the reference backend in float64, the truth."""
    sides = [recipe.size for recipe in wanted]
    return reference.augment_views(
        [images.movedim(-1, 1)],
        drawn,
        heights=sides,
        widths=sides,
        bicubic=[recipe.bicubic for recipe in wanted],
        passes=[passes(recipe) for recipe in wanted],
        mean=MEAN,
        std=STD,
        dtype=torch.float64,
    )


# --- Pixel by pixel -------------------------------------------------------------------------------------------------


def truth(case: Case, inputs: tuple[Tensor, ...], seed: int) -> list[Expected]:
    """Views of some images in float64: a view depends on no other image of its batch.

    The gate's bound becomes ``ALLOWED`` over the normalisation's standard deviation, and the rounding of the output's
    dtype. A step in the brightness, which solarising is, may fall on either side for a pixel that is as close to it.
    """
    images, index = inputs
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(images), generator=generator)[:COMPARED].sort().values.to(images.device)
    wanted, drawn = recipes(case.sizes), _records_by_definition(index[rows], case.sizes)
    allowed = ALLOWED[torch.device(case.device).type]
    views = by_definition(images[rows], drawn, wanted)
    bound = allowed / torch.tensor(STD, dtype=torch.float64, device=images.device)[:, None, None]
    expected = []
    for number, (recipe, view) in enumerate(zip(wanted, views, strict=True)):
        terms = view.abs() + bound / (8 * case.eps)
        if recipe.solarize > 0:
            for by in (-allowed, allowed):
                other = [moved_threshold(drawn[number], by)]
                moved = by_definition(images[rows], other, [recipe])[0]
                terms = terms + (moved - view).abs() / (8 * case.eps)
        shape = torch.Size((len(images), *view.shape[1:]))
        expected.append(Expected(f"view {number}", view, terms, shape, rows=rows))
    return expected


def moved_threshold(drawn: Tensor, by: float) -> Tensor:
    """Records with the threshold of solarising elsewhere."""
    moved = drawn.clone()
    steps = moved[:, 8:].unflatten(1, (-1, STEP))
    steps[..., 1] += by * (steps[..., 0] == Code.SOLARIZE)
    return moved


# --- By statistics --------------------------------------------------------------------------------------------------

# Statistic -> what the libraries' definitions (8 bit between steps, other kernels of the blur) may move it by.
ROOM = {
    "brightness": 0.02,
    "change of brightness": 0.02,
    "change of contrast": 0.02,
    "change of saturation": 0.03,
    "hue": 0.02,
    "gray": 0.01,
    "flipped": 0.01,
    "crop": 0.05,
    "steepness": 0.1,
    "dark": 0.02,
}
RANGE_ROOM = 1e-3  # beyond [0, 1] before normalisation
OVERSHOOT = 0.1  # the same of bicubic interpolation: not every library clamps it


def views_compared(sizes: Mapping[str, float]) -> int:
    """How many views of each recipe the statistics are of, at least."""
    return VIEWS if sizes["height"] * sizes["width"] <= LARGE else VIEWS_OF_LARGE


def statistics(views: Tensor, chart: Tensor) -> dict[str, Tensor]:
    """What the steps of a recipe move, one number for each view, or for each view in colour.

    Args:
        views: float32 [B, 3, h, w], normalised, of ``chart``.
        chart: uint8 [H, W, 3].
    """
    mean, std = (views.new_tensor(numbers)[:, None, None] for numbers in (MEAN, STD))
    x = views * std + mean
    was = chart.movedim(-1, 0)[None] / 255
    light, spread, was_spread = x.mean(1), _spread(x.mean(1)), _spread(was.mean(1))
    level, was_level = light.mean((1, 2)), was.mean((1, 2, 3))
    chroma = x.amax(1) - x.amin(1)
    gray = chroma.amax((1, 2)) < 1.5 / 255
    # Chroma climbs with the light, in a proportion that saturation alone changes.
    was_saturation = _spread(was.amax(1) - was.amin(1)) / was_spread
    saturation = _spread(chroma) / spread.clamp_min(FAINT)
    colour, was_colour = (mean - mean.mean(1, keepdim=True) for mean in (x.mean((2, 3)), was.mean((2, 3))))
    slope = light.diff(dim=-1)
    return {
        "brightness": level,
        "change of brightness": _log_ratio(level, was_level).abs(),
        "change of contrast": _log_ratio(spread / level.clamp_min(FAINT), was_spread / was_level).abs(),
        "change of saturation": _log_ratio(saturation, was_saturation).abs()[~gray],
        "hue": torch.cosine_similarity(colour, was_colour)[~gray],
        "gray": gray.float(),
        "flipped": ((slope**3).mean((1, 2)) > 0).float(),
        "crop": _log_ratio(slope.abs().sum(-1).mean(-1), spread),
        "steepness": _log_ratio(slope.abs().amax(-1).mean(-1), spread),
        "dark": (x.amax((1, 2, 3)) < 0.51).float()[~gray],  # nothing is brighter when it was solarized
    }


FAINT = 0.02  # numbers below it are lost in 8 bits


def _spread(x: Tensor) -> Tensor:
    """Standard deviation of each of [B, h, w], over its pixels."""
    return x.flatten(1).std(1)


def _log_ratio(a: Tensor, b: Tensor) -> Tensor:
    return ((a + FAINT) / (b + FAINT)).log()


Moments = dict[str, tuple[float, float, int]]  # per statistic: mean, variance, number of views


def _moments(found: Sequence[Mapping[str, Tensor]]) -> Moments:
    moments = {}
    for name in found[0]:
        values = torch.cat([one[name] for one in found]).double()
        moments[name] = (float(values.mean()), float(values.var()), len(values))
    return moments


@lru_cache(maxsize=4)
def _of_definition(sizes: tuple[tuple[str, float], ...], device: str) -> dict[Recipe, Moments]:
    """Statistics of views of charts: fastssl's if the first of them are those of the definition, else its own."""
    wanted = recipes(dict(sizes))
    found: dict[Recipe, list[dict[str, Tensor]]] = {recipe: [] for recipe in wanted}
    chart = _charts(dict(sizes), device)
    index = torch.arange(len(chart), device=device)
    few = slice(COMPARED)
    drawn = _records_by_definition(index[few], dict(sizes))
    pairs = zip(
        views_of(chart[few], drawn, wanted, torch.float32), by_definition(chart[few], drawn, wanted), strict=True
    )
    trusted = all(bool(((ours - truth).abs() < TRUSTED).all()) for ours, truth in pairs)
    while _views_of(found) < views_compared(dict(sizes)):
        drawn = _records_by_definition(index, dict(sizes))
        views = views_of(chart, drawn, wanted, torch.float32) if trusted else by_definition(chart, drawn, wanted)
        for recipe, view in zip(wanted, views, strict=True):
            found[recipe].append(statistics(view.float(), chart[0]))
        index = index + len(index)
    return {recipe: _moments(one) for recipe, one in found.items()}


def _charts(sizes: Mapping[str, float], device: str) -> Tensor:
    return charts(int(sizes["B"]), int(sizes["height"]), int(sizes["width"]), device)


def _views_of(found: Mapping[Any, Sequence[Mapping[str, Tensor]]]) -> int:
    return min(sum(len(one["brightness"]) for one in each) for each in found.values())


def by_statistics(case: Case, function: Function, sets: Sequence[tuple[Tensor, ...]]) -> list[Check]:
    """Compare a provider with random numbers of its own with the definition.

    Returns:
        Of each recipe: whether its views have the right form, whether they lie where normalised numbers from [0, 1]
        lie, whether a second call makes others, and the statistics.
    """
    wanted = recipes(case.sizes)
    checks: dict[str, Check] = {}
    found: dict[Recipe, list[dict[str, Tensor]]] = {recipe: [] for recipe in wanted}
    last: list[Tensor] = []
    call = 0
    chart = _charts(case.sizes, case.device)
    while _views_of(found) < views_compared(case.sizes):
        # The timed images, so that they are in place, and because a form may be right for charts only; then charts.
        inputs = (chart, sets[-1][1]) if call else sets[-1]
        for batch in _batches(outputs(function, inputs), len(wanted)):
            for number, (recipe, view) in enumerate(zip(wanted, batch, strict=True)):
                right = _form(number, recipe, view, case)
                if right.reason:
                    return [right]
                outside = _range(number, recipe, view)
                for check in (right, outside):
                    if check.ratio >= checks.get(check.name, check).ratio:
                        checks[check.name] = check
                if call:
                    found[recipe].append(statistics(view, chart[0]))
            if call > 1:
                checks["random"] = _differ(last, batch)
            last = list(batch)
        call += 1
    truth = _of_definition(tuple(case.sizes.items()), case.device)
    for recipe in dict.fromkeys(wanted):
        compared = _compared(wanted.index(recipe), _moments(found[recipe]), truth[recipe])
        checks |= {check.name: check for check in compared}
    return list(checks.values())


def _batches(results: Sequence[Any], views: int) -> list[Sequence[Tensor]]:
    """A call's batches, each with all its views, which stand one after the other."""
    return [results[start : start + views] for start in range(0, len(results), views)]


def _form(number: int, recipe: Recipe, view: Any, case: Case) -> Check:
    name, shape = f"form of view {number}", (int(case.sizes["B"]), 3, recipe.size, recipe.size)
    infinite = float("inf")
    if not isinstance(view, Tensor) or tuple(view.shape) != shape or view.dtype != case.dtype:
        got = f"{view.dtype} {tuple(view.shape)}" if isinstance(view, Tensor) else type(view).__name__
        return Check(name, infinite, 0.0, infinite, f"{name}: {got} instead of {case.dtype} {shape}")
    if not bool(torch.isfinite(view).all()):
        return Check(name, infinite, 0.0, infinite, f"{name}: not finite")
    return Check(name, 0.0, 0.0, 0.0, "")


def _judged(name: str, error: float, allowed: float, words: str) -> Check:
    ratio = error / allowed
    return Check(name, error, allowed, ratio, words if not ratio <= 1 else "")


def _range(number: int, recipe: Recipe, view: Tensor) -> Check:
    name = f"range of view {number}"
    mean, std = (view.new_tensor(numbers)[:, None, None] for numbers in (MEAN, STD))
    x = view * std + mean
    outside, allowed = max(float(-x.amin()), float(x.amax()) - 1, 0.0), OVERSHOOT if recipe.bicubic else RANGE_ROOM
    return _judged(name, outside, allowed, f"{name}: {outside:.2g} outside [0, 1], allowed is {allowed:g}")


def _differ(one: Sequence[Tensor], other: Sequence[Tensor]) -> Check:
    """Whether two calls for the same images made different views, of nearly all of them."""
    same = [float((a == b).flatten(1).all(1).float().mean()) for a, b in zip(one, other, strict=True)]
    most = max(same)
    return _judged("random", most, 0.2, f"{most:.0%} of the views of a second call are those of the first")


def _compared(number: int, found: Moments, truth: Moments) -> list[Check]:
    """The statistics of the views of a recipe, the first of which has this number."""
    checks = []
    for statistic, (mean, variance, count) in found.items():
        want, want_variance, want_count = truth[statistic]
        spread = (variance / count + want_variance / want_count) ** 0.5
        allowed = STANDARD_ERRORS * spread + ROOM[statistic]
        name = f"{statistic} of view {number}"
        words = f"{name}: {mean:.3g} on average, {want:.3g} by the definition, allowed is {allowed:.2g} off"
        checks.append(_judged(name, abs(mean - want), allowed, words))
    return checks
