"""Kernels of batched augmentation: records drawn from programs, and the views that records describe.

A record says what is done to one image for one view: a geometry and a list of steps
(``fastssl/ops/augment/record.py``). It is read where it is used, on the device: every program of a kernel works on one
image and branches on what that image's record holds.

``sampling.py``     draws the records of a view from a program, a lane per image, in fp64.
``resample.py``     crop, resize, flips and quarter turns in one reading of the image, then the steps up to the first
                    barrier: a step that needs more of the view than the pixel it is at.
``barriers.py``     one barrier and the steps up to the next: contrast, blur, rotation or Sobel. A blur is two kernels,
                    along the rows and along the columns.
``record.py``       reads and sanitises records. ``steps.py`` has the steps that change a pixel by itself.
``config.py``       tile sizes. ``aot.py`` what is compiled ahead of time. Importing this package imports no Triton.

What every kernel here relies on:

* The first kernel is followed by as many rounds as any image of the view may have barriers. In a round each image finds
  its own barrier by counting in its record; images that have fewer are finished and not touched again.
* Between rounds the view lies in one of two buffers [2, images, channels, pixels]. Which of them is counted too: every
  barrier but a blur changes it, since a blur goes to the other and back.
* Up to four channels at a time: as many as one block of Philox gives noise for.
* The mean of the grayscale view, for contrast, is added up in a fixed order from a number per program: no atomics.
* No number of a record can lead outside the image or the view, whatever it is.
* Offsets that can pass 2^31 are 64-bit.

Names: ``p_`` pointer, ``o_`` offset, ``b_`` block in registers, ``m_`` mask. Comments give shapes.
"""
