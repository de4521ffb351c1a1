"""Kernels of the pairwise log-sum-exp: every contrastive loss without its M x N matrix.

The mathematics (``q`` are M rows, ``k`` are N columns, ``c_ij = q_i . k_j``, ``x_ij = s c_ij``)::

    lse_i = log sum_j exp(x_ij)                  over the pairs that are not excluded
    dq_i  = s sum_j G_ij k_j,    G_ij = w_i exp(x_ij - lse_i) + w_j exp(x_ij - lse_j) + positives

Both are a matrix product whose result is used once and thrown away, so a tile of it never leaves the chip:
a program takes a block of rows, walks over the column tiles, and keeps only row sums (or a [BLOCK_M, D] gradient).

A call runs ``common.prepare_kernel`` and then the kernels of ``logsum.py`` or of ``gradient.py``. ``config.py`` has the
tile sizes, ``aot.py`` says what is compiled ahead of time. Importing this package does not import Triton.

What every kernel here relies on:

* ``prepare_kernel`` has normalised the rows and rounded them once to the product's dtype, in a buffer padded with
  zeros to whole tiles. So the main loops load without masks; only *results* of padded columns are masked, and
  they all sit in the last tile.
* Each row has at most one column that is itself and at most one that is its positive (``_own_and_positive``).
  They lie in few tiles near the diagonal. Those tiles, and the padded one, go through a second, masked loop: an
  ``if`` inside the hot loop would cost about 50 registers. Positives given by keys can be anywhere: then every tile
  goes through the masked loop.
* Exponentials are base 2, since that is what the hardware has: ``s2 = s log2(e)``.
* FIXED shift: normalised rows have ``c <= 1``, so ``exp2(s2 c - s2)`` cannot overflow and no running maximum is
  needed. ONLINE: any magnitude, with the running maximum of online softmax.
* No atomics. Where work is split, each program writes its own partial result and a small kernel adds them in a
  fixed order: same input, same bits.
* Offsets that can pass 2^31 are 64-bit: a tile's base is a 64-bit scalar, offsets inside the tile are 32-bit.

Names: ``p_`` pointer, ``o_`` offset, ``b_`` block in registers, ``m_`` mask. Comments give shapes.
"""
