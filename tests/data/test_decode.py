"""Decoding: Pillow's pixels whichever decoder is taken, upright, reduced as asked, and damage named."""

import io

import numpy as np
import pytest
import torch
from drawn_pictures import draw
from PIL import Image, ImageOps

pytest.importorskip("lightning")
from fastssl.data import UnreadableImage, decode, decode_image, read_image

pytest.importorskip("simplejpeg")


def encode(pixels, format, mode="RGB", **options):
    file = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(file, format, **options)
    return file.getvalue()


def channels_last(image):
    return image.permute(1, 2, 0).numpy()


def as_pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (16, 16), (33, 100), (375, 500)])
@pytest.mark.parametrize(
    ("mode", "options"),
    [("RGB", {}), ("RGB", {"progressive": True}), ("RGB", {"subsampling": 0}), ("L", {}), ("CMYK", {})],
)
def test_a_jpeg_has_pillows_pixels(size, mode, options):
    data = encode(draw(*size, seed=0), "JPEG", mode, quality=90, **options)
    image = decode_image(data)
    assert image.dtype == torch.uint8 and image.shape == (3, *size)
    assert image.permute(1, 2, 0).is_contiguous()
    # Both are libjpeg-turbo, of versions that may round differently.
    assert np.abs(channels_last(image).astype(int) - as_pillow(data)).max() <= 3


@pytest.mark.parametrize(
    ("format", "mode"),
    [("WEBP", "RGB"), ("WEBP", "RGBA")]
    + [(format, mode) for format in ("PNG", "BMP", "TIFF") for mode in ("RGB", "L", "P", "1", "RGBA")],
)
def test_other_formats_are_pillows(format, mode):
    data = encode(draw(40, 60, seed=1), format, mode)
    assert np.array_equal(channels_last(decode_image(data)), as_pillow(data))


def test_sixteen_bits_become_eight_and_are_not_cut_off():
    wide = np.arange(0, 65536, 37, dtype=np.uint16)[:1750].reshape(35, 50)
    data = encode(Image.fromarray(wide), "PNG", mode=None)
    image = decode_image(data)
    assert np.array_equal(channels_last(image), np.repeat((wide >> 8).astype(np.uint8)[..., None], 3, 2))
    assert image.max() > 200


def test_a_transparent_palette_is_read_without_a_warning(recwarn):
    picture = Image.fromarray(draw(9, 8, seed=0)).convert("P")
    data = encode(picture, "PNG", mode=None, transparency=bytes(range(256)))
    assert np.array_equal(channels_last(decode_image(data)), np.asarray(picture.convert("RGB")))
    assert not recwarn.list


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(draw(24, 40, seed=2), format, exif=exif, **({"quality": 95} if format == "JPEG" else {}))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    image = decode_image(data)
    assert image.shape[1:] == upright.shape[:2]
    assert np.abs(channels_last(image).astype(int) - upright).max() <= 3
    assert image.permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((400, 600), None, (400, 600)),
        ((400, 600), 400, (400, 600)),
        ((400, 600), 201, (400, 600)),
        ((400, 600), 200, (200, 300)),
        ((400, 600), 100, (100, 150)),
        ((401, 603), 51, (101, 151)),
        ((400, 600), 50, (50, 75)),
        ((400, 600), 1, (50, 75)),
        ((603, 401), 100, (151, 101)),
        ((3, 600), 100, (3, 600)),
    ],
)
def test_large_pictures_are_decoded_smaller_but_never_below_the_size(shape, size, expected, format):
    data = encode(draw(*shape, seed=3), format)
    image = decode_image(data, size)
    assert image.shape == (3, *expected)
    mean = torch.nn.functional.interpolate(decode_image(data)[None].float(), expected, mode="area")[0]
    assert (image - mean).abs().mean() < 2  # of 255: the pictures are smooth


@pytest.mark.parametrize(("shape", "expected"), [((400, 600), (60, 90)), ((90, 61), (89, 60)), ((50, 70), (50, 70))])
def test_cap_ends_at_the_size(shape, expected):
    data = encode(draw(*shape, seed=4), "JPEG", quality=95)
    image = decode_image(data, 60, cap=True)
    assert image.shape == (3, *expected)
    assert image.permute(1, 2, 0).is_contiguous()
    mean = torch.nn.functional.interpolate(decode_image(data)[None].float(), expected, mode="area")[0]
    assert (image - mean).abs().mean() < 4


def test_without_simplejpeg_pillow_decodes(monkeypatch):
    data = encode(draw(400, 600, seed=3), "JPEG")
    fast = [decode_image(data), decode_image(data, 100)]
    monkeypatch.setattr(decode, "simplejpeg", None)
    for ours, pillows in zip(fast, [decode_image(data), decode_image(data, 100)], strict=True):
        assert ours.shape == pillows.shape
        assert (ours.int() - pillows.int()).abs().max() <= 3


def test_simplejpeg_is_what_decodes_a_jpeg(monkeypatch):
    monkeypatch.setattr(decode, "_decode_any", None)
    assert decode_image(encode(draw(40, 60, seed=3), "JPEG", "L")).shape == (3, 40, 60)


JPEG = encode(draw(200, 300, seed=5), "JPEG", quality=90)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"not a picture", "no picture of a known format"),
        (JPEG[:100], ""),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (JPEG[:-100], "truncated"),
        (encode(draw(200, 300, seed=5), "PNG")[:4000], "truncated"),
    ],
)
def test_a_damaged_file_is_named_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=rf"^cannot read .*broken\.jpg: .*{reason}"):
        read_image(path)


def test_what_is_no_file_is_named(tmp_path):
    (tmp_path / "x.jpg").mkdir()
    for name in ("x.jpg", "nowhere.jpg"):
        with pytest.raises(UnreadableImage, match=f"cannot read .*{name}: (Is a directory|No such file)"):
            read_image(tmp_path / name)


def test_what_pillow_tolerates_is_read():
    assert decode_image(JPEG + b"more").shape == (3, 200, 300)


def test_a_damaged_note_about_the_picture_is_no_damage():
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encode(draw(24, 40, seed=2), "JPEG", exif=exif)
    broken = whole.replace(b"Exif\0\0MM\0*", b"Exif\0\0XX\0*").replace(b"Exif\0\0II*\0", b"Exif\0\0XX*\0")
    assert broken != whole and decode_image(broken).shape == (3, 24, 40)


def test_a_picture_of_absurd_size_is_refused():
    header = encode(np.zeros((8, 8, 3), np.uint8), "JPEG")
    place = header.index(b"\xff\xc0") + 5
    bomb = header[:place] + b"\xff\xdc\xff\xdc" + header[place + 4 :]  # 65500 x 65500 pixels
    with pytest.raises(UnreadableImage, match="exceeds limit"):
        decode_image(bomb)
