"""Nearest images in the space of latent codes."""

from __future__ import annotations

from typing import Any

import numpy as np


def nearest_codes(
    codes: Any, queries: Any, num_neighbours: int = 8, metric: str = "cosine"
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the codes (N, latent_dim) nearest to each query (Q, latent_dim), by an exact search.

    Both are normalised with the mean and standard deviation of `codes`. The metrics are "cosine" (1 - cosine of the
    angle) and "euclidean". Returns distances and row numbers in `codes`, each (Q, num_neighbours), nearest first.
    """
    from sklearn.neighbors import NearestNeighbors

    codes, queries = np.asarray(codes, np.float32), np.asarray(queries, np.float32)
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"metric must be 'cosine' or 'euclidean', got {metric!r}")
    if codes.ndim != 2 or not np.isfinite(codes).all():
        raise ValueError(f"codes must be finite, of shape (number, latent_dim), got {codes.shape}")
    if not 1 <= num_neighbours <= len(codes):
        raise ValueError(f"num_neighbours must be between 1 and {len(codes)}, got {num_neighbours}")
    if queries.ndim != 2 or queries.shape[1] != codes.shape[1] or not np.isfinite(queries).all():
        raise ValueError(f"queries must be finite, of shape (number, {codes.shape[1]}), got {queries.shape}")
    mean, std = codes.mean(axis=0), codes.std(axis=0).clip(min=1e-6)
    index = NearestNeighbors(n_neighbors=num_neighbours, metric=metric, algorithm="brute").fit((codes - mean) / std)
    return index.kneighbors((queries - mean) / std)
