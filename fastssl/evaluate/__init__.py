"""How good a representation is: features once, then everything that papers report about them.

What fits a single purpose has a module of its own: sweep (linear probing), finetune, kmeans, maps, subset (few labels),
cache, lines (what to compare with), tasks (all of them, for ``fastssl eval``).
"""

from fastssl.evaluate.features import Both, Features, extract, extract_both, pixels, recompute_batch_statistics
from fastssl.evaluate.knn import knn_accuracies, knn_accuracy, knn_predict
from fastssl.evaluate.linear import LinearProbe, linear_accuracy

__all__ = [
    "Both",
    "Features",
    "LinearProbe",
    "extract",
    "extract_both",
    "knn_accuracies",
    "knn_accuracy",
    "knn_predict",
    "linear_accuracy",
    "pixels",
    "recompute_batch_statistics",
]
