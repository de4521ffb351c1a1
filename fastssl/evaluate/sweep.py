"""Linear probing by a sweep over learning rates: Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without
Supervision" (arXiv 2304.07193), section 7.1 and its published evaluation.

All classifiers of the sweep are trained at once on features that are computed once: they see the same batches, and one
matrix product serves all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.evaluate.features import Features
from fastssl.evaluate.linear import standardization
from fastssl.evaluate.subset import hold_out

# Per 256 images; the thirteen of DINOv2.
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
_MOMENTUM = 0.9


class SweepResult(NamedTuple):
    """What a sweep found.

    Attributes:
        accuracy: of the chosen rate on the test images, in [0, 1].
        lr: the chosen rate, per 256 images.
        validation: accuracy of every rate on the held-out training images.
    """

    accuracy: float
    lr: float
    validation: dict[float, float]


class LinearSweep:
    """Linear classifiers of the same features, one per learning rate, trained by SGD on the same batches.

    As in DINOv2: momentum 0.9, no weight decay, a cosine from the rate to zero; a rate is given per 256 images. Unlike
    there, weights start at zero, and features are standardised with the mean and deviation of the training features, so
    that the rates mean the same for features of any scale.

    Args:
        rates: learning rates, above 0.
        steps: of SGD.
        batch_size: images per step; all of them where there are fewer.
        seed: of the order, which is the same for every rate.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(self, rates: Sequence[float] = RATES, steps: int = 2500, batch_size: int = 128, seed: int = 0) -> None:
        if not rates or not all(rate > 0 and math.isfinite(rate) for rate in rates):
            raise ValueError(f"LinearSweep: rates must be one or more numbers above 0, got {list(rates)}")
        for name, value in (("steps", steps), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"LinearSweep: {name} must be at least 1, got {value}")
        self.rates, self.steps, self.batch_size, self.seed = tuple(rates), steps, batch_size, seed

    @torch.no_grad()
    def fit(self, features: Features, num_classes: int) -> LinearSweep:
        """Train on labelled features, float32 [N, D].

        Returns:
            self.
        """
        x, label = features
        self._mean, self._std = standardization(x)
        x = (x - self._mean) / self._std
        # From zero, SGD never leaves the span of the images. Where they are fewer than the features (as the pixels are
        # many), it takes the same steps in an orthonormal basis of that span, in N numbers instead of D.
        self._basis = torch.linalg.qr(x.T).Q if x.shape[1] > len(x) else None  # [D, N]
        x = x if self._basis is None else x @ self._basis
        # All classifiers side by side are one wide one: [D, R * C].
        weight = x.new_zeros(x.shape[1], len(self.rates) * num_classes)
        bias = weight.new_zeros(weight.shape[1])
        speed = [torch.zeros_like(weight), torch.zeros_like(bias)]
        generator = torch.Generator().manual_seed(self.seed)
        batch_size = min(self.batch_size, len(x))
        rates = torch.tensor(self.rates, dtype=torch.float64) * batch_size / 256
        order, position = torch.empty(0, dtype=torch.int64), 0
        for step in range(self.steps):
            if position + batch_size > len(order):  # an incomplete last batch is left out
                order, position = torch.randperm(len(x), generator=generator), 0
            batch = order[position : position + batch_size].to(x.device)
            position += batch_size
            part = x[batch]
            probability = torch.addmm(bias, part, weight).unflatten(1, (len(self.rates), num_classes)).softmax(2)
            target = F.one_hot(label[batch], num_classes)[:, None]
            gradient = (probability - target).flatten(1) / batch_size  # of the cross-entropy
            rate = rates * 0.5 * (1 + math.cos(math.pi * step / self.steps))
            per_column = rate.to(weight).repeat_interleave(num_classes)
            speed[0].mul_(_MOMENTUM).addmm_(part.T, gradient)
            speed[1].mul_(_MOMENTUM).add_(gradient.sum(0))
            weight.addcmul_(speed[0], per_column, value=-1)
            bias.addcmul_(speed[1], per_column, value=-1)
        self._weight, self._bias, self._shape = weight, bias, (len(self.rates), num_classes)
        return self

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """float32 [N, D] -> [N, R, C], of the R classifiers."""
        x = (x - self._mean) / self._std
        x = x if self._basis is None else x @ self._basis
        return torch.addmm(self._bias, x, self._weight).unflatten(1, self._shape)


def linear_sweep(train: Features, test: Features, num_classes: int, sweep: LinearSweep | None = None) -> SweepResult:
    """Accuracy on `test` of the best learning rate, chosen on training images that are held out for it.

    A tenth of each class is held out, every rate is trained on the rest, and the most accurate one (of equal ones that
    of the smaller loss) is trained again on all training images.

    Args:
        train: labelled features, [N, D].
        test: likewise; no choice depends on them.
        num_classes: labels are 0 to num_classes - 1.
        sweep: how to train; its rates are the candidates.

    Raises:
        ValueError: if no class has two images, so that none can be held out.
    """
    sweep = sweep or LinearSweep()
    rest, held = (Features(train.x[part], train.label[part]) for part in hold_out(train.label, 0.1, sweep.seed))
    logits = sweep.fit(rest, num_classes).logits(held.x)
    correct = (logits.argmax(2) == held.label[:, None]).double().mean(0)
    chosen = F.one_hot(held.label, num_classes)[:, None]
    loss = -(logits.log_softmax(2) * chosen).sum(2).double().mean(0)
    best = min(
        range(len(sweep.rates)), key=lambda place: (-correct[place].item(), loss[place].nan_to_num(math.inf).item())
    )
    rate = sweep.rates[best]
    last = LinearSweep([rate], sweep.steps, sweep.batch_size, sweep.seed).fit(train, num_classes)
    accuracy = (last.logits(test.x)[:, 0].argmax(1) == test.label).float().mean().item()
    return SweepResult(accuracy, rate, dict(zip(sweep.rates, correct.tolist(), strict=True)))
