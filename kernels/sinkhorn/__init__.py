"""Kernels of Sinkhorn-Knopp's two half steps: log-sums of logits less potentials, over columns or over rows.

    dim 1:  out_r = log sum_k exp(scale x_rk - v_k)          dim 0:  out_k = log sum_r exp(scale x_rk - u_r)

Everything stays in the log domain, so logits of any size give finite results. Each logit is read once. Both kernels of
``logsum.py`` leave maxima and sums of parts, which a third one puts together in a fixed order, without atomics.
``config.py`` has the tile sizes, ``aot.py`` what is compiled ahead of time. Importing this package imports no Triton.

Names: ``p_`` pointer, ``o_`` offset, ``b_`` block in registers, ``m_`` mask. Comments give shapes.
"""
