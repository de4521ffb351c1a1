"""Moves of masked image modelling: against the formulas of facebookresearch/mae, and against the definition."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness import BACKENDS, DTYPES, assert_as_accurate_as_eager, poisoned_outputs, serving
from torch import Tensor

import fastssl
from fastssl import functional
from fastssl.ops.masking import reference
from fastssl.ops.philox import sample_words

EVERY = pytest.mark.parametrize(("backend", "device"), BACKENDS)


@pytest.fixture(autouse=True)
def unwritten_memory_shows():
    with poisoned_outputs():
        yield


def published_masking(x: Tensor, mask_ratio: float, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``random_masking`` as He et al. publish it, with given noise."""
    keep = int(x.shape[1] * (1 - mask_ratio))
    order = noise.argsort(dim=1, stable=True)
    restore = order.argsort(dim=1)
    mask = torch.ones(noise.shape, device=x.device)
    mask[:, :keep] = 0
    return x.gather(1, order[:, :keep, None].expand(-1, -1, x.shape[2])), mask.gather(1, restore), restore


# Masks


@EVERY
@pytest.mark.parametrize(
    ("length", "ratio", "dtype"),
    [(196, 0.75, torch.float32), (7, 0.0, torch.float64), (1, 0.0, torch.float32), (4096, 0.9, torch.bfloat16)],
)
def test_masks_equal_the_published_ones(backend, device, length, ratio, dtype):
    noise = torch.randn(3, length, device=device).to(dtype)  # bfloat16: many are equal
    noise[:, length // 2 :] = noise[:, : (length + 1) // 2]
    noise[0, 0], noise[1, -1], noise[2, :2] = torch.nan, -torch.inf, torch.tensor([-0.0, 0.0])[:length]
    x = torch.randn(3, length, 8, device=device)
    with serving(backend, device, dtype, "masks_from_noise"):
        masks = functional.masks_from_noise(noise, mask_ratio=ratio)
        tokens = functional.gather_tokens(x, masks.keep)
    for got, wanted in zip((tokens, masks.mask, masks.restore), published_masking(x, ratio, noise), strict=True):
        assert torch.equal(got, wanted)
    assert torch.equal(torch.cat([masks.keep, masks.masked], 1).gather(1, masks.restore).sort(1).values[0],
                       torch.arange(length, device=device))  # fmt: skip


@EVERY
def test_masks_are_a_function_of_their_key_alone(backend, device):
    index = torch.tensor([5, 0, 2**40 + 5, -1], device=device)
    key = {"seed": 2**63 + 1, "epoch": 7, "view": 2}
    with serving(backend, device, torch.int64, "random_masks"):
        masks = functional.random_masks(index, 50, keep=13, **key)
        alone = functional.random_masks(index[1:2], 50, keep=13, **key)
        others = [functional.random_masks(index, 50, keep=13, **{**key, name: 3}) for name in key]
    with fastssl.backend("reference"):
        wanted = functional.random_masks(index.cpu(), 50, keep=13, **key)
    for got, want, one in zip(masks, wanted, alone, strict=True):
        assert torch.equal(got.cpu(), want) and torch.equal(got[1:2], one)
        assert torch.equal(got[0], got[2])  # the lowest 32 bits count
    assert not any(torch.equal(masks.keep, other.keep) for other in others)


def test_masks_and_views_draw_from_different_words():
    """A view's words are the first of a sample's stream."""
    index = torch.arange(4)
    first = sample_words(4 * 1024, 0, seed=1, epoch=0, index=index, view=0)
    noise = sample_words(196, reference.NOISE_BLOCK, seed=1, epoch=0, index=index, view=0)
    assert not torch.isin(noise[0], first[0]).any()


@pytest.mark.parametrize(("length", "ratio", "kept"), [(196, 0.75, 49), (196, 0.6, 78), (14, 0.5, 7)])
def test_every_patch_stays_equally_often(length, ratio, kept):
    images = 4000
    masks = functional.random_masks(torch.arange(images), length, mask_ratio=ratio, seed=0)
    assert masks.keep.shape == (images, kept) and (masks.mask.sum(1) == length - kept).all()
    share = kept / length
    deviation = (1 - masks.mask).mean(0) - share
    assert deviation.abs().max() < 4.5 * (share * (1 - share) / images) ** 0.5
    assert abs(float(masks.keep.double().mean()) - (length - 1) / 2) < 0.05 * length  # in no order
    together = ((masks.mask[:, 0] == 0) & (masks.mask[:, 1] == 0)).double().mean()
    assert abs(float(together) - share * (kept - 1) / (length - 1)) < 0.03  # without replacement


# Tokens


def in_nan(x: Tensor) -> Tensor:
    """The same tokens [B, L, D] as a view inside of NaN, with gaps."""
    around = x.new_full((x.shape[0] + 2, x.shape[1] + 3, x.shape[2] + 5), torch.nan)
    inside = around[1:-1, 2:-1, 3:-2]
    inside.copy_(x)
    return inside


def moves(name: str, device: str, dtype: torch.dtype, sizes: tuple[int, int, int, int, int], pos_rows: int) -> Any:
    """A function of its differentiable arguments, these, and the same function's arguments for gradients."""
    batch, length, kept, prefix, dim = sizes
    generator = torch.Generator().manual_seed(sum(sizes))

    def make(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    pos = make(pos_rows, dim) if pos_rows else None
    restore = torch.rand(batch, length, generator=generator).argsort(1).argsort(1).to(device)
    if name == "gather":
        ids = restore.argsort(1)[:, :kept].contiguous()
        ids[0, : kept // 2] = ids[0, 0]  # the same more than once
        ids[-1, -1] = length + 3 if kept > 1 else ids[-1, -1]
        tokens = make(prefix, dim) if prefix else None
        return lambda x, pos, tokens: functional.gather_tokens(x, ids, pos, tokens), [
            make(batch, length, dim),
            pos,
            tokens,
        ]
    restore[0, : length // 2] = restore[0, 0]
    restore[-1, -1] = -1 if length > 1 else restore[-1, -1]
    return (
        lambda x, pos, token: functional.unshuffle_tokens(x, restore, token, pos, num_prefix_tokens=prefix),
        [make(batch, prefix + kept, dim), pos, make(1, 1, dim)],
    )


SIZES = [(3, 10, 4, 1, 24), (2, 9, 9, 0, 7), (5, 33, 8, 2, 1100), (1, 1, 1, 1, 1), (40, 16, 4, 1, 768)]


@EVERY
@pytest.mark.parametrize("name", ["gather", "unshuffle"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_tokens_and_gradients(name, backend, device, dtype, sizes):
    length, prefix = sizes[1], sizes[3]
    function, arguments = moves(name, device, dtype, sizes, length + prefix if sizes[0] % 2 else length)
    results = {}
    for which, wide in ((backend, dtype), ("reference", dtype), ("reference", torch.float64)):
        inputs = [None if value is None else value.detach().to(wide) for value in arguments]
        inputs = [x if x is None else (in_nan(x) if x.ndim == 3 else x.clone()).requires_grad_() for x in inputs]
        with serving(which, device, dtype, f"{name}_tokens") if which == backend else fastssl.backend(which):
            out = function(*inputs)
            gradient = in_nan(
                torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out).to(dtype).to(wide)
            )
            out.backward(gradient)
        results[which, wide] = [out, *(None if x is None else x.grad for x in inputs)]
    got, eager, truth = results[backend, dtype], results["reference", dtype], results["reference", torch.float64]
    assert torch.equal(got[0].nan_to_num(9), eager[0].nan_to_num(9)) and got[0].dtype == eager[0].dtype
    for label, one, plain, exact in zip(("x", "pos", "token"), got[1:], eager[1:], truth[1:], strict=True):
        if one is not None:
            terms = torch.full_like(exact, 4.0 * sizes[0] * (length if label == "token" and name == "unshuffle" else 1))
            assert_as_accurate_as_eager(one, plain, exact, terms, label, refuses_zeros=False)


@EVERY
@pytest.mark.parametrize("name", ["gather", "unshuffle"])
def test_only_the_gradients_that_are_needed(name, backend, device):
    function, arguments = moves(name, device, torch.float32, (3, 12, 5, 1, 16), 13)
    full = None
    for needed in [(True, True, True), *itertools.product([True, False], repeat=3)]:
        if not any(needed):
            continue
        inputs = [value.clone().requires_grad_(on) for value, on in zip(arguments, needed, strict=True)]
        with serving(backend, device, operation=f"{name}_tokens"):
            function(*inputs).nan_to_num(0).square().sum().backward()
        grads = [x.grad for x in inputs]
        full = full or grads
        for grad, whole, on in zip(grads, full, needed, strict=True):
            assert (grad is not None) == on and (grad is None or torch.equal(grad, whole))


@pytest.mark.parametrize("name", ["gather", "unshuffle"])
def test_the_same_bits_on_any_number_of_threads(name):
    function, arguments = moves(name, "cpu", torch.float32, (64, 50, 12, 1, 384), 51)
    seen = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            inputs = [value.clone().requires_grad_() for value in arguments]
            with serving("cpp", "cpu", operation=f"{name}_tokens"):
                out = function(*inputs)
                out.nan_to_num(0).square().sum().backward()
            seen.append([out.detach().nan_to_num(0), *(x.grad for x in inputs)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in seen[1:] for a, b in zip(seen[0], other, strict=True))


@EVERY
def test_the_decoder_undoes_the_encoder(backend, device):
    """x [B, L, D] is found again where it was kept, the mask token elsewhere; facebookresearch's formula."""
    x = torch.randn(4, 12, 8, device=device)
    cls, token, pos = (torch.randn(n, 8, device=device) for n in (1, 1, 13))
    with serving(backend, device, operation="gather_tokens"):
        masks = functional.random_masks(torch.arange(4, device=device), 12, mask_ratio=0.75, seed=1)
        encoded = functional.gather_tokens(x, masks.keep, pos, cls)
        decoded = functional.unshuffle_tokens(encoded, masks.restore, token, pos[None], num_prefix_tokens=1)
    whole = torch.cat([encoded[:, 1:], token.repeat(4, 9, 1)], 1)
    whole = whole.gather(1, masks.restore[..., None].repeat(1, 1, 8))
    assert torch.equal(decoded, torch.cat([encoded[:, :1], whole], 1) + pos)
    removed = masks.mask.bool()
    assert torch.equal(decoded[:, 1:][~removed], (x + pos[1:] + pos[1:])[~removed])


@EVERY
@pytest.mark.parametrize("name", ["gather", "unshuffle"])
def test_gradcheck_and_opcheck(name, backend, device):
    function, arguments = moves(name, device, torch.float64, (2, 6, 3, 1, 3), 7)
    inputs = [value.requires_grad_() for value in arguments]
    with serving(backend, device, torch.float64, f"{name}_tokens"):
        assert torch.autograd.gradcheck(lambda *a: function(*a).nan_to_num(0), inputs)
        first = torch.autograd.grad(function(*inputs).nan_to_num(0).square().sum(), inputs[0], create_graph=True)[0]
        with pytest.raises(RuntimeError, match="second derivatives"):
            first.sum().backward()
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    x, pos, token = [t.detach().float() for t in arguments[:2]] + [arguments[2].detach().float().reshape(1, 3)]
    ids = torch.tensor([[1, 0, 2], [2, 1, 0]], device=device)
    settings = {"dtype": torch.float32, "backend": backend}
    operators = torch.ops.fastssl
    if name == "gather":
        torch.library.opcheck(operators.gather_tokens, (x, ids, pos, token), settings, test_utils=tests)
    else:
        wide = torch.tensor([[1, 0, 2, 3, 5, 4]] * 2, device=device)
        torch.library.opcheck(
            operators.unshuffle_tokens, (x, wide, token, pos), {**settings, "prefix": 1}, test_utils=tests
        )
    masks = {"keep": 2, "backend": backend}
    torch.library.opcheck(operators.masks_from_noise, (torch.rand(2, 5, device=device),), masks, test_utils=tests[::2])
    key = {"length": 5, "seed": 1, "epoch": 0, "view": 0, **masks}
    torch.library.opcheck(operators.random_masks, (torch.arange(2, device=device),), key, test_utils=tests[::2])
    pixels = {"patch_height": 2, "patch_width": 2, "mean": [0.0], "std": [1.0], **settings}
    images = torch.rand(2, 1, 4, 4, device=device)
    torch.library.opcheck(
        operators.visible_patches,
        (
            images,
            ids,
        ),
        pixels,
        test_utils=tests[::2],
    )


@EVERY
def test_dtypes_are_promoted(backend, device):
    x = torch.randn(2, 8, 16, device=device)
    pos, cls = torch.randn(1, 9, 16, device=device), torch.randn(1, 1, 16, device=device)
    ids = torch.tensor([[1, 5], [0, 7]], device=device)
    with serving(backend, device, operation="gather_tokens"):
        out = functional.gather_tokens(x.bfloat16(), ids, pos, cls)
        assert out.dtype == torch.float32  # as PyTorch promotes them
        assert torch.equal(out[:, 1:], (x.bfloat16() + pos[:, 1:]).gather(1, ids[..., None].expand(-1, -1, 16)))
        assert functional.gather_tokens(x.half(), ids, pos[:, 1:].double()).dtype == torch.float64
        assert functional.gather_tokens(x.half(), ids, pos[0, 1:].bfloat16()).dtype == torch.float32


def test_one_graph():
    """Nothing breaks it: no value is read, and seeds are arguments."""

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(x: Tensor, index: Tensor, pos: Tensor, token: Tensor) -> Tensor:
        masks = functional.random_masks(index, x.shape[1], mask_ratio=0.5, seed=3)
        out = functional.gather_tokens(x, masks.keep, pos, token)
        return functional.unshuffle_tokens(out, masks.restore, token, pos, num_prefix_tokens=1).square().sum()

    x, pos, token = (torch.randn(*shape, requires_grad=True) for shape in ((2, 8, 4), (9, 4), (1, 1, 4)))
    step(x, torch.arange(2), pos, token).backward()
    masks = functional.random_masks(torch.arange(2), 8, mask_ratio=0.5, seed=3)
    removed = masks.mask.bool()
    assert x.grad is not None and not x.grad[removed].any() and x.grad[~removed].all()


# Patches


@EVERY
@pytest.mark.parametrize(
    ("shape", "patch"),
    [((2, 3, 32, 48), (16, 16)), ((3, 1, 12, 10), (4, 5)), ((1, 4, 7, 7), (1, 1)), ((2, 2, 9, 6), (9, 6))],
)
@pytest.mark.parametrize("kind", ["uint8", "float32", "bfloat16", "float64"])
def test_embedding_visible_patches_equals_embedding_everything(backend, device, shape, patch, kind):
    dtype = getattr(torch, kind)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    if kind != "uint8":
        images = (images / 255).to(dtype)
    around = torch.zeros(shape[0] + 1, shape[2] + 2, shape[3] + 3, shape[1], dtype=dtype, device=device)
    strided = around[1:, 1:-1, 2:-1].permute(0, 3, 1, 2)
    strided.copy_(images)
    mean, std = [0.1 * (c + 1) for c in range(shape[1])], [0.2 + 0.1 * c for c in range(shape[1])]
    out_dtype = torch.float64 if kind == "float64" else torch.float32
    patches = shape[2] // patch[0] * (shape[3] // patch[1])
    ids = torch.stack([torch.randperm(patches)[: max(1, patches // 4)] for _ in range(shape[0])]).to(device)
    conv = torch.nn.Conv2d(shape[1], 5, patch, patch, device=device, dtype=out_dtype)
    with serving(backend, device, dtype, "visible_patches"):
        pixels = functional.visible_patches(images, ids, patch, mean=mean, std=std, dtype=out_dtype)
        assert torch.equal(functional.visible_patches(strided, ids, patch, mean=mean, std=std, dtype=out_dtype), pixels)
        plain = functional.visible_patches(images, ids, patch)
        half = functional.visible_patches(images, ids, patch, mean=mean, std=std, dtype=torch.float16)
        beyond = functional.visible_patches(images, torch.where(ids == ids[0, 0], patches, ids), patch)
    assert plain.dtype == (torch.float32 if kind == "uint8" else dtype)
    assert torch.equal(half, pixels.half()) or (half.float() - pixels).abs().max() < 4e-3
    assert beyond[0, 0].isnan().all() and beyond.isnan().sum() == (ids == ids[0, 0]).sum() * plain.shape[2]
    center, spread = (torch.tensor(v, dtype=out_dtype, device=device)[:, None, None] for v in (mean, std))
    whole = ((images.to(out_dtype) / (255 if kind == "uint8" else 1)) - center) / spread
    wanted = conv(whole).flatten(2).mT.gather(1, ids[..., None].expand(-1, -1, 5))
    assert torch.allclose(F.linear(pixels, conv.weight.flatten(1), conv.bias), wanted, rtol=1e-4, atol=2e-5)


# Errors


X, IDS = torch.zeros(2, 6, 4), torch.zeros(2, 3, dtype=torch.int64)
IMAGES = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: functional.random_masks(torch.arange(2), 9, seed=0), "exactly one of mask_ratio and keep"),
        (lambda: functional.random_masks(torch.arange(2), 9, keep=10, seed=0), "keep must be .* at most .* 9, got 10"),
        (lambda: functional.random_masks(torch.arange(2), 9, mask_ratio=1, seed=0), "must leave a patch of 9"),
        (lambda: functional.random_masks(torch.arange(2), 9, keep=1, seed=-1), r"seed must be in \[0, 2\^64\), got -1"),
        (lambda: functional.random_masks(torch.arange(2), 9, keep=1, seed=0, view=2**32), "view must be in"),
        (lambda: functional.random_masks(torch.arange(2.0), 9, keep=1, seed=0), "index must be int64"),
        (lambda: functional.random_masks([1], 9, keep=1, seed=0), "index must be a tensor int64"),
        (lambda: functional.masks_from_noise(torch.zeros(3), keep=1), r"noise must have shape \[B, L\]"),
        (lambda: functional.gather_tokens(X, IDS.int()), "ids must be int64"),
        (lambda: functional.gather_tokens(X, IDS[:1]), r"ids must be int64 \(2, n\)"),
        (lambda: functional.gather_tokens(X, IDS, torch.zeros(7, 4)), r"pos must have shape \(6, 4\), got \(7, 4\)"),
        (lambda: functional.gather_tokens(X, IDS, torch.zeros(2, 6, 4)), r"pos must be \[n, D\] or \[1, n, D\]"),
        (lambda: functional.gather_tokens(X, IDS, None, torch.zeros(5)), "prefix must have shape"),
        (lambda: functional.gather_tokens(X[0], IDS), r"x must have shape \[B, L, D\]"),
        (lambda: functional.unshuffle_tokens(X, IDS, torch.zeros(4)), "x must have from 0 to 3 tokens"),
        (lambda: functional.unshuffle_tokens(X, IDS, torch.zeros(5)), "mask_token must have 4 numbers"),
        (lambda: functional.visible_patches(IMAGES, IDS, 3), "patch_size must divide the images' height 8, got 3"),
        (lambda: functional.visible_patches(IMAGES.long(), IDS, 4), "images must be a dense tensor of uint8"),
        (lambda: functional.visible_patches(IMAGES, IDS, 4, mean=[1.0]), "mean must have 3 numbers"),
        (lambda: functional.visible_patches(IMAGES, IDS, 4, std=0), "std must be above 0"),
        (lambda: functional.visible_patches(IMAGES.clone().requires_grad_(), IDS, 4), "images must not require"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
