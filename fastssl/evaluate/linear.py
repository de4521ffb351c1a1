"""Linear probe: multinomial logistic regression on frozen, standardised features.

What is quick, needs no choice and works with a single label per class: `fastssl fit` reports it, and the
semi-supervised protocol uses it. The sweep of the papers is in sweep.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.evaluate.features import Features


def standardization(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [D] of features [N, D]; a feature that never changes gets 1, which keeps it at 0."""
    std = x.std(0, correction=0)
    return x.mean(0), torch.where(std > 1e-6 * std.max(), std, 1.0)


class LinearProbe(nn.Module):
    """A linear classifier of standardised features, fitted by L-BFGS on the whole set at once.

    The objective is mean cross-entropy + l2 / 2 * |weight|^2, convex, started at zero: no learning rate to tune, no
    random numbers. It is scikit-learn's LogisticRegression with C = 1 / (N l2), and runs on any device.

    Args:
        dim: width of the features.
        num_classes: labels are 0 to num_classes - 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("num_classes", num_classes)):
            if value < 1:
                raise ValueError(f"LinearProbe: {name} must be at least 1, got {value}")
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.linear = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [N, D] -> logits [N, num_classes]."""
        return self.linear((x - self.mean) / self.std)

    def fit(self, features: Features, l2: float = 1e-3, max_iterations: int = 100) -> LinearProbe:
        """Fit to labelled features.

        Args:
            features: float32 [N, D] and labels.
            l2: weight of the penalty, at least 0.
            max_iterations: of L-BFGS.

        Returns:
            self.

        Raises:
            ValueError: if `l2` is negative.
        """
        if not l2 >= 0:
            raise ValueError(f"LinearProbe: l2 must be at least 0, got {l2}")
        x, label = features
        for buffer, value in zip((self.mean, self.std), standardization(x), strict=True):
            buffer.copy_(value)
        x = (x - self.mean) / self.std
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        optimizer = torch.optim.LBFGS(
            self.linear.parameters(), max_iter=max_iterations, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(self.linear(x), label) + l2 / 2 * self.linear.weight.square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        return self

    @torch.no_grad()
    def accuracy(self, features: Features) -> float:
        """Share of the images, in [0, 1], that are classified rightly."""
        return (self(features.x).argmax(1) == features.label).float().mean().item()


def linear_accuracy(train: Features, test: Features, num_classes: int, l2: float = 1e-3) -> float:
    """Accuracy on `test`, in [0, 1], of a :class:`LinearProbe` fitted on `train`."""
    return LinearProbe(train.x.shape[1], num_classes).to(train.x.device).fit(train, l2).accuracy(test)
