"""Backbones (from timm), heads, momentum encoders, and encoders ready to be used."""

from fastssl.models.backbones import create_backbone
from fastssl.models.encoder import Architecture, Encoder, load_encoder
from fastssl.models.heads import DINOHead, ProjectionHead
from fastssl.models.momentum import momentum_copy, update_momentum

__all__ = [
    "Architecture",
    "DINOHead",
    "Encoder",
    "ProjectionHead",
    "create_backbone",
    "load_encoder",
    "momentum_copy",
    "update_momentum",
]
