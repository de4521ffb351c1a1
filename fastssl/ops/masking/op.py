"""The operators of masked image modelling: schemas, shapes and gradients; ``reference.py`` holds the definitions.

``random_masks``, ``masks_from_noise``
    which patches of each image stay, from one sort per image.
``visible_patches``
    their pixels, before the patch embedding.
``gather_tokens``, ``gather_tokens_grad``
    tokens that stay, with their positional embeddings, behind the class token.
``unshuffle_tokens``, ``unshuffle_tokens_grad``
    the decoder's input: tokens back at their places, the mask token at all others, with positional embeddings.

Positions, prefix tokens (class token, registers) and the mask token come in the dtype in which sums are formed, and so
do their gradients. Indices are never trusted: one that is out of range gives a row of NaN and receives no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..precision import accumulator
from ..registry import define, define_gradient, forbid_gradient

IMAGE_DTYPES = (torch.uint8, *checks.FLOAT_DTYPES)
LONGEST = 1 << 24  # patches of an image, at most


def _check_keep(name: str, length: int, keep: int) -> None:
    if not 1 <= length <= LONGEST:
        raise ValueError(f"{name}: there must be 1 to {LONGEST} patches, got {length}")
    if not 1 <= keep <= length:
        raise ValueError(f"{name}: keep must be at least 1 and at most the number of patches, {length}, got {keep}")


def _check_random(index: Tensor, *, length: int, keep: int, seed: int, epoch: int, view: int) -> None:
    name = "random_masks"
    checks.check_samples(name, index, epoch=epoch, view=view)
    _check_keep(name, length, keep)


def _fake_masks(like: Tensor, length: int, keep: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = like.shape[0]
    kept, masked, restore = (like.new_empty(batch, n, dtype=torch.int64) for n in (keep, length - keep, length))
    return kept, masked, restore, like.new_empty(batch, length, dtype=torch.float32)


def _fake_random(index: Tensor, *, length: int, keep: int, **key: Any) -> tuple[Tensor, ...]:
    return _fake_masks(index, length, keep)


def _check_noise(noise: Tensor, *, keep: int) -> None:
    checks.check_tensor("masks_from_noise", "noise", noise, ndim=2, layout="[B, L]")
    _check_keep("masks_from_noise", noise.shape[1], keep)


def _fake_noise(noise: Tensor, *, keep: int) -> tuple[Tensor, ...]:
    return _fake_masks(noise, noise.shape[1], keep)


def _check_ids(name: str, argument: str, ids: Tensor, first: tuple[str, Tensor]) -> None:
    of, tensor = first
    if ids.dtype != torch.int64 or ids.ndim != 2 or 0 in ids.shape or len(ids) != len(tensor):
        raise ValueError(
            f"{name}: {argument} must be int64 ({len(tensor)}, n), n at least 1, got {ids.dtype} {tuple(ids.shape)}"
        )
    if ids.device != tensor.device:
        raise ValueError(f"{name}: {argument} must be on {tensor.device} like {of}, got {ids.device}")


def _check_patches(
    images: Tensor,
    ids: Tensor,
    *,
    patch_height: int,
    patch_width: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> None:
    name = "visible_patches"
    if images.dtype not in IMAGE_DTYPES or images.layout != torch.strided:
        raise TypeError(
            f"{name}: images must be a dense tensor of uint8, float32, bfloat16, float16 or float64, "
            f"got {images.layout} of {images.dtype}"
        )
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"{name}: images must be [B, C, H, W] and not empty, got {tuple(images.shape)}")
    _check_ids(name, "ids", ids, ("images", images))
    for side, size, patch in (("height", images.shape[2], patch_height), ("width", images.shape[3], patch_width)):
        if patch < 1 or size % patch:
            raise ValueError(f"{name}: patch_size must divide the images' {side} {size}, got {patch}")
    for argument, numbers in (("mean", mean), ("std", std)):
        if len(numbers) != images.shape[1]:
            raise ValueError(
                f"{name}: {argument} must have {images.shape[1]} numbers, one per channel, got {len(numbers)}"
            )
    if not all(value > 0 for value in std):
        raise ValueError(f"{name}: std must be above 0, got {list(std)}")
    if dtype not in checks.FLOAT_DTYPES:
        raise TypeError(f"{name}: dtype must be float32, bfloat16, float16 or float64, got {dtype}")


def _fake_patches(images: Tensor, ids: Tensor, *, patch_height: int, patch_width: int, dtype: torch.dtype, **_: Any):  # type: ignore[no-untyped-def]
    return images.new_empty(*ids.shape, images.shape[1] * patch_height * patch_width, dtype=dtype)


def _check_rows(name: str, argument: str, value: Tensor, x: Tensor, rows: Sequence[int] | None) -> None:
    """Rows that are added to tokens of x, or stand among them."""
    wanted, dim = accumulator(x), x.shape[-1]
    if value.dtype != wanted or value.device != x.device:
        raise ValueError(f"{name}: {argument} must be {wanted} on {x.device}, got {value.dtype} on {value.device}")
    if value.ndim != 2 or value.shape[1] != dim or (rows is not None and value.shape[0] not in rows):
        counts = "n" if rows is None else " or ".join(str(n) for n in dict.fromkeys(rows))
        raise ValueError(f"{name}: {argument} must have shape ({counts}, {dim}), got {tuple(value.shape)}")


def _check_dtype(name: str, x: Tensor, dtype: torch.dtype) -> None:
    if dtype not in (x.dtype, accumulator(x)):
        raise TypeError(f"{name}: dtype must be {x.dtype} or {accumulator(x)} for tokens of {x.dtype}, got {dtype}")


def _check_gather(x: Tensor, ids: Tensor, pos: Tensor | None, prefix: Tensor | None, *, dtype: torch.dtype) -> None:
    name = "gather_tokens"
    checks.check_tensor(name, "x", x, ndim=3, layout="[B, L, D]")
    _check_ids(name, "ids", ids, ("x", x))
    if prefix is not None:
        _check_rows(name, "prefix", prefix, x, None)
    if pos is not None:
        length, before = x.shape[1], 0 if prefix is None else prefix.shape[0]
        _check_rows(name, "pos", pos, x, (length, before + length))
    _check_dtype(name, x, dtype)


def _fake_gather(x: Tensor, ids: Tensor, pos: Tensor | None, prefix: Tensor | None, *, dtype: torch.dtype) -> Tensor:
    rows = ids.shape[1] + (0 if prefix is None else prefix.shape[0])
    return x.new_empty(x.shape[0], rows, x.shape[2], dtype=dtype)


def _check_gradient(name: str, gradient: Tensor, argument: str, ids: Tensor, prefix: int, dtype: torch.dtype) -> None:
    """What arrives for the prefix and a row per index."""
    checks.check_tensor(name, "gradient", gradient, ndim=3, layout="[B, n, D]")
    _check_ids(name, argument, ids, ("gradient", gradient))
    if prefix < 0 or gradient.shape[1] != prefix + ids.shape[1]:
        raise ValueError(f"{name}: gradient must have {prefix} + {ids.shape[1]} rows, got {tuple(gradient.shape)}")
    if accumulator(gradient) != (torch.float64 if dtype == torch.float64 else torch.float32):
        raise TypeError(f"{name}: gradients of {dtype} cannot be formed from {gradient.dtype}")


def _check_gather_grad(
    gradient: Tensor, ids: Tensor, *, length: int, prefix: int, dtype: torch.dtype, **wanted: bool
) -> None:
    name = "gather_tokens_grad"
    _check_gradient(name, gradient, "ids", ids, prefix, dtype)
    if length < 1:
        raise ValueError(f"{name}: length must be at least 1, got {length}")


def _fake_gather_grad(
    gradient: Tensor,
    ids: Tensor,
    *,
    length: int,
    prefix: int,
    dtype: torch.dtype,
    for_tokens: bool,
    for_positions: bool,
) -> tuple[Tensor, Tensor]:
    batch, _, dim = gradient.shape
    dx = gradient.new_empty((batch, length, dim) if for_tokens else (0,), dtype=dtype)
    rows = prefix + (length if for_positions else 0)
    return dx, gradient.new_empty((rows, dim), dtype=accumulator(gradient))


def _check_unshuffle(
    x: Tensor, restore: Tensor, mask_token: Tensor, pos: Tensor | None, *, prefix: int, dtype: torch.dtype
) -> None:
    name = "unshuffle_tokens"
    checks.check_tensor(name, "x", x, ndim=3, layout="[B, K, D]")
    _check_ids(name, "restore", restore, ("x", x))
    length, rows = restore.shape[1], x.shape[1]
    if not (0 <= prefix <= rows and rows - prefix <= length):
        raise ValueError(
            f"{name}: x must have from {prefix} to {prefix + length} tokens, the first before the patches and at most "
            f"as many as restore has places, got {rows}"
        )
    _check_rows(name, "mask_token", mask_token, x, (1,))
    if pos is not None:
        _check_rows(name, "pos", pos, x, (length, prefix + length))
    _check_dtype(name, x, dtype)


def _fake_unshuffle(
    x: Tensor, restore: Tensor, mask_token: Tensor, pos: Tensor | None, *, prefix: int, dtype: torch.dtype
) -> Tensor:
    return x.new_empty(x.shape[0], prefix + restore.shape[1], x.shape[2], dtype=dtype)


def _check_unshuffle_grad(
    gradient: Tensor, restore: Tensor, *, keep: int, prefix: int, dtype: torch.dtype, **wanted: bool
) -> None:
    name = "unshuffle_tokens_grad"
    _check_gradient(name, gradient, "restore", restore, prefix, dtype)
    if not 0 <= keep <= restore.shape[1]:
        raise ValueError(f"{name}: keep must be from 0 to {restore.shape[1]}, got {keep}")


def _fake_unshuffle_grad(
    gradient: Tensor,
    restore: Tensor,
    *,
    keep: int,
    prefix: int,
    dtype: torch.dtype,
    for_tokens: bool,
    for_mask: bool,
    for_positions: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, rows, dim = gradient.shape
    wide = accumulator(gradient)
    return (
        gradient.new_empty((batch, prefix + keep, dim) if for_tokens else (0,), dtype=dtype),
        gradient.new_empty((1 if for_mask else 0, dim), dtype=wide),
        gradient.new_empty((rows if for_positions else 0, dim), dtype=wide),
    )


define(
    "random_masks(Tensor index, *, SymInt length, SymInt keep, SymInt seed, SymInt epoch, int view, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    family=__package__,
    check=_check_random,
    fake=_fake_random,
    dtypes=(torch.int64,),
)
define(
    "masks_from_noise(Tensor noise, *, SymInt keep, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    family=__package__,
    check=_check_noise,
    fake=_fake_noise,
)
forbid_gradient("masks_from_noise", "masks carry no gradient to the noise")
define(
    "visible_patches(Tensor images, Tensor ids, *, int patch_height, int patch_width, float[] mean, float[] std, "
    "ScalarType dtype, str backend) -> Tensor",
    family=__package__,
    check=_check_patches,
    fake=_fake_patches,
    dtypes=IMAGE_DTYPES,
)
forbid_gradient("visible_patches", "patches carry no gradient to the images")
define(
    "gather_tokens(Tensor x, Tensor ids, Tensor? pos, Tensor? prefix, *, ScalarType dtype, str backend) -> Tensor",
    family=__package__,
    check=_check_gather,
    fake=_fake_gather,
)
define(
    "gather_tokens_grad(Tensor gradient, Tensor ids, *, SymInt length, SymInt prefix, ScalarType dtype, "
    "bool for_tokens, bool for_positions, str backend) -> (Tensor, Tensor)",
    family=__package__,
    check=_check_gather_grad,
    fake=_fake_gather_grad,
)
define(
    "unshuffle_tokens(Tensor x, Tensor restore, Tensor mask_token, Tensor? pos, *, SymInt prefix, ScalarType dtype, "
    "str backend) -> Tensor",
    family=__package__,
    check=_check_unshuffle,
    fake=_fake_unshuffle,
)
define(
    "unshuffle_tokens_grad(Tensor gradient, Tensor restore, *, SymInt keep, SymInt prefix, ScalarType dtype, "
    "bool for_tokens, bool for_mask, bool for_positions, str backend) -> (Tensor, Tensor, Tensor)",
    family=__package__,
    check=_check_unshuffle_grad,
    fake=_fake_unshuffle_grad,
)
for _name in ("gather_tokens_grad", "unshuffle_tokens_grad"):
    forbid_gradient(_name, "second derivatives are not implemented")


def _rows_of(sums: Tensor, pos_rows: int) -> Tensor:
    """The gradient of positions with or without rows for the prefix."""
    return sums[sums.shape[0] - pos_rows :]


def _setup_gather(ctx: Any, tensors: Sequence[Any], keywords: dict[str, Any], output: Tensor) -> None:
    x, ids, pos, prefix = tensors
    ctx.save_for_backward(ids)
    ctx.length, ctx.dtype, ctx.backend = x.shape[1], x.dtype, keywords["backend"]
    ctx.pos_rows = None if pos is None else pos.shape[0]
    ctx.prefix = 0 if prefix is None else prefix.shape[0]


def _gather_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (ids,) = ctx.saved_tensors
    for_tokens, _, for_positions, for_prefix = ctx.needs_input_grad[:4]
    dx, sums = torch.ops.fastssl.gather_tokens_grad(
        gradient, ids, length=ctx.length, prefix=ctx.prefix, dtype=ctx.dtype, for_tokens=for_tokens,
        for_positions=for_positions, backend=ctx.backend,
    )  # fmt: skip
    return (
        dx if for_tokens else None,
        None,
        _rows_of(sums, ctx.pos_rows) if for_positions else None,
        sums[: ctx.prefix].clone() if for_prefix else None,
    )


def _setup_unshuffle(ctx: Any, tensors: Sequence[Any], keywords: dict[str, Any], output: Tensor) -> None:
    x, restore, _, pos = tensors
    ctx.save_for_backward(restore)
    ctx.prefix, ctx.dtype, ctx.backend = keywords["prefix"], x.dtype, keywords["backend"]
    ctx.keep = x.shape[1] - ctx.prefix
    ctx.pos_rows = None if pos is None else pos.shape[0]


def _unshuffle_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (restore,) = ctx.saved_tensors
    for_tokens, _, for_mask, for_positions = ctx.needs_input_grad[:4]
    dx, dmask, sums = torch.ops.fastssl.unshuffle_tokens_grad(
        gradient, restore, keep=ctx.keep, prefix=ctx.prefix, dtype=ctx.dtype, for_tokens=for_tokens,
        for_mask=for_mask, for_positions=for_positions, backend=ctx.backend,
    )  # fmt: skip
    return (
        dx if for_tokens else None,
        None,
        dmask if for_mask else None,
        _rows_of(sums, ctx.pos_rows) if for_positions else None,
    )


define_gradient("gather_tokens", setup_context=_setup_gather, backward=_gather_backward)
define_gradient("unshuffle_tokens", setup_context=_setup_unshuffle, backward=_unshuffle_backward)
