"""Masked image modelling: which patches stay, their pixels and tokens, and the decoder's input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import backends, ops  # noqa: F401 - ops registers the operators
from ..ops import checks
from ..ops.precision import accumulator


class Masks(NamedTuple):
    """Which patches of each image stay, in the order in which :func:`gather_tokens` puts them.

    Attributes:
        keep: int64 [B, K], the patches that stay, in random order.
        masked: int64 [B, L - K], the others, in random order.
        restore: int64 [B, L], where each patch stands in ``cat([keep, masked], 1)``.
        mask: float32 [B, L], 1 where a patch was removed.
    """

    keep: Tensor
    masked: Tensor
    restore: Tensor
    mask: Tensor


def random_masks(
    index: Tensor,
    length: int,
    *,
    mask_ratio: float | None = None,
    keep: int | None = None,
    seed: int,
    epoch: int = 0,
    view: int = 0,
) -> Masks:
    """Random masks of He et al., "Masked Autoencoders Are Scalable Vision Learners", 2022: patches without replacement.

    A function of (seed, epoch, index, view) and nothing else: neither of the batch in which an image comes, nor of
    workers, the device or any generator's state. Every patch gets a word of a Philox stream (which is independent of
    the words from which :func:`view_parameters` draws); those with the smallest stay. One sort per image.

    Args:
        index: int64 [B], position of each image in its data set; the lowest 32 bits count.
        length: number of patches of an image, L, at least 1.
        mask_ratio: share of patches to remove, in [0, 1): ``int(length * (1 - mask_ratio))`` stay, as there.
        keep: or instead the number of patches that stay, 1 to ``length``.
        seed: of the run, 0 to 2^64 - 1.
        epoch: 0 to 2^32 - 1.
        view: number of the view: other numbers are independent draws. 0 to 2^32 - 1.

    Returns:
        :class:`Masks` on ``index``'s device.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.

    Example:
        >>> masks = random_masks(index, 196, mask_ratio=0.75, seed=0, epoch=epoch)
        >>> tokens = gather_tokens(patch_embed(images), masks.keep, pos_embed, cls_token)
    """
    name = "random_masks"
    checks.check_is_tensor(name, "index", index, "int64 [B]")
    checks.check_count(name, "length", length, minimum=1)
    return Masks(
        *torch.ops.fastssl.random_masks(
            index,
            length=length,
            keep=kept_patches(name, length, mask_ratio, keep),
            **checks.philox_key(name, seed=seed, epoch=epoch, view=view),
            backend=backends.forced(),
        )
    )


def masks_from_noise(noise: Tensor, *, mask_ratio: float | None = None, keep: int | None = None) -> Masks:
    """Masks from given noise: the patches with the smallest stay, as in ``random_masking`` of facebookresearch/mae.

    Bit for bit what ``argsort(noise)`` and ``argsort(argsort(noise))`` give there; equal noise stands in the order of
    the patches, NaN behind all numbers.

    Args:
        noise: [B, L], float32, bfloat16, float16 or float64.
        mask_ratio, keep: as in :func:`random_masks`.

    Returns:
        :class:`Masks` on ``noise``'s device.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    name = "masks_from_noise"
    checks.check_tensor(name, "noise", noise, ndim=2, layout="[B, L]")
    keep = kept_patches(name, noise.shape[1], mask_ratio, keep)
    return Masks(*torch.ops.fastssl.masks_from_noise(noise.detach(), keep=keep, backend=backends.forced()))


def visible_patches(
    images: Tensor,
    ids: Tensor,
    patch_size: int | tuple[int, int],
    *,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Pixels of the patches that stay, so that the patch embedding works on those alone.

    With a convolution ``embed`` whose stride is its kernel's size, ``linear(visible_patches(images, ids, p),
    embed.weight.flatten(1), embed.bias)`` equals the embedding of the whole image at ``ids``, for a share K / L of the
    work. No gradient reaches the images.

    Args:
        images: [B, C, H, W] with any strides, uint8 or a floating dtype. Not written to.
        ids: int64 [B, K], patches row by row as the convolution numbers them. One that is out of range gives NaN.
        patch_size: height and width of a patch in pixels, which divide the image's; or one number for both.
        mean: per channel (or one for all), subtracted; for values in [0, 1] where images are uint8. None: 0.
        std: per channel (or one for all), above 0, divides. None: 1.
        dtype: of the result, a floating one. None: that of the images, float32 for uint8.

    Returns:
        [B, K, C * height * width], channel by channel, row by row: the order of the convolution's weight.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    name = "visible_patches"
    for argument, value in (("images", images), ("ids", ids)):
        checks.check_is_tensor(name, argument, value)
    if images.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name}: images must not require a gradient: none reaches them through their patches")
    height, width = _pair(name, "patch_size", patch_size)
    if dtype is None:
        dtype = torch.float32 if images.dtype == torch.uint8 else images.dtype
    return torch.ops.fastssl.visible_patches(
        images,
        ids,
        patch_height=height,
        patch_width=width,
        mean=_per_channel(images, 0.0 if mean is None else mean),
        std=_per_channel(images, 1.0 if std is None else std),
        dtype=dtype,
        backend=backends.forced(),
    )


