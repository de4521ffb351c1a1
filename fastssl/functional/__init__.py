"""The public functions: typed, stateless, differentiable.

They check their arguments (never the values inside tensors), and build each loss from the operators of ``fastssl.ops``.
"""

from .augment import augment_views, view_parameters
from .contrastive import nt_xent, pairwise_logsumexp
from .koleo import koleo
from .prototypes import prototype_cross_entropy
from .sinkhorn import sinkhorn_knopp
from .soft_target import masked_soft_target_cross_entropy, soft_target_cross_entropy

__all__ = [
    "augment_views",
    "koleo",
    "masked_soft_target_cross_entropy",
    "nt_xent",
    "pairwise_logsumexp",
    "prototype_cross_entropy",
    "sinkhorn_knopp",
    "soft_target_cross_entropy",
    "view_parameters",
]
