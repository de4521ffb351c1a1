"""Memory layouts that kernels take."""

from torch import Tensor


def unit_stride(x: Tensor) -> Tensor:
    """A matrix [rows, columns], or a stack of them, as the kernels read it: rows may lie anywhere, a row's elements lie
    side by side.

    A copy is made only where they do not.
    """
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def contiguous(vector: Tensor | None) -> Tensor | None:
    """An optional vector without gaps between its elements."""
    return None if vector is None else vector.contiguous()
