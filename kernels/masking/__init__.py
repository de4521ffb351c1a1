"""Kernels of masked image modelling: masks, the tokens that stay, the decoder's input, and their gradients.

    keep, masked, restore, mask   one sort per image of (noise, place), packed into 64 bits
    out_k = x_ids(k) + pos_ids(k)                        dx_l = sum of the gradients of those k whose id is l
    out_l = (x_restore(l) or the mask token) + pos_l     dx_k = sum over those l that restore says are k

Every number of tokens and gradients is read once and written once. Each id usually occurs once; ``chain_kernel`` links
those that repeat, so that their sum has an order. Sums over images (positions, class and mask token) leave parts by
groups of images, which another kernel adds in order: no atomics. ``config.py`` has the tile sizes, ``aot.py`` what is
compiled ahead of time. Importing this package imports no Triton.

Names: L patches, K that stay, P tokens before them; ``p_`` pointer, ``o_`` offset, ``b_`` block in registers, ``m_``
mask. Comments give shapes.
"""