def gather_tokens(x: Tensor, ids: Tensor, pos: Tensor | None = None, class_token: Tensor | None = None) -> Tensor:
    """Tokens that stay, each with its positional embedding, behind the class token: the encoder's input in one pass.

    ``cat([class_token + pos[0], (x + pos[1:])[b, ids]], 1)``, as in ``forward_encoder`` of facebookresearch/mae, with
    each sum rounded once. Differentiable in ``x``, ``pos`` and ``class_token``; their gradients are added up in float32
    (float64 for float64) in a fixed order.

    Args:
        x: tokens of all patches, [B, L, D].
        ids: int64 [B, K]; they may repeat. One that is out of range gives a row of NaN, and no gradient.
        pos: [L, D] or [1, L, D]; with class tokens also [P + L, D], whose first P rows are theirs.
        class_token: P tokens that go before the others (a class token, registers): [D], [P, D] or [1, P, D].

    Returns:
        [B, P + K, D] in the dtype to which PyTorch promotes the arguments' dtypes.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    name = "gather_tokens"
    checks.check_is_tensor(name, "ids", ids)
    checks.check_tensor(name, "x", x, ndim=3, layout="[B, L, D]")
    x, dtype, (pos, prefix) = _promoted(name, x, pos=pos, class_token=class_token)
    return torch.ops.fastssl.gather_tokens(x, ids, pos, prefix, dtype=dtype, backend=backends.forced())


def unshuffle_tokens(
    x: Tensor, restore: Tensor, mask_token: Tensor, pos: Tensor | None = None, *, num_prefix_tokens: int = 0
) -> Tensor:
    """The decoder's input in one pass: tokens back at their places, the mask token at all others, and positions.

    What ``forward_decoder`` of facebookresearch/mae does by appending mask tokens, gathering and adding, with each sum
    rounded once. Differentiable in ``x``, ``mask_token`` and ``pos``; their gradients are added up in float32 (float64
    for float64) in a fixed order.

    Args:
        x: [B, P + K, D], K at most L: tokens before the patches (class token, registers), then those that stayed.
        restore: int64 [B, L]: at place l comes token ``restore[b, l]`` of the patches, the mask token from K on. A
            number outside 0 to L - 1 gives a row of NaN, and no gradient.
        mask_token: D numbers, of any shape.
        pos: [L, D] or [1, L, D], or [P + L, D], whose first P rows are added to the tokens before the patches.
        num_prefix_tokens: P.

    Returns:
        [B, P + L, D] in the dtype to which PyTorch promotes the arguments' dtypes.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    name = "unshuffle_tokens"
    checks.check_is_tensor(name, "restore", restore)
    checks.check_tensor(name, "x", x, ndim=3, layout="[B, K, D]")
    checks.check_count(name, "num_prefix_tokens", num_prefix_tokens, minimum=0)
    checks.check_is_tensor(name, "mask_token", mask_token)
    if mask_token.numel() != x.shape[2]:
        raise ValueError(f"{name}: mask_token must have {x.shape[2]} numbers, got shape {tuple(mask_token.shape)}")
    x, dtype, (mask, pos) = _promoted(name, x, mask_token=mask_token.reshape(1, -1), pos=pos)
    return torch.ops.fastssl.unshuffle_tokens(
        x, restore, mask, pos, prefix=num_prefix_tokens, dtype=dtype, backend=backends.forced()
    )


def kept_patches(name: str, length: int, mask_ratio: float | None, keep: int | None) -> int:
    """How many of ``length`` patches stay, from one of the two."""
    if (mask_ratio is None) == (keep is None):
        raise ValueError(f"{name}: exactly one of mask_ratio and keep must be given, got {mask_ratio} and {keep}")
    if keep is None:
        keep = int(length * (1 - checks.check_range(name, "mask_ratio", mask_ratio, maximum=1.0)))
        if keep == 0:
            raise ValueError(f"{name}: mask_ratio must leave a patch of {length}, got {mask_ratio}")
    return checks.check_count(name, "keep", keep, minimum=1)


def _pair(name: str, argument: str, value: int | tuple[int, int]) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else value
    return tuple(checks.check_count(name, argument, side, minimum=1) for side in (first, second))  # type: ignore[return-value]


def _per_channel(images: Tensor, values: Sequence[float] | float) -> list[float]:
    if isinstance(values, (int, float)):
        return [float(values)] * (images.shape[1] if images.ndim == 4 else 1)
    return [float(value) for value in values]


def _promoted(name: str, x: Tensor, **rows: Tensor | None) -> tuple[Tensor, torch.dtype, list[Tensor | None]]:
    """Tokens, the result's dtype, and the rows [n, D] that join them in the dtype in which sums are formed."""
    dtype = x.dtype
    for argument, value in rows.items():
        if value is not None:
            checks.check_number_tensor(name, argument, value)
            dtype = torch.promote_types(dtype, value.dtype)
    if dtype not in (x.dtype, accumulator(x)):  # float64, or float32 from the two formats of 16 bits
        x = x.to(dtype)
    return x, dtype, [None if value is None else _rows(name, argument, value).to(accumulator(x))
                      for argument, value in rows.items()]  # fmt: skip


def _rows(name: str, argument: str, value: Tensor) -> Tensor:
    """[n, D] from that, from [1, n, D] or from [D]."""
    if value.ndim == 1:
        return value[None]
    if value.ndim == 3 and value.shape[0] == 1:
        return value[0]
    if value.ndim != 2:
        raise ValueError(f"{name}: {argument} must be [n, D] or [1, n, D], got {tuple(value.shape)}")
    return value
