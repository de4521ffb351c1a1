"""The kernel of the patch loss: the error of predicted rows against the pixels of an image, and its gradient.

A program takes one row. It reads the patch's pixels where they lie, in the order of the prediction's numbers, so that
no patchified copy and no exchange between threads is needed. Patches that are left out are not read: their loads are
masked off, and zeros are written. ``config.py`` has the block size, ``aot.py`` what is compiled ahead of time.
Importing this package imports no Triton.

Names: ``p_`` pointer, ``o_`` offset, ``b_`` block in registers, ``m_`` mask. Comments give shapes.
"""
