"""The kernel that multiplies a saved gradient by the gradient that arrives, which a GPU alone knows.

``aot.py`` has what is compiled ahead of time. Importing this package imports no Triton.

Names: ``p_`` pointer, ``o_`` offset, ``b_`` block in registers, ``m_`` mask. Comments give shapes.
"""
