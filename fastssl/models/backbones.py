"""Backbones by their timm name, with a stem for small images."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

import timm
from torch import nn

Stem = Literal["timm", "small"]


def create_backbone(name: str, stem: Stem = "timm", args: Mapping[str, Any] | None = None) -> nn.Module:
    """Create an untrained encoder that maps images to pooled features.

    Args:
        name: of the model in timm, for instance "resnet18" or "vit_tiny_patch16_224".
        stem: "timm" leaves the model as it is. "small" gives a ResNet the start of the CIFAR recipes for images of
            about 32 pixels (SimCLR, appendix B.9): a 3x3 convolution of stride 1 and no max-pooling. It keeps 4 times
            as many positions on each side, which costs about 16 times the arithmetic.
        args: passed to timm.create_model, for instance {"drop_path_rate": 0.1}.

    Returns:
        A module [B, 3, H, W] -> [B, num_features], with the attribute ``num_features``.

    Raises:
        ValueError: if timm has no such model, or `stem` does not fit it.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise ValueError(f"backbone must be the name of a timm model, got {name!r}{hint}")
    model = timm.create_model(name, pretrained=False, num_classes=0, **(args or {}))
    if stem == "small":
        _small_stem(name, model)
    elif stem != "timm":
        raise ValueError(f'stem must be "timm" or "small", got {stem!r}')
    return model


def _small_stem(name: str, model: nn.Module) -> None:
    norm, pool = getattr(model, "bn1", None), getattr(model, "maxpool", None)
    if not isinstance(norm, nn.BatchNorm2d) or pool is None:
        raise ValueError(f'stem must be "timm" for {name}: only ResNets have the small stem')
    model.conv1 = nn.Conv2d(3, norm.num_features, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
