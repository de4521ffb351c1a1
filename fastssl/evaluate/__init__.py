"""How good a representation is: features once, then k-NN and a linear probe on them."""

from fastssl.evaluate.features import Features, extract, pixels, recompute_batch_statistics
from fastssl.evaluate.knn import knn_accuracy, knn_predict
from fastssl.evaluate.linear import LinearProbe, linear_accuracy

__all__ = [
    "Features",
    "LinearProbe",
    "extract",
    "knn_accuracy",
    "knn_predict",
    "linear_accuracy",
    "pixels",
    "recompute_batch_statistics",
]
