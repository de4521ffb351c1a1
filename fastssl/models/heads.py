"""Heads: what stands between the representation h and the loss, and is thrown away after training."""

from __future__ import annotations

from torch import Tensor, nn


class ProjectionHead(nn.Sequential):
    """The projection g of SimCLR: a perceptron whose layers but the last are followed by BatchNorm and ReLU.

    Chen et al. 2020 use two layers and 128 outputs; SimCLR v2 (Chen et al. 2020b) three.

    Args:
        in_dim: width of the representation h.
        hidden_dim: width of the hidden layers.
        out_dim: width of the projection z.
        layers: number of linear layers.

    Raises:
        ValueError: if a number is below 1.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int = 128, layers: int = 2) -> None:
        numbers = {"in_dim": in_dim, "hidden_dim": hidden_dim, "out_dim": out_dim, "layers": layers}
        for name, value in numbers.items():
            if value < 1:
                raise ValueError(f"ProjectionHead: {name} must be at least 1, got {value}")
        modules: list[nn.Module] = []
        for _ in range(layers - 1):
            # BatchNorm subtracts the mean, so that a bias before it would do nothing.
            modules += [nn.Linear(in_dim, hidden_dim, bias=False), nn.BatchNorm1d(hidden_dim), nn.ReLU(inplace=True)]
            in_dim = hidden_dim
        modules.append(nn.Linear(in_dim, out_dim))
        super().__init__(*modules)

    def forward(self, h: Tensor) -> Tensor:
        """h [B, in_dim] -> z [B, out_dim], not normalised: the loss does that."""
        return super().forward(h)
