"""Heads: what stands between the representation h and the loss, and is thrown away after training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ProjectionHead(nn.Sequential):
    """The projection g of SimCLR: a perceptron whose layers but the last are followed by BatchNorm and ReLU.

    Chen et al. 2020 use two layers and 128 outputs; SimCLR v2 (Chen et al. 2020b) three.

    Args:
        in_dim: width of the representation h.
        hidden_dim: width of the hidden layers.
        out_dim: width of the projection z.
        layers: number of linear layers.
        final_norm: whether a BatchNorm follows the last one, as in lightly's SimCLR.

    Raises:
        ValueError: if a number is below 1.
    """

    def __init__(
        self, in_dim: int, hidden_dim: int, out_dim: int = 128, layers: int = 2, final_norm: bool = False
    ) -> None:
        numbers = {"in_dim": in_dim, "hidden_dim": hidden_dim, "out_dim": out_dim, "layers": layers}
        for name, value in numbers.items():
            if value < 1:
                raise ValueError(f"ProjectionHead: {name} must be at least 1, got {value}")
        modules: list[nn.Module] = []
        for _ in range(layers - 1):
            # BatchNorm subtracts the mean, so that a bias before it would do nothing.
            modules += [nn.Linear(in_dim, hidden_dim, bias=False), nn.BatchNorm1d(hidden_dim), nn.ReLU(inplace=True)]
            in_dim = hidden_dim
        modules.append(nn.Linear(in_dim, out_dim, bias=not final_norm))
        if final_norm:
            modules.append(nn.BatchNorm1d(out_dim))
        super().__init__(*modules)

    def forward(self, h: Tensor) -> Tensor:
        """h [B, in_dim] -> z [B, out_dim], not normalised: the loss does that."""
        return super().forward(h)

    def first(self, layers: int) -> nn.Sequential:
        """The first hidden layers, with their BatchNorm and ReLU: [B, in_dim] -> [B, hidden_dim].

        SimCLR v2 fine-tunes from there (Chen et al. 2020b, section 3). The modules are this head's own.

        Raises:
            ValueError: if there are not so many, or `layers` is below 1.
        """
        ends = [place + 1 for place, module in enumerate(self) if isinstance(module, nn.ReLU)]
        if not 1 <= layers <= len(ends):
            raise ValueError(f"layers must be from 1 to {len(ends)}, the head's hidden layers, got {layers}")
        return nn.Sequential(*list(self)[: ends[layers - 1]])


class DINOHead(nn.Module):
    """The head of DINO: Caron et al. 2021 (arXiv 2104.14294), appendix C.

    A perceptron with GELU ends in a bottleneck z, which is L2-normalised; logits are its cosine similarities with the
    prototypes, the rows of a weight-normalised linear layer without bias.

    Args:
        in_dim: width of the representation h.
        out_dim: number of prototypes, K.
        hidden_dim: width of the hidden layers.
        bottleneck_dim: width of z.
        layers: linear layers up to z.
        batch_norm: whether hidden layers have BatchNorm, as for convolutional networks.
        norm_last_layer: whether the length of the prototypes stays 1. Longer ones help some, and may make training
            unstable.

    Raises:
        ValueError: if a number is below 1.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        layers: int = 3,
        batch_norm: bool = False,
        norm_last_layer: bool = True,
    ) -> None:
        super().__init__()
        numbers = {
            "in_dim": in_dim,
            "out_dim": out_dim,
            "hidden_dim": hidden_dim,
            "bottleneck_dim": bottleneck_dim,
            "layers": layers,
        }
        for name, value in numbers.items():
            if value < 1:
                raise ValueError(f"DINOHead: {name} must be at least 1, got {value}")
        modules: list[nn.Module] = []
        for _ in range(layers - 1):
            modules.append(nn.Linear(in_dim, hidden_dim, bias=not batch_norm))
            if batch_norm:
                modules.append(nn.BatchNorm1d(hidden_dim))
            modules.append(nn.GELU())
            in_dim = hidden_dim
        modules.append(nn.Linear(in_dim, bottleneck_dim))
        self.mlp = nn.Sequential(*modules)
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.last_layer = Prototypes(bottleneck_dim, out_dim, learn_length=not norm_last_layer)

    def forward(self, h: Tensor) -> Tensor:
        """h [B, in_dim] -> logits [B, out_dim]."""
        return self.last_layer(F.normalize(self.mlp(h), dim=-1))


class Prototypes(nn.Module):
    """A weight-normalised linear layer without bias: Salimans and Kingma 2016 (arXiv 1602.07868).

    Args:
        in_dim: width of the input.
        out_dim: number of prototypes.
        learn_length: whether their lengths are learned; else all are 1.
    """

    def __init__(self, in_dim: int, out_dim: int, learn_length: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(in_dim, out_dim, bias=False).weight.detach())
        self.length = nn.Parameter(torch.ones(out_dim, 1)) if learn_length else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_dim] -> [B, out_dim]."""
        directions = F.normalize(self.weight, dim=1)
        return F.linear(x, directions if self.length is None else self.length * directions)
