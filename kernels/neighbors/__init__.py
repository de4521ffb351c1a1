"""Kernels of the nearest-neighbour search: the columns with the largest inner products, without the M x N matrix.

A program takes a block of rows and walks over the column tiles of a split. Products of a tile become integers in the
same order (``topk._rank``), and only those above the worst of the row's few best so far are looked at: after the first
tiles there are hardly any. A second kernel picks the best of all splits in order. Equal products come in the order of
their columns, NaN is larger than any number, and nothing depends on how the columns are split.

``config.py`` has the tile sizes, ``aot.py`` what is compiled ahead of time. Importing this package imports no Triton.

Names: ``p_`` pointer, ``o_`` offset, ``b_`` block in registers, ``m_`` mask. Comments give shapes.
"""
