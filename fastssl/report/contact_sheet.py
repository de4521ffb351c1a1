"""A contact sheet: a row per image, the image first, then its views to scale, framed in the colour of their crop."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from PIL import Image, ImageDraw
from torch import Tensor

from fastssl.report.drawing import COLORS, GREY, LARGE, LINE, SMALL, Font, letters, picture_of, plain, shorten, wrap

_GAP, _MARGIN, _FRAME = 12, 16, 3  # pixels
_LEAST = 160  # views smaller than this are enlarged by a whole factor
_HEAD = "image, and where its views come from"


class Row(NamedTuple):
    """One image and its views.

    Attributes:
        name: of the image.
        image: uint8 [C, H, W].
        views: uint8 [C, h, w] each.
        boxes: left, top, right, bottom of each view's crop, in pixels of the image.
        captions: words under each view.
    """

    name: str
    image: Tensor
    views: Sequence[Tensor]
    boxes: Sequence[tuple[float, float, float, float]]
    captions: Sequence[str]


def contact_sheet(title: str, rows: Sequence[Row]) -> Image.Image:
    """Draw the sheet. All rows have as many views, of the same sizes."""
    sizes = [(view.shape[-1], view.shape[-2]) for view in rows[0].views]
    zoom = max(1, _LEAST // max(max(size) for size in sizes))
    font, bold = letters(SMALL), letters(LARGE)
    columns = _columns([(zoom * width, zoom * height) for width, height in sizes], rows, font)
    tall = max(zoom * height for _, height in sizes)
    widest = max(tall * row.image.shape[-1] // row.image.shape[-2] for row in rows)
    source_width = max(min(widest, 8 * tall // 5), int(font.getlength(_HEAD)))
    row_height = max(tall + 2 * LINE, *(column.height for column in columns)) + _GAP
    top = _MARGIN + 2 * LARGE + 2 * LINE
    right = _MARGIN + source_width + _GAP
    places = []
    for column in columns:
        places.append(right)
        right += column.width + _GAP
    needed = int(bold.getlength(title)) + 2 * _MARGIN
    sheet = Image.new("RGB", (max(right - _GAP + _MARGIN, needed), top + len(rows) * row_height + _MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN), title, "black", bold)
    pen.text((_MARGIN, top - LINE - 4), _HEAD, GREY, font)
    _heads(pen, columns, places, sizes, zoom, top - 4, font)
    for number, row in enumerate(rows):
        y = top + number * row_height
        _source(sheet, pen, row, (_MARGIN, y), (source_width, tall), font)
        for column, x in zip(columns, places, strict=True):
            down = y
            for view in column.views:
                picture = picture_of(row.views[view])
                picture = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
                frame = (x, down, x + picture.width + 2 * _FRAME - 1, down + picture.height + 2 * _FRAME - 1)
                pen.rectangle(frame, fill=_color(view))
                sheet.paste(picture, (x + _FRAME, down + _FRAME))
                for line, words in enumerate(wrap(_caption(row, view), column.width, font)):
                    pen.text((x, down + picture.height + 2 * _FRAME + 2 + line * LINE), words, "black", font)
                down += column.step
    return sheet


class _Column(NamedTuple):
    """Views of one size, one above the other, as many as the tallest view has room for."""

    views: list[int]
    width: int
    height: int
    step: int  # from the top of one to that of the next


def _columns(sizes: Sequence[tuple[int, int]], rows: Sequence[Row], font: Font) -> list[_Column]:
    def step(size: tuple[int, int], views: list[int]) -> int:
        lines = max(len(wrap(_caption(row, view), size[0], font)) for row in rows for view in views)
        return size[1] + 2 * _FRAME + lines * LINE + _GAP

    tall = max(step(size, [view]) for view, size in enumerate(sizes))
    columns = []
    for size, group in groupby(range(len(sizes)), key=lambda view: sizes[view]):
        views = list(group)
        high = step(size, views)
        # One and a half as many lines of captions are fine: it is the row that grows.
        count = max(1, (tall + LINE * 3) // high)
        for first in range(0, len(views), count):
            part = views[first : first + count]
            columns.append(_Column(part, size[0] + 2 * _FRAME, len(part) * high, high))
    return columns


def _heads(
    pen: ImageDraw.ImageDraw,
    columns: Sequence[_Column],
    places: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    zoom: int,
    bottom: int,
    font: Font,
) -> None:
    """Numbers and sizes of the views over the columns of each size."""
    for size, group in groupby(zip(columns, places, strict=True), key=lambda pair: sizes[pair[0].views[0]]):
        pairs = list(group)
        first, last = pairs[0][0].views[0] + 1, pairs[-1][0].views[-1] + 1
        words = f"view {first}" if first == last else f"views {first} to {last}"
        scale = f", shown {zoom} times as large" if zoom > 1 else ""
        x, room = pairs[0][1], pairs[-1][1] + pairs[-1][0].width - pairs[0][1]
        lines = wrap(f"{words}: {size[0]} x {size[1]} pixels{scale}", room, font)
        for line, part in enumerate(lines):
            pen.text((x, bottom - (len(lines) - line) * LINE), part, GREY, font)


def _source(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    row: Row,
    place: tuple[int, int],
    room: tuple[int, int],
    font: Font,
) -> None:
    picture = picture_of(row.image)
    scale = min(room[0] / picture.width, room[1] / picture.height)
    small = picture.resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.LANCZOS
    )
    x, y = place
    sheet.paste(small, place)
    for view, (left, top, right, bottom) in enumerate(row.boxes):
        corners = [round(x + left * scale), round(y + top * scale), round(x + right * scale), round(y + bottom * scale)]
        corners[2:] = [max(near + 6, far - 1) for near, far in zip(corners[:2], corners[2:], strict=True)]
        pen.rectangle(corners, outline="white", width=4)
        inner = [corners[0] + 1, corners[1] + 1, corners[2] - 1, corners[3] - 1]
        pen.rectangle(inner, outline=_color(view), width=2)
    name = shorten(plain(row.name), room[0] - font.getlength(","), font)
    for line, words in enumerate(wrap(f"{name}, {picture.width} x {picture.height}", room[0], font)):
        pen.text((x, y + small.height + 4 + line * LINE), words, "black", font)


def _caption(row: Row, view: int) -> str:
    return f"{view + 1}: {row.captions[view]}" if row.captions[view] else f"{view + 1}"


def _color(view: int) -> str:
    return COLORS[view % len(COLORS)]
