"""Losses as modules, with the signatures of the ones they replace."""

from .clip import ClipLoss
from .cosine import NegativeCosineSimilarity
from .dcl import DCLLoss, DCLWLoss
from .dino import DINOLoss
from .ibot import IBOTPatchLoss
from .koleo import KoLeoLoss
from .mae import MAELoss, SimMIMLoss
from .memory_bank import MemoryBank
from .msn import MSNLoss
from .ntxent import NTXentLoss
from .siglip import SigLipLoss
from .supcon import SupConLoss
from .swav import SwaVLoss

__all__ = [
    "ClipLoss",
    "DCLLoss",
    "DCLWLoss",
    "DINOLoss",
    "IBOTPatchLoss",
    "KoLeoLoss",
    "MAELoss",
    "MSNLoss",
    "MemoryBank",
    "NTXentLoss",
    "NegativeCosineSimilarity",
    "SigLipLoss",
    "SimMIMLoss",
    "SupConLoss",
    "SwaVLoss",
]
