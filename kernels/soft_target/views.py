"""Where the rows of views lie: views of one list may stand anywhere in memory, and none is copied.

A view's place is its distance from the first view of its list, in elements. For views at equal distances, the chunks of
one tensor, that is a multiplication (UNIFORM). For others the kernels look it up in a table on the device, which
``table.py`` writes.

The table is int64 [2, entries]: the distances of all students, teachers and (in the backward pass) gradients, then the
strides between the rows of each. The second half is left out (OFFSETS) where a list's row strides are all equal.
"""

# ruff: noqa: SIM108 - branches on constants stay statements: a branch that is not taken is not compiled

import triton
import triton.language as tl

UNIFORM = tl.constexpr(0)
OFFSETS = tl.constexpr(1)
OFFSETS_AND_STRIDES = tl.constexpr(2)


@triton.jit
def row_of(p_table, entries, entry, view, row, stride, row_stride, TABLE: tl.constexpr, MULTIPLE: tl.constexpr):
    """Elements between a list's first view and row ``row`` of view number ``view``, int64; shaped like ``view``.

    ``entry`` is the view's place in the table, ``stride`` the distance of UNIFORM views. The result is a multiple of
    MULTIPLE: rows that begin at multiples of 16 bytes are read 16 bytes at a time.
    """
    if TABLE == UNIFORM:
        offset = view * stride
    else:
        offset = tl.load(p_table + entry)
    if TABLE == OFFSETS_AND_STRIDES:
        row_stride = tl.load(p_table + entries + entry)
    # Said of the terms too: the compiler forgets it of a sum when it folds a term that is zero.
    o_row = tl.multiple_of(offset, MULTIPLE) + tl.multiple_of(row * row_stride, MULTIPLE)
    return tl.multiple_of(o_row, MULTIPLE)


@triton.jit
def rows_of(p_table, entries, first, o_view, VIEWS: tl.constexpr, row, stride, row_stride,
            TABLE: tl.constexpr, MULTIPLE: tl.constexpr):  # fmt: skip
    """``row_of`` for a column of views [n, 1], of which those from VIEWS on do not exist."""
    if TABLE == UNIFORM:
        offset = o_view * stride
    else:
        offset = tl.load(p_table + first + o_view, mask=o_view < VIEWS, other=0)
    if TABLE == OFFSETS_AND_STRIDES:
        row_stride = tl.load(p_table + entries + first + o_view, mask=o_view < VIEWS, other=0)
        o_row = tl.multiple_of(row * row_stride, [MULTIPLE, MULTIPLE])
    else:
        o_row = tl.multiple_of(row * row_stride, MULTIPLE)
    return tl.multiple_of(tl.multiple_of(offset, [MULTIPLE, MULTIPLE]) + o_row, [MULTIPLE, MULTIPLE])
