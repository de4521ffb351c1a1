"""The views that a transform makes of images, with what was drawn for each, as rows of a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, tensor

from fastssl.augment import ViewParameters
from fastssl.augment.base import Views
from fastssl.report.contact_sheet import Row
from fastssl.report.drawing import denormalize


def view_rows(
    transform: Views,
    images: Tensor | list[Tensor],
    names: Sequence[str],
    *,
    seed: int,
    epoch: int,
    index: Sequence[int],
) -> list[Row]:
    """Make the views of the key (seed, epoch, index).

    Args:
        transform: of one view or several.
        images: uint8 [B, C, H, W], or a list of [C, H, W] of any sizes.
        names: of the images.
        seed: of the run, as in ``transform``, with `epoch` and `index`.
    """
    views, parameters = transform(
        images, seed=seed, epoch=epoch, index=tensor(index), channels="first", return_parameters=True
    )
    if isinstance(views, Tensor):
        views, parameters = [views], [parameters]
    pixels = [denormalize(view, plan.statistics) for view, plan in zip(views, transform.plans(), strict=True)]
    return [
        Row(
            name,
            images[number],
            [view[number] for view in pixels],
            [_box(drawn[number]) for drawn in parameters],
            [_words(drawn[number]) for drawn in parameters],
        )
        for number, name in enumerate(names)
    ]


def _box(drawn: ViewParameters) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of one image's crop."""
    top, left, height, width = (float(x) for x in (drawn.top, drawn.left, drawn.height, drawn.width))
    return left, top, left + width, top + height


def _words(drawn: ViewParameters) -> str:
    """What happened to one image, shortly."""
    words = ["flip"] * bool(drawn.horizontal_flip) + ["upside down"] * bool(drawn.vertical_flip)
    words += [f"turn {90 * int(drawn.quarter_turns)}"] * bool(drawn.quarter_turns)
    for step, numbers in drawn.steps(0):
        if step in ("brightness", "contrast", "saturation", "hue"):
            words += ["colours"] * ("colours" not in words)
        elif step == "blur":
            words.append(f"blur {numbers['sigma']:.1f}")
        else:
            words.append({"grayscale": "grey", "solarize": "solarised"}.get(step, step))
    return ", ".join(words)
