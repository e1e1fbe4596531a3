"""Directions of attributes in the space of latent codes, from labels, from two groups of images or from nothing.

The arithmetic of `AttributeClassifier.fit` and `.principal_directions`; scikit-learn does the fitting. Both functions
return the classifier's tensors by name, names of the attributes, and figures of each: held-out "accuracy" and "auroc",
or "r2", or the explained "variance"; none for an attribute too rare to be in both parts.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

METHODS = ("logistic", "svm", "means", "ridge")

Fitted = tuple[dict[str, np.ndarray], list[str], list[dict[str, float]]]


def fit_directions(
    codes: Any,
    labels: Any,
    names: Sequence[str] | None = None,
    *,
    method: str = "logistic",
    held_out: float = 0.2,
    groups: Any = None,
    regularization: float = 1.0,
    seed: int = 0,
) -> Fitted:
    """One direction per attribute, fitted to all codes, with figures of a fit to a part of them on the others."""
    from sklearn.model_selection import GroupShuffleSplit

    normalized, mean, std = _normalized(codes)
    labels, names = _attributes(np.asarray(labels), names, method, len(normalized))
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must be in (0, 1), got {held_out}")
    groups = np.arange(len(normalized)) if groups is None else np.asarray(groups)
    splitter = GroupShuffleSplit(1, test_size=held_out, random_state=seed)
    train, test = next(splitter.split(normalized, groups=groups))
    rows, scores = [], []
    for column, name in zip(labels.T, names, strict=True):
        if method != "ridge" and len(np.unique(column)) < 2:
            raise ValueError(f"labels must have both kinds of {name!r}, got one kind")
        scores.append({})
        if method == "ridge" or all(len(np.unique(column[part])) == 2 for part in (train, test)):
            weight, bias = _fit(method, normalized[train], column[train], regularization)
            scores[-1] = _score(normalized[test] @ weight + bias, column[test], method)
        rows.append(_fit(method, normalized, column, regularization))
    weight, bias = (np.stack(parts) for parts in zip(*rows, strict=True))
    return {"linear.weight": weight, "linear.bias": bias, "latent_mean": mean, "latent_std": std}, names, scores


def principal_directions(codes: Any, num_directions: int) -> Fitted:
    """The directions in which normalised codes vary most (Haerkoenen et al. 2020, "GANSpace")."""
    from sklearn.decomposition import PCA

    normalized, mean, std = _normalized(codes)
    if not 1 <= num_directions <= min(normalized.shape):
        raise ValueError(f"num_directions must be between 1 and {min(normalized.shape)}, got {num_directions}")
    pca = PCA(num_directions, svd_solver="full").fit(normalized)
    weight, bias = pca.components_, np.zeros(num_directions)
    names = [f"component {index}" for index in range(num_directions)]
    scores = [{"variance": float(share)} for share in pca.explained_variance_ratio_]
    return {"linear.weight": weight, "linear.bias": bias, "latent_mean": mean, "latent_std": std}, names, scores


def _normalized(codes: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes (N, latent_dim) of mean 0 and standard deviation 1, in float64; and what these were."""
    codes = np.asarray(codes, dtype=np.float64)
    if codes.ndim != 2 or len(codes) < 2:
        raise ValueError(f"codes must have shape (at least 2, latent_dim), got {codes.shape}")
    if not np.isfinite(codes).all():
        raise ValueError("codes must be finite, got NaN or infinity")
    mean, std = codes.mean(axis=0), codes.std(axis=0).clip(min=1e-6)
    return (codes - mean) / std, mean, std


def _attributes(
    labels: np.ndarray, names: Sequence[str] | None, method: str, count: int
) -> tuple[np.ndarray, list[str]]:
    """Labels as (N, A), float64, and a name for each column."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if len(labels) != count:
        raise ValueError(f"labels must be one per code, {count}, got {len(labels)}")
    if labels.ndim == 1 and method != "ridge":
        classes = np.unique(labels)
        if len(classes) < 2:
            raise ValueError(f"labels must hold at least two classes, got only {classes.tolist()}")
        if len(classes) == 2:
            classes = classes[1:]
        labels = (labels[:, None] == classes).astype(np.float64)
        default = [str(value) for value in classes]
    else:
        labels = labels.reshape(count, -1).astype(np.float64)
        default = [f"attribute {index}" for index in range(labels.shape[1])]
    if not np.isfinite(labels).all() or (method != "ridge" and not np.isin(labels, (0, 1)).all()):
        raise ValueError("labels must be finite, and 0 or 1 but for method='ridge'")
    names = default if names is None else list(names)
    if len(names) != labels.shape[1]:
        raise ValueError(f"names must be {labels.shape[1]} names, one per attribute, got {names}")
    return labels, names


def _fit(method: str, codes: np.ndarray, labels: np.ndarray, regularization: float) -> tuple[np.ndarray, float]:
    """Weight and bias of one linear function."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.svm import LinearSVC

    if method == "means":
        with_it, without = codes[labels == 1].mean(axis=0), codes[labels == 0].mean(axis=0)
        direction = with_it - without
        return direction, float(-direction @ (with_it + without) / 2)
    if method == "logistic":
        model = LogisticRegression(C=1 / regularization, max_iter=500)
    elif method == "svm":
        model = LinearSVC(C=1 / regularization, dual=len(codes) < codes.shape[1], random_state=0, max_iter=20_000)
    else:
        model = Ridge(alpha=regularization)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a direction is good enough before the last digit has converged
        model.fit(codes, labels)
    return model.coef_.ravel(), float(np.ravel(model.intercept_)[0])


def _score(outputs: np.ndarray, labels: np.ndarray, method: str) -> dict[str, float]:
    from sklearn.metrics import r2_score, roc_auc_score

    if method == "ridge":
        return {"r2": float(r2_score(labels, outputs))}
    accuracy = float(((outputs > 0) == (labels == 1)).mean())
    return {"accuracy": accuracy, "auroc": float(roc_auc_score(labels, outputs))}
