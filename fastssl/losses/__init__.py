"""Losses as modules, with the signatures of the ones they replace."""

from .ntxent import NTXentLoss

__all__ = ["NTXentLoss"]
