"""Triton kernels (installed as ``fastssl.kernels``).

Each folder holds the kernels of one operation family and nothing else: pointers and sizes in, written memory out; with
them its tile sizes (``config.py``) and the variants that are compiled ahead of time in tests (``aot.py``).
The launchers, which know tensors, live beside the operation (``fastssl/ops/<family>/triton.py``).
Importing this package imports neither Triton nor CUDA.
"""
