"""Complete methods, one file each, named after its paper.

Importing this package imports neither torch nor Lightning: the command line lists the methods from here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from fastssl.methods.base import SelfSupervised, load
    from fastssl.methods.dino import DINO
    from fastssl.methods.instdisc import InstDisc
    from fastssl.methods.mae import MAE
    from fastssl.methods.moco import MoCo
    from fastssl.methods.mocov3 import MoCoV3
    from fastssl.methods.nnclr import NNCLR
    from fastssl.methods.simclr import SimCLR
    from fastssl.methods.simmim import SimMIM
    from fastssl.methods.supcon import SupCon
    from fastssl.methods.supervised import Supervised

__all__ = [
    "DINO",
    "MAE",
    "METHODS",
    "NNCLR",
    "InstDisc",
    "Method",
    "MoCo",
    "MoCoV3",
    "SelfSupervised",
    "SimCLR",
    "SimMIM",
    "SupCon",
    "Supervised",
    "load",
]  # fmt: skip


class Method(NamedTuple):
    """A method that can be trained.

    Attributes:
        module: where its class is.
        name: of the class.
        config: its default configuration, a name in fastssl.configs.
        line: what it does, in a line.
    """

    module: str
    name: str
    config: str
    line: str

    def load(self) -> type[SelfSupervised]:
        """The class."""
        return getattr(importlib.import_module(self.module), self.name)


METHODS = {
    "simclr": Method(
        "fastssl.methods.simclr", "SimCLR", "simclr_photos", "contrast of two views with NT-Xent (Chen et al. 2020)"
    ),
    "simclrv2": Method(
        "fastssl.methods.simclr",
        "SimCLR",
        "simclrv2_photos",
        "SimCLR with a projection of three layers (Chen et al. 2020)",
    ),
    "instdisc": Method(
        "fastssl.methods.instdisc", "InstDisc", "instdisc_photos", "every image a class of its own (Wu et al. 2018)"
    ),
    "moco": Method(
        "fastssl.methods.moco", "MoCo", "moco_photos", "contrast with a queue of keys, version 2 (He et al. 2020)"
    ),
    "mocov3": Method(
        "fastssl.methods.mocov3",
        "MoCoV3",
        "mocov3_photos",
        "contrast of predictions and momentum keys (Chen et al. 2021)",
    ),
    "nnclr": Method(
        "fastssl.methods.nnclr", "NNCLR", "nnclr_photos", "contrast with nearest neighbours (Dwibedi et al. 2021)"
    ),
    "supcon": Method("fastssl.methods.supcon", "SupCon", "supcon_photos", "contrast by labels (Khosla et al. 2020)"),
    "dino": Method(
        "fastssl.methods.dino", "DINO", "dino_photos", "self-distillation over several crops (Caron et al. 2021)"
    ),
    "mae": Method(
        "fastssl.methods.mae", "MAE", "mae_photos", "pixels of removed patches from a quarter (He et al. 2022)"
    ),
    "simmim": Method(
        "fastssl.methods.simmim", "SimMIM", "simmim_photos", "pixels of masked patches, linearly (Xie et al. 2022)"
    ),
    "supervised": Method(
        "fastssl.methods.supervised",
        "Supervised",
        "supervised_photos",
        "cross-entropy with the labels, as an upper line for the others",
    ),
}


def __getattr__(name: str) -> Any:
    for method in METHODS.values():
        if method.name == name:
            return method.load()
    if name in ("SelfSupervised", "load"):
        return getattr(importlib.import_module("fastssl.methods.base"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
