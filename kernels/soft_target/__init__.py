"""Kernels of the soft-target cross-entropy: DINO's loss and its relatives without a stored probability.

The mathematics (``x_sbk`` student logits, ``y_tbk`` teacher logits, ``a`` and ``c`` inverse temperatures, ``v`` column
potentials, ``u`` row potentials, by default the log-sums that make a teacher's row sum to 1)::

    p_tbk  = exp(c y_tbk - v_tk - u_tb),                  mass_tb = sum_k p_tbk
    loss_b = w_b sum over pairs (t, s) of  mass_tb lse_sb - a sum_k p_tbk x_sbk
    dx_sbk = d_loss_b w_b a ( (sum_t mass_tb) softmax(a x)_sbk - sum_t p_tbk ),     sums over the t paired with s

All of it is bound by memory: what counts is that a logit is read once for the loss, and once more for the gradient.

``statistics.py``   reads every logit once. A program has a chunk of the columns, so small that a row's part of it fits
                    in registers: its maximum and its sums are taken without rescaling anything. It goes through a
                    group of images, writes a short record per image, and keeps the teacher's column sums meanwhile.
``combine.py``      makes losses and log-sums of the records, and adds the groups' column sums.
``gradient.py``     reads every logit again and writes the gradient, beside the logits or in their place.
``views.py``        finds views that lie anywhere in memory. ``config.py`` has the tile sizes, ``aot.py`` what is
                    compiled ahead of time. Importing this package does not import Triton.

What every kernel here relies on:

* A difference is taken before a product. Dots are sums of p (x - m), with m the student's largest logit, so a common
  offset of the logits, however large, costs no accuracy; log-sums are lse - a m until the loss is done.
* Teachers stand side by side in a tile [T_PAD, BLOCK], T_PAD a power of two; students follow one after the other in a
  loop, so that 10 of them do not pay for 16.
* An image of weight 0 is not read at all. That is how masked tokens are chosen without gathering them.
* No atomics. Records and column sums are added in a fixed order: same input, same bits.
* Offsets that can pass 2^31 are 64-bit.

Names: ``p_`` pointer, ``o_`` offset, ``b_`` block in registers, ``m_`` mask. Comments give shapes.
"""
