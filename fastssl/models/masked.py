"""Masked autoencoders around a vision transformer of timm: its patches, fixed positions, and the decoder."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from fastssl.functional import unshuffle_tokens

EPSILON = 1e-6  # of all norms, as in MAE's code


def patch_grid(method: str, backbone: Any) -> tuple[int, tuple[int, int]]:
    """Side of a backbone's patches, and their rows and columns, of a plain vision transformer with a class token.

    Raises:
        ValueError: in the name of the method, if the backbone is another.
    """
    embedding, tokens = getattr(backbone, "patch_embed", None), getattr(backbone, "cls_token", None)
    size = getattr(embedding, "patch_size", (0, 1))
    if tokens is None or getattr(backbone, "num_prefix_tokens", 0) != 1 or size[0] != size[1]:
        raise ValueError(
            f"{method}: backbone must be a vision transformer of timm with a class token and square patches, such as "
            f"vit_base_patch16_224, got {type(backbone).__name__}"
        )
    rows, columns = embedding.grid_size  # type: ignore[union-attr]
    return size[0], (rows, columns)


def sincos_positions(dim: int, grid: tuple[int, int], tokens: int = 1) -> Tensor:
    """Fixed two-dimensional positions: half of the numbers for the column, half for the row, sines before cosines.

    Vaswani et al., "Attention Is All You Need", 2017, section 3.5, for each axis; the order is that of MAE's code.

    Args:
        dim: width, a multiple of 4.
        grid: rows and columns of patches.
        tokens: rows of zeros that go before the patches, for class tokens.

    Returns:
        float32 [1, tokens + rows * columns, dim].

    Raises:
        ValueError: if `dim` is no multiple of 4.
    """
    if dim < 4 or dim % 4:
        raise ValueError(f"sincos_positions: dim must be a multiple of 4, got {dim}")
    frequency = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in grid)
    angles = [axis.flatten()[:, None] * frequency for axis in torch.meshgrid(rows, columns, indexing="ij")]
    table = torch.cat([angles[1].sin(), angles[1].cos(), angles[0].sin(), angles[0].cos()], 1)
    return F.pad(table, (0, 0, tokens, 0)).float()[None]


def initialize(module: nn.Module) -> None:
    """MAE's start, for ``module.apply``: Xavier for linear layers, which patch embeddings are too."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        with torch.no_grad():  # as a matrix, however a convolution's weights lie in memory
            weight = torch.empty(module.weight.flatten(1).shape, dtype=module.weight.dtype)
            module.weight.copy_(nn.init.xavier_uniform_(weight).view_as(module.weight))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class MAEDecoder(nn.Module):
    """The decoder of MAE: mask tokens at the places of removed patches, transformer blocks, pixels of every patch.

    He et al., "Masked Autoencoders Are Scalable Vision Learners", 2022, section 3. With ``decoder_`` before them (but
    ``mask_token``) its parameters have the names of MAE's code.

    Args:
        in_dim: width of the encoder.
        grid: rows and columns of patches.
        out_dim: numbers of a patch.
        dim: width.
        depth: number of blocks.
        heads: of their attention.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self, in_dim: int, grid: tuple[int, int], out_dim: int, dim: int = 512, depth: int = 8, heads: int = 16
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("heads", heads)):
            if value < 1:
                raise ValueError(f"MAEDecoder: {name} must be at least 1, got {value}")
        if depth < 0:
            raise ValueError(f"MAEDecoder: depth must be at least 0, got {depth}")
        if dim % heads:
            raise ValueError(f"MAEDecoder: heads must divide dim, {dim}, got {heads}")
        norm: Any = partial(nn.LayerNorm, eps=EPSILON)
        self.embed = nn.Linear(in_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(sincos_positions(dim, grid), requires_grad=False)
        self.blocks = nn.ModuleList(Block(dim, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        self.norm = norm(dim)
        self.pred = nn.Linear(dim, out_dim)
        self.apply(initialize)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, x: Tensor, restore: Tensor) -> Tensor:
        """Predictions of all patches, behind that of the class token.

        Args:
            x: the encoder's tokens, [B, 1 + K, in_dim].
            restore: int64 [B, L], from :func:`fastssl.functional.random_masks`.

        Returns:
            [B, 1 + L, out_dim].
        """
        x = unshuffle_tokens(self.embed(x), restore, self.mask_token, self.pos_embed, num_prefix_tokens=1)
        for block in self.blocks:
            x = block(x)
        return self.pred(self.norm(x))
