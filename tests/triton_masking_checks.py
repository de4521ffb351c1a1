"""Statements about the masking kernels in Triton; run by ``test_triton_interpreter.py`` under TRITON_INTERPRET=1.

Truth is ``reference.py``, up to roundings: the interpreter rounds to 16 bits by cutting off. Scratch and outputs are
filled with NaN before the kernels run, and tokens lie inside of NaN.
"""

from __future__ import annotations

import os

import pytest
import torch

assert os.environ.get("TRITON_INTERPRET") == "1", "run tests/test_triton_interpreter.py"

from harness import poisoned_outputs  # noqa: E402

from fastssl.kernels.masking.config import TILES  # noqa: E402
from fastssl.kernels.tiles import Tile  # noqa: E402
from fastssl.ops.masking import reference, triton  # noqa: E402

# batch, patches, those that stay, tokens before them, dimension; dtype; programs that are wanted
PROBLEMS = [
    ((3, 10, 4, 1, 24), torch.float32, 1),
    ((3, 10, 4, 1, 20), torch.bfloat16, 1000),
    ((2, 9, 9, 0, 7), torch.float16, 1),
    ((1, 1, 1, 1, 1), torch.float32, 1),
    ((5, 7, 2, 2, 40), torch.float32, 1000),
]


@pytest.fixture(autouse=True)
def small_tiles_and_poisoned_memory():
    tiles = {"move": Tile(4, 32, 0, 1, 1), "gradient": Tile(4, 32, 0, 1, 1), "chain": Tile(8, 8, 0, 1, 1)}
    with poisoned_outputs(), TILES.override(**tiles, sums=Tile(2, 16, 0, 1, 1), patches=Tile(1, 32, 0, 1, 1)):
        yield


def tokens(batch, rows, dim, dtype):
    """As a view into a buffer of NaN."""
    around = torch.full((batch + 1, rows + 2, dim + 3), torch.nan, dtype=dtype)
    inside = around[1:, 1:-1, 2:-1]
    inside.copy_(torch.randn(inside.shape, generator=torch.Generator().manual_seed(rows * dim)))
    return inside


def assert_the_same(got, wanted):
    for one, want in zip(got, wanted, strict=True):
        assert one.dtype == want.dtype and one.shape == want.shape
        assert torch.equal(one.isnan(), want.isnan())
        assert torch.allclose(one.float(), want.float(), rtol=1e-2 if one.dtype.itemsize == 2 else 1e-5, atol=2e-6,
                              equal_nan=True)  # fmt: skip


@pytest.mark.parametrize(
    ("length", "dtype"), [(1, torch.float32), (5, torch.float16), (40, torch.float32), (64, torch.bfloat16)]
)
def test_masks(length, dtype):
    noise = torch.randn(3, length, generator=torch.Generator().manual_seed(length)).to(dtype)
    noise[1, : length // 2] = noise[1, 0]
    noise[2, 0] = torch.nan
    noise[0, -1] = -torch.inf
    keep = max(1, length // 4)
    for got, wanted in zip(triton.masks_from_noise(noise, keep=keep), reference.masks_from_noise(noise, keep=keep),
                           strict=True):  # fmt: skip
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("length", [1, 6, 33])
def test_masks_are_drawn_as_everywhere(length):
    index = torch.tensor([0, 7, 2**40 + 7, -3])
    key = {"seed": -5, "epoch": 2**32 - 1, "view": 3}  # seeds arrive as signed numbers
    for got, wanted in zip(triton.random_masks(index, length=length, keep=1, **key),
                           reference.random_masks(index, length=length, keep=1, **key), strict=True):  # fmt: skip
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(("sizes", "dtype", "programs"), PROBLEMS)
def test_gather(sizes, dtype, programs, monkeypatch):
    monkeypatch.setattr(triton, "PROGRAMS_PER_MULTIPROCESSOR", programs)
    batch, length, kept, prefix, dim = sizes
    x, pos, first = tokens(batch, length, dim, dtype), torch.randn(length + prefix, dim), torch.randn(prefix, dim)
    ids = torch.rand(batch, length).argsort(1)[:, :kept]
    ids[0, : kept // 2 + 1] = ids[0, 0]
    ids[-1, -1] = (-1, length, 2**40)[length % 3] if kept > 1 else 0
    for positions in (pos, pos[prefix:], None):
        given = (x, ids, positions, first if prefix else None)
        wanted = reference.gather_tokens(*given, dtype=dtype)
        assert_the_same([triton.gather_tokens(*given, dtype=dtype)], [wanted])
    gradient = tokens(batch, prefix + kept, dim, dtype)
    for for_tokens, for_positions in ((True, True), (True, False), (False, True), (False, False)):
        settings = {"length": length, "prefix": prefix, "dtype": dtype}
        wanted = {"for_tokens": for_tokens, "for_positions": for_positions}
        assert_the_same(triton.gather_tokens_grad(gradient, ids, **settings, **wanted),
                        reference.gather_tokens_grad(gradient, ids, **settings, **wanted))  # fmt: skip


@pytest.mark.parametrize(("sizes", "dtype", "programs"), PROBLEMS)
def test_unshuffle(sizes, dtype, programs, monkeypatch):
    monkeypatch.setattr(triton, "PROGRAMS_PER_MULTIPROCESSOR", programs)
    batch, length, kept, prefix, dim = sizes
    x, pos, token = tokens(batch, prefix + kept, dim, dtype), torch.randn(length + prefix, dim), torch.randn(1, dim)
    restore = torch.rand(batch, length).argsort(1)
    restore[0, : length // 2] = restore[0, 0]
    restore[-1, -1] = (-1, length, 2**40)[length % 3] if length > 1 else 0
    for positions in (pos, pos[prefix:], None):
        given = (x, restore, token, positions)
        wanted = reference.unshuffle_tokens(*given, prefix=prefix, dtype=torch.float32)
        got = triton.unshuffle_tokens(*given, prefix=prefix, dtype=torch.float32)
        assert torch.equal(got.nan_to_num(9), wanted.nan_to_num(9))
    gradient = tokens(batch, prefix + length, dim, dtype)
    for wanted in ((True, True, True), (True, False, False), (False, True, False), (False, False, True)):
        settings = {"keep": kept, "prefix": prefix, "dtype": dtype}
        settings |= dict(zip(("for_tokens", "for_mask", "for_positions"), wanted, strict=True))
        assert_the_same(triton.unshuffle_tokens_grad(gradient, restore, **settings),
                        reference.unshuffle_tokens_grad(gradient, restore, **settings))  # fmt: skip


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "patch"), [((2, 3, 8, 12), (4, 4)), ((1, 4, 6, 5), (3, 1)), ((2, 1, 3, 3), (3, 3))])
def test_patches(kind, shape, patch):
    images = torch.randint(0, 256, (shape[0], shape[2], shape[3], shape[1])).to(kind).permute(0, 3, 1, 2)
    patches = shape[2] // patch[0] * (shape[3] // patch[1])
    ids = torch.randint(0, patches, (shape[0], 3))
    ids[-1, -1] = (patches, -1)[patches % 2]
    settings = {
        "patch_height": patch[0], "patch_width": patch[1], "mean": [0.1, 0.2, 0.3, 0.4][: shape[1]],
        "std": [0.5, 0.6, 0.7, 0.8][: shape[1]], "dtype": torch.float32,
    }  # fmt: skip
    got = triton.visible_patches(images, ids, **settings)
    wanted = reference.visible_patches(images, ids, **settings)
    assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-5, equal_nan=True) and wanted.isnan().any()
