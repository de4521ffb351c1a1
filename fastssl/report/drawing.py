"""What the pictures of this package share: letters, colours, captions, and images as Pillow takes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFont
from torch import Tensor

COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#7f7f7f")
GREY = "#444444"
# Okabe and Ito's, which colour-blind readers can tell apart.
RIGHT, WRONG = "#009E73", "#D55E00"
LINE = 15  # height of a line of captions in pixels
SMALL, LARGE = 12, 18  # size of letters

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def letters(size: int) -> Font:
    """The font that comes with Pillow."""
    return ImageFont.load_default(size)


def plain(text: str) -> str:
    """The text on one line, in characters that any file can hold: names of files may contain anything."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def shorten(text: str, width: float, font: Font) -> str:
    """The text, or as much of its beginning as fits into `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def wrap(words: str, width: float, font: Font) -> list[str]:
    """The words in lines that fit, as far as single words do."""
    lines = [""]
    for word in words.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def picture_of(image: Tensor) -> Image.Image:
    """Of uint8 [1 or 3, H, W], in RGB; of more channels the first, in grey."""
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
    return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).convert("RGB")


def denormalize(view: Tensor, statistics: tuple[Sequence[float], Sequence[float]] | None) -> Tensor:
    """Normalised numbers [..., C, h, w] as uint8, for the mean and standard deviation of the normalisation."""
    if statistics is not None:
        mean, std = (view.new_tensor(values)[:, None, None] for values in statistics)
        if len(mean) != view.shape[-3]:  # one for all channels, or those of colours for grey images
            mean, std = mean.mean(), std.mean()
        view = view * std + mean
    return (view.clamp(0, 1) * 255).round().byte()
