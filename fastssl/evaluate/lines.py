"""Encoders to compare: raw pixels and the untrained encoder below, the trained one, a supervised one above."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from fastssl.data.base import ImageData
from fastssl.evaluate.features import Features, extract, pixels, recompute_batch_statistics
from fastssl.evaluate.knn import knn_accuracy
from fastssl.evaluate.linear import linear_accuracy
from fastssl.models.backbones import create_backbone
from fastssl.models.encoder import Encoder

if TYPE_CHECKING:
    from fastssl.methods.base import SelfSupervised

# What tables call the lines, from below.
LINES = {
    "pixels": "raw pixels",
    "untrained": "untrained encoder",
    "untrained_calibrated": "untrained, calibrated",
    "trained": "trained encoder",
    "supervised": "supervised encoder",
}
# Those that fine-tuning starts from: from scratch, and from what was learnt.
TRAINABLE = ("untrained", "trained")


def has_batch_norm(module: nn.Module) -> bool:
    """Whether there are BatchNorm statistics, which an untrained encoder has at 0 and 1."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def calibrated(encoder: Encoder, data: ImageData) -> Encoder:
    """A copy whose BatchNorm statistics are those of the training images."""
    encoder = copy.deepcopy(encoder)
    recompute_batch_statistics(encoder, encoder.transform, data.bank_dataloader())
    return encoder


def untrained_like(encoder: Encoder, seed: int) -> Encoder:
    """An encoder of the same architecture with the weights that `seed` gives, those before training if it was so."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        backbone = create_backbone(*encoder.architecture)
    return Encoder(backbone, encoder.architecture, encoder.size, statistics=encoder.statistics)


def lines_of(
    encoder: Encoder, data: ImageData, *, seed: int, trained: bool = True, supervised: Encoder | None = None
) -> dict[str, Callable[[], Encoder] | None]:
    """What to compare an encoder with, from below, each made when it is called; None for the pixels.

    Args:
        encoder: on the CPU.
        data: after ``setup``: the calibrated encoder takes its statistics from the training images.
        seed: of the untrained weights.
        trained: whether the encoder is; otherwise it is the untrained one itself.
        supervised: the line above.

    Returns:
        By the names in LINES: "pixels", "untrained", "untrained_calibrated" where there is BatchNorm, then "trained"
        and "supervised" where there are such.
    """
    below = (lambda: untrained_like(encoder, seed)) if trained else (lambda: copy.deepcopy(encoder))
    lines: dict[str, Callable[[], Encoder] | None] = {"pixels": None, "untrained": below}
    if has_batch_norm(encoder.backbone):
        lines["untrained_calibrated"] = lambda: calibrated(below(), data)
    if trained:
        lines["trained"] = lambda: encoder
    if supervised is not None:
        lines["supervised"] = lambda: supervised
    return lines


def evaluate_fit(
    model: SelfSupervised, untrained: nn.Module, data: ImageData, device: torch.device | str
) -> tuple[dict[str, dict[str, float]], dict[str, Features]]:
    """What `fastssl fit` reports: k-NN and linear accuracy of the encoder and of the lines below it.

    Args:
        model: the trained method; it is moved to `device`.
        untrained: its backbone before training; moved too.
        data: with its images, after ``setup``.
        device: where features are computed.

    Returns:
        Accuracies in [0, 1] as ``{line: {"knn": ..., "linear": ...}}``, the lines being "pixels", "untrained",
        "untrained_calibrated" (where there is BatchNorm) and "trained"; empty where bank or test images have no labels.
        And the features of the trained encoder, "bank" and "test", with images of unknown label (-1) among them.
    """
    encoder = model.encoder().to(device)
    below = Encoder(untrained, encoder.architecture, encoder.size).to(device)

    def features(of: Encoder) -> list[Features]:
        return [extract(of, of.transform, batches) for batches in (data.bank_dataloader(), data.test_dataloader())]

    trained = features(encoder)
    by_name = dict(zip(("bank", "test"), trained, strict=True))
    if not data.num_classes or not all(len(half.known().x) for half in trained):
        return {}, by_name
    lines = {
        "pixels": [pixels(batches) for batches in (data.bank_dataloader(), data.test_dataloader())],
        "untrained": features(below),
    }
    if has_batch_norm(below):
        lines["untrained_calibrated"] = features(calibrated(below, data))
    lines["trained"] = trained
    k, temperature = model.hparams["knn_k"], model.hparams["knn_temperature"]
    accuracy = {}
    for name, halves in lines.items():
        bank, test = (half.known() for half in halves)
        accuracy[name] = {
            "knn": knn_accuracy(bank, test, data.num_classes, k, temperature),
            "linear": linear_accuracy(bank, test, data.num_classes),
        }
    return accuracy, by_name
