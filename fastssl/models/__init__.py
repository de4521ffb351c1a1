"""Backbones (from timm) and heads."""

from fastssl.models.backbones import create_backbone
from fastssl.models.heads import ProjectionHead

__all__ = ["ProjectionHead", "create_backbone"]
