"""Lists of stacked views in the form in which the Triton kernels take them: a base, and distances from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from fastssl.kernels.soft_target.views import OFFSETS, OFFSETS_AND_STRIDES, UNIFORM

from ..layout import unit_stride
from ..triton_table import filled_table


@dataclass(frozen=True)
class Views:
    """The views [B, K] of a list of stacks [s_i, B, K], wherever they lie.

    Attributes:
        base: a tensor that begins where the first view does.
        offsets: elements from there to each view.
        row_strides: elements between the rows of each view.
        stacks: holds on to the memory.
    """

    base: Tensor
    offsets: list[int]
    row_strides: list[int]
    stacks: Sequence[Tensor]

    @staticmethod
    def of(stacks: Sequence[Tensor]) -> Views:
        """Of stacks whose elements in K lie side by side; others are copied."""
        stacks = [unit_stride(stack) for stack in stacks]
        first, size = stacks[0].data_ptr(), stacks[0].element_size()
        offsets, row_strides = [], []
        for stack in stacks:
            offset, stride, row_stride = (stack.data_ptr() - first) // size, stack.stride(0), stack.stride(1)
            for view in range(stack.shape[0]):
                offsets.append(offset + view * stride)
                row_strides.append(row_stride)
        return Views(stacks[0], offsets, row_strides, stacks)

    @property
    def stride(self) -> int:
        """Elements between two views, where they lie at equal distances."""
        return self.offsets[1] if len(self.offsets) > 1 else 0

    @property
    def table_kind(self) -> int:
        """What the kernels have to look up: the numbers in ``kernels/soft_target/views.py``."""
        if any(row_stride != self.row_strides[0] for row_stride in self.row_strides):
            return OFFSETS_AND_STRIDES.value
        stride = self.stride
        return (UNIFORM if all(o == i * stride for i, o in enumerate(self.offsets)) else OFFSETS).value

    @property
    def aligned(self) -> bool:
        """Whether every row begins, and ends, at a multiple of 16 bytes."""
        size = self.base.element_size()
        places = (*self.offsets, *self.row_strides, self.base.shape[2])
        return self.base.data_ptr() % 16 == 0 and all(place * size % 16 == 0 for place in places)


@dataclass(frozen=True)
class Places:
    """Where students, teachers and perhaps gradients lie, for one launch."""

    lists: tuple[Views, ...]
    table: Tensor | None
    kind: int

    @staticmethod
    def of(*lists: Views) -> Places:
        kind = max(views.table_kind for views in lists)
        if kind == UNIFORM.value:
            return Places(lists, None, kind)
        values = [offset for views in lists for offset in views.offsets]
        if kind == OFFSETS_AND_STRIDES.value:
            values += [row_stride for views in lists for row_stride in views.row_strides]
        return Places(lists, filled_table(values, lists[0].base.device), kind)

    @property
    def entries(self) -> int:
        return sum(len(views.offsets) for views in self.lists)

    @property
    def strides(self) -> list[int]:
        """Distance of the views and of their rows, for every list."""
        return [number for views in self.lists for number in (views.stride, views.row_strides[0])]

    @cached_property
    def aligned(self) -> bool:
        return all(views.aligned for views in self.lists)

    @property
    def constants(self) -> dict[str, int | bool]:
        return {"TABLE": self.kind, "ALIGNED": self.aligned}
