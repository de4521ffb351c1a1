"""Pictures in rows and columns, with a head over each column and words under each picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from fastssl.report.drawing import GREY, LARGE, LINE, SMALL, letters, plain, shorten, wrap

_GAP, _MARGIN, _FRAME = 8, 16, 4  # pixels


class Cell(NamedTuple):
    """One picture.

    Attributes:
        picture: uint8 [h, w, 3].
        captions: lines under it; what is too long for its width is cut off.
        frame: colour of a frame around it.
    """

    picture: np.ndarray
    captions: Sequence[str] = ()
    frame: str | None = None


def picture_grid(
    title: str, heads: Sequence[str], rows: Sequence[Sequence[Cell | None]], note: str = ""
) -> Image.Image:
    """Draw rows of pictures.

    Args:
        title: over all of it.
        heads: one per column.
        rows: of as many cells as heads; None leaves a place empty.
        note: how to read it, below.
    """
    font, bold = letters(SMALL), letters(LARGE)
    columns = [[row[number] for row in rows] for number in range(len(heads))]
    widths = [max([48, *(cell.picture.shape[1] for cell in column if cell)]) + 2 * _FRAME for column in columns]
    lefts = [_MARGIN + sum(widths[:n]) + n * _GAP for n in range(len(heads))]
    whole = lefts[-1] + widths[-1] + _MARGIN
    titles, notes = wrap(plain(title), whole - 2 * _MARGIN, bold), wrap(plain(note), whole - 2 * _MARGIN, font)
    over = [wrap(head, width, font) for head, width in zip(heads, widths, strict=True)]
    top = _MARGIN + len(titles) * (LARGE + 6) + 6
    first = top + max(map(len, over)) * LINE + 4
    heights = [
        max(cell.picture.shape[0] + len(cell.captions) * LINE for cell in row if cell) + 2 * _FRAME + _GAP
        for row in rows
    ]
    below = first + sum(heights)
    sheet = Image.new("RGB", (whole, below + (len(notes) * LINE if note else 0) + _MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(titles):
        pen.text((_MARGIN, _MARGIN + number * (LARGE + 6)), line, "black", bold)
    for left, lines in zip(lefts, over, strict=True):
        for number, line in enumerate(lines):
            pen.text((left + _FRAME, first - 4 - (len(lines) - number) * LINE), line, GREY, font)
    y = first
    for row, height in zip(rows, heights, strict=True):
        for cell, left, width in zip(row, lefts, widths, strict=True):
            if cell is not None:
                _paste(sheet, pen, cell, (left, y), width)
        y += height
    if note:
        for number, line in enumerate(notes):
            pen.text((_MARGIN, below + number * LINE), line, GREY, font)
    return sheet


def _paste(sheet: Image.Image, pen: ImageDraw.ImageDraw, cell: Cell, place: tuple[int, int], room: int) -> None:
    left, top = place
    height, width = cell.picture.shape[:2]
    if cell.frame is not None:
        pen.rectangle((left, top, left + width + 2 * _FRAME - 1, top + height + 2 * _FRAME - 1), fill=cell.frame)
    sheet.paste(Image.fromarray(cell.picture), (left + _FRAME, top + _FRAME))
    for number, words in enumerate(cell.captions):
        line = shorten(plain(words), room - _FRAME, letters(SMALL))
        pen.text((left + _FRAME, top + height + 2 * _FRAME + 1 + number * LINE), line, "black", letters(SMALL))
