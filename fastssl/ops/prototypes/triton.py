"""Prototype layer and loss on CUDA devices: PyTorch's products around the Triton loss."""

from __future__ import annotations

from functools import partial

from ..soft_target import triton as losses
from . import composed

unsupported_reason = losses.unsupported_reason
prototype_cross_entropy = partial(composed.prototype_cross_entropy, losses)
