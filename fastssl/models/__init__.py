"""Backbones (from timm), heads, momentum encoders, and encoders ready to be used."""

from fastssl.models.backbones import create_backbone
from fastssl.models.encoder import Architecture, Encoder, load_encoder
from fastssl.models.heads import DINOHead, ProjectionHead
from fastssl.models.masked import MAEDecoder
from fastssl.models.momentum import momentum_copy, update_momentum

__all__ = [
    "Architecture",
    "DINOHead",
    "Encoder",
    "MAEDecoder",
    "ProjectionHead",
    "create_backbone",
    "load_encoder",
    "momentum_copy",
    "update_momentum",
]
