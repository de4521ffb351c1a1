"""The public functions: typed, stateless, differentiable.

They check their arguments (never the values inside tensors), and build each loss from the operators of ``fastssl.ops``.
"""

from .augment import augment_views, view_parameters
from .clip import clip
from .contrastive import nt_xent, pairwise_logsumexp
from .decoupled import dcl
from .info_nce import info_nce
from .koleo import koleo
from .mask_patterns import (
    TargetMasks,
    block_masks,
    grid_mask,
    masked_counts,
    modality_masks,
    target_masks,
    unit_masks,
)
from .masking import Masks, gather_tokens, masks_from_noise, random_masks, unshuffle_tokens, visible_patches
from .prototypes import prototype_cross_entropy
from .reconstruction import patch_loss
from .siglip import siglip
from .sinkhorn import sinkhorn_knopp
from .soft_target import masked_soft_target_cross_entropy, soft_target_cross_entropy
from .supervised import sup_con

__all__ = [
    "Masks",
    "TargetMasks",
    "augment_views",
    "block_masks",
    "clip",
    "dcl",
    "gather_tokens",
    "grid_mask",
    "info_nce",
    "koleo",
    "masked_counts",
    "masked_soft_target_cross_entropy",
    "masks_from_noise",
    "modality_masks",
    "nt_xent",
    "pairwise_logsumexp",
    "patch_loss",
    "prototype_cross_entropy",
    "random_masks",
    "siglip",
    "sinkhorn_knopp",
    "soft_target_cross_entropy",
    "sup_con",
    "target_masks",
    "unit_masks",
    "unshuffle_tokens",
    "view_parameters",
    "visible_patches",
]
