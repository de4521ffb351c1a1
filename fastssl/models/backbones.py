"""Backbones by their timm name, with a stem for small images, for images of any size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import timm
from torch import nn

from fastssl.configs import nearest

Stem = Literal["timm", "small"]

# timm's modules whose models are built for one size of images, and those of them that can take others as they come.
_SIZED = ("beit", "deit", "eva", "swin_transformer", "swin_transformer_v2", "vision_transformer")
_DYNAMIC = ("deit", "eva", "vision_transformer")


def create_backbone(
    name: str, stem: Stem = "timm", args: Mapping[str, Any] | None = None, *, pretrained: bool = False
) -> nn.Module:
    """Create an encoder that maps images to pooled features.

    Args:
        name: of the model in timm, for instance "resnet18" or "vit_tiny_patch16_224".
        stem: "timm" leaves the model as it is. "small" gives a ResNet the start of the CIFAR recipes for images of
            about 32 pixels (SimCLR, appendix B.9): a 3x3 convolution of stride 1 and no max-pooling. It keeps 4 times
            as many positions on each side, which costs about 16 times the arithmetic.
        args: passed to timm.create_model, for instance {"drop_path_rate": 0.1}.
        pretrained: whether timm loads its published weights, downloading them unless they are in its cache.

    Returns:
        A module [B, 3, H, W] -> [B, num_features], with the attribute ``num_features``.

    Raises:
        ValueError: if timm has no such model, refuses `args`, or `stem` does not fit it.
    """
    if not is_model(name):
        raise ValueError(
            f"backbone must be the name of a timm model, got {name!r}; {nearest(name, timm.list_models())}"
        )
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=0, **(args or {}))
    except (TypeError, AssertionError) as error:
        raise ValueError(f"backbone_args must be arguments of timm's {name}, got {dict(args or {})}: {error}") from None
    if stem == "small":
        _small_stem(name, model)
    elif stem != "timm":
        raise ValueError(f'stem must be "timm" or "small", got {stem!r}')
    return model


def is_model(name: str) -> bool:
    """Whether timm has a model of this name, with or without the tag of its weights behind a dot."""
    return timm.is_model(name.partition(".")[0])


def sized_args(name: str, size: int, args: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Arguments of timm.create_model with which a model takes images of `size` pixels, and of other sizes if it can.

    Transformers are built for one size; those that interpolate their positions take crops of several. Convolutional
    networks need nothing. What `args` says stays as it is.

    Args:
        name: of a model in timm.
        size: side of the images in pixels.
        args: what was asked for.
    """
    family = timm.model_entrypoint(name.partition(".")[0]).__module__.rpartition(".")[2]
    own: dict[str, Any] = {"img_size": size} if family in _SIZED else {}
    if family in _DYNAMIC:
        own["dynamic_img_size"] = True
    return own | dict(args or {})


def _small_stem(name: str, model: nn.Module) -> None:
    norm, pool = getattr(model, "bn1", None), getattr(model, "maxpool", None)
    if not isinstance(norm, nn.BatchNorm2d) or pool is None:
        raise ValueError(f'stem must be "timm" for {name}: only ResNets have the small stem')
    model.conv1 = nn.Conv2d(3, norm.num_features, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
