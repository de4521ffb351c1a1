"""Triton kernels (installed as ``fastssl.kernels``).

Each file holds the kernels of one operation family and nothing else: pointers and sizes in, written memory out.
The launchers, which know tensors, live beside the operation (``fastssl/ops/<family>/triton.py``).
Importing this package imports neither Triton nor CUDA.
"""
