"""The public functions: typed, stateless, differentiable.

They check their arguments (never the values inside tensors), and build each loss from the operators of ``fastssl.ops``.
"""

from .augment import augment_views, view_parameters
from .contrastive import nt_xent, pairwise_logsumexp
from .koleo import koleo
from .masking import Masks, gather_tokens, masks_from_noise, random_masks, unshuffle_tokens, visible_patches
from .prototypes import prototype_cross_entropy
from .reconstruction import patch_loss
from .sinkhorn import sinkhorn_knopp
from .soft_target import masked_soft_target_cross_entropy, soft_target_cross_entropy

__all__ = [
    "Masks",
    "augment_views",
    "gather_tokens",
    "koleo",
    "masked_soft_target_cross_entropy",
    "masks_from_noise",
    "nt_xent",
    "pairwise_logsumexp",
    "patch_loss",
    "prototype_cross_entropy",
    "random_masks",
    "sinkhorn_knopp",
    "soft_target_cross_entropy",
    "unshuffle_tokens",
    "view_parameters",
    "visible_patches",
]
