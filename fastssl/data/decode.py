"""Picture files to pixels: JPEG by libjpeg-turbo, all else by Pillow.

simplejpeg was the fastest of the maintained decoders on photographs (one core, images/s at 500 x 375 and 3000 x 2000:
1 456 and 73; torchvision 1 390 and 60, OpenCV 1 381 and 62, Pillow 1 024 and 25), it decodes at a fraction of the size
(109 at 3000 x 2000 to a quarter: the rest is reading the bits, which no fraction saves) and gives up the GIL. Where it
is not installed, and for whatever it refuses, Pillow decodes and has the last word on what is damaged.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

_ORIENTATION = 0x0112  # the tag of EXIF
_FACTORS = (8, 4, 2)  # by which a JPEG can be decoded smaller in less time


class UnreadableImage(ValueError):
    """A file that is no picture, or a damaged one; the message names it."""


def read_image(path: str | Path, size: int | None = None, *, cap: bool = False) -> Tensor:
    """Decode a picture, upright and in RGB, whole or reduced.

    EXIF orientation is applied, grey and palette pictures get three channels, 16 bits are rounded down to 8;
    transparency and colour profiles are ignored; of several frames the first is taken.

    Args:
        path: of the file.
        size: in pixels. A picture is reduced by 2, 4 or 8 as long as its short side stays at least so long, and a JPEG
            is decoded so, in down to half the time. It looks as if averaged over squares of 2, 4 or 8 pixels (0.3 to
            0.6 of 255 grey levels from it in the mean). A view that shrinks its crop all the same loses nothing to
            speak of (half a level); one that enlarges it is softer than from the whole picture. None: never reduced.
        cap: whether a short side that is still longer than `size` is resized to it, with antialiasing.

    Returns:
        uint8 [3, H, W], a view of memory [H, W, 3].

    Raises:
        UnreadableImage: if the file is no picture that Pillow can read, or a damaged one.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
        return decode_image(data, size, cap=cap)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error  # without the path, which is already here
        raise UnreadableImage(f"cannot read {path}: {reason}") from None


def decode_image(data: bytes, size: int | None = None, *, cap: bool = False) -> Tensor:
    """Decode a picture that is in memory; see :func:`read_image`.

    Raises:
        UnreadableImage: if the bytes are no picture that Pillow can read, or a damaged one.
    """
    if not data:
        raise UnreadableImage("the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as picture:  # reads the header only
            orientation = _orientation(picture)
            factor = _factor(min(picture.size), size)
            pixels = _decode_jpeg(data, picture, factor)
            if pixels is None:
                pixels = _decode_any(picture, factor)
    except MemoryError:
        raise
    # What Pillow raises on damaged files is of many kinds, depending on the format and the place of the damage.
    except Exception as error:
        if isinstance(error, Image.UnidentifiedImageError):
            raise UnreadableImage("it is no picture of a known format") from None
        raise UnreadableImage(str(error) or type(error).__name__) from None
    image = torch.from_numpy(np.ascontiguousarray(_turn(pixels, orientation))).permute(2, 0, 1)
    return cap_short_side(image, size) if cap and size is not None else image


def cap_short_side(image: Tensor, size: int) -> Tensor:
    """The image [C, H, W], or, where its short side is longer than `size`, resized so that it is `size`."""
    height, width = image.shape[-2:]
    short = min(height, width)
    if short <= size:
        return image
    target = (max(1, round(height * size / short)), max(1, round(width * size / short)))
    smaller = F.interpolate(image[None], target, mode="bicubic", antialias=True)[0]
    return smaller.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def _factor(short: int, size: int | None) -> int:
    if size is None:
        return 1
    return next((factor for factor in _FACTORS if short // factor >= size), 1)


def _orientation(picture: Image.Image) -> int:
    try:
        return picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged note about the picture is no damage to the picture
        return 1


def _decode_jpeg(data: bytes, picture: Image.Image, factor: int) -> np.ndarray | None:
    """[H, W, 3]; None where Pillow has to decide."""
    if simplejpeg is None or picture.format not in ("JPEG", "MPO") or picture.mode not in ("RGB", "L"):
        return None
    width, height = (-(-side // factor) for side in picture.size)
    try:
        return simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, min_factor=factor)
    except ValueError:
        return None


def _decode_any(picture: Image.Image, factor: int) -> np.ndarray:
    if factor > 1:
        width, height = picture.size
        picture.draft("RGB", (width // factor, height // factor))  # a JPEG; other formats have no such thing
        factor = max(1, factor * picture.size[0] // width)
    if picture.mode == "F":
        raise ValueError("its pixels are floating point numbers, whose range is unknown")
    if picture.mode.startswith("I"):  # 16 bits, in 16 or 32; convert("RGB") would cut off all above 255
        wide = np.asarray(picture).astype(np.int64).clip(0, 65535)
        picture = Image.fromarray((wide >> 8).astype(np.uint8))
    elif picture.mode in ("P", "PA"):
        picture = picture.convert("RGBA")  # Pillow warns when a palette loses its transparency
    rgb = picture.convert("RGB")
    return np.array(rgb.reduce(factor) if factor > 1 else rgb)


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Upright [H, W, C], by the eight orientations of EXIF."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
