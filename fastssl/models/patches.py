"""What a backbone says about each patch of an image: the attention of its last block, and the features of patches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class PatchAttention(NamedTuple):
    """Attention of the last block, head by head.

    Attributes:
        weights: [B, heads, N], over all tokens; each row sums to 1.
        prefix: how many of the tokens are no patches: class token and registers, which come first.
        grid: rows and columns of patches.
        of_class_token: whether the class token attends; else, where there is none, the mean of all tokens.
    """

    weights: Tensor
    prefix: int
    grid: tuple[int, int]
    of_class_token: bool

    @property
    def maps(self) -> Tensor:
        """The part that goes to the patches, [B, heads, rows, columns]."""
        return self.weights[..., self.prefix :].unflatten(-1, self.grid)


class _Recorder(TorchFunctionMode):
    """Keeps queries and keys of the last self-attention, after norms and rotations, and what is added to its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.found: tuple[Tensor, Tensor, Tensor | None, float | None] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            q, k = args[:2]
            if q.shape == k.shape:  # not a pooling by a few queries of its own
                mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
                self.found = q, k, mask, kwargs.get("scale")
        return func(*args, **kwargs)


@contextmanager
def _fused(backbone: nn.Module) -> Iterator[None]:
    """Let timm's attention call scaled_dot_product_attention, which is where it can be seen."""
    modules: list[Any] = [module for module in backbone.modules() if hasattr(module, "fused_attn")]
    before = [module.fused_attn for module in modules]
    try:
        for module in modules:
            module.fused_attn = True
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.fused_attn = value


@torch.no_grad()
def patch_attention(backbone: nn.Module, x: Tensor) -> PatchAttention:
    """Where the class token looks in the last block, as in Caron et al. 2021 (arXiv 2104.14294), figure 1.

    The weights are computed from the queries and keys that the block itself computes, whether or not timm fuses its
    attention: qk-norms, rotary embeddings and biases of positions are in them.

    Args:
        backbone: a vision transformer of timm (VisionTransformer, Eva, BEiT and what is built on them).
        x: float [B, 3, H, W], normalised.

    Raises:
        ValueError: if the backbone has no attention between all patches of an image.
    """
    name = type(backbone).__name__
    prefix = getattr(backbone, "num_prefix_tokens", None)
    if prefix is None or not hasattr(backbone, "patch_embed"):
        raise ValueError(f"the backbone must be a vision transformer, got {name}, which has none to show")
    recorder = _Recorder()
    with _evaluating(backbone), _fused(backbone), recorder:
        backbone.forward_features(x)  # type: ignore[operator]  # timm's models have it
    rows, columns = grid = _grid(backbone, x)
    if recorder.found is None or recorder.found[0].shape[:1] + recorder.found[0].shape[2:3] != (
        len(x),
        prefix + rows * columns,
    ):
        raise ValueError(f"the last block of {name} must compare all patches of an image, it does not")
    q, k, mask, scale = recorder.found
    of_class_token = getattr(backbone, "cls_token", None) is not None
    precise = torch.promote_types(q.dtype, torch.float32)
    q, k = q.to(precise), k.to(precise)
    if of_class_token:
        q = q[:, :, :1]
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=precise).masked_fill(~mask, -math.inf)
        mask = mask.to(precise).expand(len(q), q.shape[1], -1, -1)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    weights = []
    for head in range(q.shape[1]):  # one at a time: without a class token it is a matrix of all patches
        logits = scale * q[:, head] @ k[:, head].mT
        if mask is not None:
            logits = logits + mask[:, head, : logits.shape[1]]
        weights.append(logits.softmax(-1).mean(1))
    return PatchAttention(torch.stack(weights, 1), prefix, grid, of_class_token)


@torch.no_grad()
def patch_features(backbone: nn.Module, x: Tensor) -> Tensor:
    """Features of the patches after the last block and its norm, or the last map of a convolutional network.

    Args:
        backbone: a model of timm.
        x: float [B, 3, H, W], normalised.

    Returns:
        [B, rows, columns, D].

    Raises:
        ValueError: if the backbone has no such features.
    """
    with _evaluating(backbone):
        features: Any = backbone.forward_features(x)  # type: ignore[operator]  # timm's models have it
    if isinstance(features, Tensor) and features.ndim == 4:
        last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
        return features if last else features.permute(0, 2, 3, 1)
    if isinstance(features, Tensor) and features.ndim == 3 and hasattr(backbone, "patch_embed"):
        rows, columns = _grid(backbone, x)
        patches = features[:, getattr(backbone, "num_prefix_tokens", 0) :]
        if patches.shape[1] == rows * columns:
            return patches.unflatten(1, (rows, columns))
    raise ValueError(f"the backbone must have a map of features, {type(backbone).__name__} has none that we know")


def whole_patches(backbone: nn.Module, size: int) -> int:
    """The largest side up to `size` pixels that is a multiple of the patches of a backbone.

    Raises:
        ValueError: if `size` is smaller than a patch.
    """
    if not hasattr(backbone, "patch_embed"):
        return size  # convolutions take any
    patch = max(_patch(backbone))
    if size < patch:
        raise ValueError(f"size must be at least {patch}, the side of a patch of the backbone, got {size}")
    return size // patch * patch


def _patch(backbone: Any) -> tuple[int, int]:
    size = getattr(backbone.patch_embed, "patch_size", 1)
    return (size, size) if isinstance(size, int) else tuple(size)


def _grid(backbone: Any, x: Tensor) -> tuple[int, int]:
    height, width = _patch(backbone)
    return x.shape[-2] // height, x.shape[-1] // width


@contextmanager
def _evaluating(backbone: nn.Module) -> Iterator[None]:
    training = backbone.training
    backbone.eval()
    try:
        yield
    finally:
        backbone.train(training)
