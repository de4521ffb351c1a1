"""Prototype layer and loss in plain PyTorch, a chunk of images at a time: bounded memory on any device."""

from __future__ import annotations

from functools import partial

from ..soft_target import chunked as losses
from . import composed

unsupported_reason = losses.unsupported_reason
prototype_cross_entropy = partial(composed.prototype_cross_entropy, losses)
