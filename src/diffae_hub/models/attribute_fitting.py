"""Directions of attributes in the space of latent codes, from labels, from two groups of images or from nothing.

The arithmetic of `AttributeClassifier.fit` and `.principal_directions`; scikit-learn does the fitting.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

METHODS = ("logistic", "svm", "means", "ridge")


@dataclass
class FittedDirections:
    """Linear functions of normalised codes.

    Args:
        weight: (A, latent_dim), float32.
        bias: (A,), float32.
        mean: Of the codes, (latent_dim,).
        std: Of the codes, (latent_dim,).
        names: One per row.
        scores: One per row: held-out figures, "accuracy" and "auroc", or "r2", or the explained "variance".
    """

    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    names: list[str]
    scores: list[dict[str, float]] = field(default_factory=list)


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
) -> FittedDirections:
    """One direction per attribute, with its figures on codes that the fit did not see.

    The figures come from a fit on the rest; the directions from a fit on all codes.

    Args:
        codes: (N, latent_dim), as the encoder gives them.
        labels: (N,) classes, each of which becomes an attribute (two classes become one); (N, A) of 0 and 1; or, for
            "ridge", numbers, (N,) or (N, A).
        names: One per attribute; by default the classes, or "attribute 0", ...
        method: "logistic" (binary cross-entropy, the official recipe), "svm" (linear support vectors), "means" (from
            the mean code without the attribute to the one with it) or "ridge" (numbers such as an age).
        held_out: Share of the codes to measure on, in (0, 1).
        groups: (N,) which codes belong together, so that relatives are on one side of the split.
        regularization: Strength of the penalty on the weights; its scale is scikit-learn's.
        seed: Of the split.
    """
    codes = checked_codes(codes)
    labels, names = _attributes(np.asarray(labels), names, method, len(codes))
    mean, std = codes.mean(axis=0), codes.std(axis=0).clip(min=1e-6)
    normalized = (codes - mean) / std
    train, test = _split(len(codes), held_out, groups, seed)
    fit: Callable[..., tuple[np.ndarray, float]] = {
        "logistic": _logistic, "svm": _svm, "means": _means, "ridge": _ridge,
    }[method]  # fmt: skip
    rows, scores = [], []
    for column, name in zip(labels.T, names, strict=True):
        for part in (train, test):
            if method != "ridge" and len(np.unique(column[part])) < 2:
                raise ValueError(f"labels must have both kinds of {name!r} in both parts of the split, got one kind")
        weight, bias = fit(normalized[train], column[train], regularization)
        scores.append(_score(normalized[test] @ weight + bias, column[test], method))
        rows.append(fit(normalized, column, regularization))
    weight, bias = (np.stack(parts).astype(np.float32) for parts in zip(*rows, strict=True))
    return FittedDirections(weight, bias, mean, std, names, scores)


def principal_directions(codes: Any, num_directions: int) -> FittedDirections:
    """The directions in which normalised codes vary most (Haerkoenen et al. 2020, "GANSpace").

    Args:
        codes: (N, latent_dim).
        num_directions: How many, at most latent_dim and N.
    """
    from sklearn.decomposition import PCA

    codes = checked_codes(codes)
    if not 1 <= num_directions <= min(codes.shape):
        raise ValueError(f"num_directions must be between 1 and {min(codes.shape)}, got {num_directions}")
    mean, std = codes.mean(axis=0), codes.std(axis=0).clip(min=1e-6)
    pca = PCA(num_directions, svd_solver="full").fit((codes - mean) / std)
    return FittedDirections(
        pca.components_.astype(np.float32),
        np.zeros(num_directions, np.float32),
        mean,
        std,
        [f"component {index}" for index in range(num_directions)],
        [{"variance": float(share)} for share in pca.explained_variance_ratio_],
    )


def checked_codes(codes: Any) -> np.ndarray:
    """Codes as float64 (N, latent_dim); ValueError unless they are finite and at least two."""
    codes = np.asarray(codes, dtype=np.float64)
    if codes.ndim != 2 or len(codes) < 2:
        raise ValueError(f"codes must have shape (at least 2, latent_dim), got {codes.shape}")
    if not np.isfinite(codes).all():
        raise ValueError("codes must be finite, got NaN or infinity")
    return codes


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
    if len(names) != labels.shape[1] or len(set(names)) != len(names):
        raise ValueError(f"names must be {labels.shape[1]} different names, one per attribute, got {names}")
    return labels, names


def _split(count: int, held_out: float, groups: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import GroupShuffleSplit

    if not 0 < held_out < 1:
        raise ValueError(f"held_out must be in (0, 1), got {held_out}")
    groups = np.arange(count) if groups is None else np.asarray(groups)
    return next(GroupShuffleSplit(1, test_size=held_out, random_state=seed).split(groups, groups=groups))


def _logistic(codes: np.ndarray, labels: np.ndarray, regularization: float) -> tuple[np.ndarray, float]:
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a direction is good enough before the last digit has converged
        model = LogisticRegression(C=1 / regularization, max_iter=500).fit(codes, labels)
    return model.coef_[0], float(model.intercept_[0])


def _svm(codes: np.ndarray, labels: np.ndarray, regularization: float) -> tuple[np.ndarray, float]:
    from sklearn.svm import LinearSVC

    model = LinearSVC(C=1 / regularization, dual=len(codes) < codes.shape[1], random_state=0, max_iter=20_000)
    model.fit(codes, labels)
    return model.coef_[0], float(model.intercept_[0])


def _means(codes: np.ndarray, labels: np.ndarray, regularization: float) -> tuple[np.ndarray, float]:
    with_it, without = codes[labels == 1].mean(axis=0), codes[labels == 0].mean(axis=0)
    direction = with_it - without
    return direction, float(-direction @ (with_it + without) / 2)


def _ridge(codes: np.ndarray, labels: np.ndarray, regularization: float) -> tuple[np.ndarray, float]:
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=regularization).fit(codes, labels)
    return model.coef_, float(model.intercept_)


def _score(outputs: np.ndarray, labels: np.ndarray, method: str) -> dict[str, float]:
    from sklearn.metrics import r2_score, roc_auc_score

    if method == "ridge":
        return {"r2": float(r2_score(labels, outputs))}
    accuracy = float(((outputs > 0) == (labels == 1)).mean())
    return {"accuracy": accuracy, "auroc": float(roc_auc_score(labels, outputs))}
