"""Maps: features in two dimensions, to be looked at."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

# t-SNE and UMAP start from so many principal components, as van der Maaten and Hinton did with 30.
_COMPONENTS = 50


class MissingUMAP(ModuleNotFoundError):
    """umap-learn is not installed; the message says how to get it."""


def tsne(x: Tensor, seed: int = 0, perplexity: float = 30.0) -> np.ndarray:
    """t-SNE (van der Maaten and Hinton 2008) as scikit-learn computes it, of the first 50 principal components.

    Time grows a little faster than N; choose at most some thousand points with :func:`~fastssl.evaluate.subset.spread`.

    Args:
        x: float32 [N, D], N at least 4.
        seed: of what is random.
        perplexity: neighbours that count, about; fewer where N is small.

    Returns:
        float64 [N, 2].

    Raises:
        ValueError: if there are fewer than 4 points, or a value is not finite.
    """
    rows = _components("tsne", x, seed)
    perplexity = min(perplexity, (len(rows) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(rows).astype(np.float64)


def umap(x: Tensor, seed: int = 0, neighbors: int = 15) -> np.ndarray:
    """UMAP (McInnes et al. 2018) as umap-learn computes it, of the first 50 principal components.

    Args:
        x: float32 [N, D], N at least 4.
        seed: of what is random.
        neighbors: that count; fewer where N is small.

    Returns:
        float64 [N, 2].

    Raises:
        MissingUMAP: without umap-learn.
        ValueError: if there are fewer than 4 points, or a value is not finite.
    """
    if find_spec("umap") is None:
        raise MissingUMAP('a UMAP map needs umap-learn: pip install "fastssl[umap]"')
    rows = _components("umap", x, seed)
    threads = torch.get_num_threads()
    from umap import UMAP

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*n_jobs value")  # a seed makes it use one, which is what we want
        warnings.filterwarnings("ignore", message=".*[Ss]pectral")  # of very few points; it starts at random then
        init = "spectral" if len(rows) > 10 else "random"
        made = UMAP(n_neighbors=min(neighbors, len(rows) - 1), init=init, random_state=seed).fit_transform(rows)
    torch.set_num_threads(threads)  # numba sets it for the whole process
    return made.astype(np.float64)


def _components(name: str, x: Tensor, seed: int) -> np.ndarray:
    if x.ndim != 2 or len(x) < 4:
        raise ValueError(f"{name}: x must be [N, D] with N at least 4, got {tuple(x.shape)}")
    if not x.isfinite().all():
        raise ValueError(f"{name}: x must be finite, got NaN or infinite values")
    rows = x.double().cpu().numpy()
    if min(rows.shape) > _COMPONENTS:
        rows = PCA(_COMPONENTS, random_state=seed).fit_transform(rows)
    return rows.astype(np.float32)
