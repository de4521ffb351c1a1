"""Losses as modules, with the signatures of the ones they replace."""

from .cosine import NegativeCosineSimilarity
from .dino import DINOLoss
from .ibot import IBOTPatchLoss
from .koleo import KoLeoLoss
from .mae import MAELoss, SimMIMLoss
from .msn import MSNLoss
from .ntxent import NTXentLoss
from .swav import SwaVLoss

__all__ = [
    "DINOLoss",
    "IBOTPatchLoss",
    "KoLeoLoss",
    "MAELoss",
    "MSNLoss",
    "NTXentLoss",
    "NegativeCosineSimilarity",
    "SimMIMLoss",
    "SwaVLoss",
]
