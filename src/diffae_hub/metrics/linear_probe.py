"""Linear probes (section 5.2, "Information within latent codes"; tables 10 and 11) of latent codes.

Finite codes, (N, D) to train on and (M, D) to test on, are normalised with the mean and standard deviation of the
training codes. Models and figures are scikit-learn's, solved to convergence, so the same codes give the same figures.

The paper does not state its regularisation. `inverse_regularization`, scikit-learn's C, weighs the sum over the codes
against half the squared norm of the weights, so it matters less with more codes. `left_out` are classes or attributes
with only one value, such as a class that no test code has. Their figures are NaN and not in the mean.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_SOLVER = {"tol": 1e-6, "max_iter": 5000}


def multiclass_probe(
    train_codes: np.ndarray,
    train_labels: np.ndarray,
    test_codes: np.ndarray,
    test_labels: np.ndarray,
    inverse_regularization: float = 0.1,
) -> dict[str, Any]:
    """Fits a softmax regression (section 5.2 for CIFAR-10, table 11) of labels (N,) and (M,), integers or strings.

    Returns `accuracy`; `classes`, the training labels, sorted; `auroc_per_class`, the area under the ROC curve of each
    class's probability against the rest; `auroc_macro`, their mean (table 11's average); and `left_out`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    train, test = _normalized(train_codes, test_codes)
    train_labels, test_labels = (np.asarray(list(labels)) for labels in (train_labels, test_labels))
    model = LogisticRegression(C=inverse_regularization, **_SOLVER).fit(train, train_labels)
    classes = model.classes_
    unknown = np.setdiff1d(test_labels, classes)
    if len(unknown):
        raise ValueError(f"test_labels must be classes of train_labels, got {unknown[:5].tolist()} too")
    # Logits are defined only up to a constant per code, so they cannot be ranked across codes; probabilities can.
    scores = model.predict_log_proba(test)
    members = test_labels[:, None] == classes
    defined = _has_both(members)
    auroc = [float(roc_auc_score(members[:, k], scores[:, k])) if defined[k] else math.nan for k in range(len(classes))]
    return {
        "accuracy": float(model.score(test, test_labels)),
        "auroc_macro": _mean_of_defined(auroc),
        "auroc_per_class": auroc,
        "classes": classes.tolist(),
        "left_out": classes[~defined].tolist(),
    }


def multilabel_probe(
    train_codes: np.ndarray,
    train_labels: np.ndarray,
    test_codes: np.ndarray,
    test_labels: np.ndarray,
    inverse_regularization: float = 0.1,
) -> dict[str, Any]:
    """Fits a logistic regression per attribute (section 5.2 for CelebA's 40 attributes, table 10).

    Labels are (N, A), or (N,) for one attribute, in {0, 1}, or in {-1, 1} as in CelebA's own files. Returns
    `auroc_per_attribute`; `auroc_macro`, their mean (table 10's average); and `left_out`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    train, test = _normalized(train_codes, test_codes)
    learnt, expected = _columns("labels", train_labels, test_labels)
    values = np.union1d(learnt, expected)
    if not (np.isin(values, (0, 1)).all() or np.isin(values, (-1, 1)).all()):
        raise ValueError(f"train_labels and test_labels must be 0 or 1 (or -1 or 1), got {values[:5].tolist()}")
    learnt, expected = learnt == 1, expected == 1
    defined = _has_both(learnt) & _has_both(expected)
    auroc = [math.nan] * learnt.shape[1]
    for k in np.flatnonzero(defined):
        model = LogisticRegression(C=inverse_regularization, solver="newton-cholesky", **_SOLVER)
        scores = model.fit(train, learnt[:, k]).decision_function(test)
        auroc[k] = float(roc_auc_score(expected[:, k], scores))
    return {
        "auroc_macro": _mean_of_defined(auroc),
        "auroc_per_attribute": auroc,
        "left_out": np.flatnonzero(~defined).tolist(),
    }


def regression_probe(
    train_codes: np.ndarray,
    train_targets: np.ndarray,
    test_codes: np.ndarray,
    test_targets: np.ndarray,
    regularization: float = 1.0,
) -> dict[str, Any]:
    """Fits a ridge regression of continuous targets (pose, age), (N,) or (N, K), finite. Not in the paper.

    `regularization` is scikit-learn's alpha. Returns for each target: `r_squared`, at most 1, below 0 if the test mean
    predicts better; `mean_absolute_error`, in the target's unit; `pearson`, the correlation of prediction and target.
    `r_squared` and `pearson` are NaN for a target with only one value.
    """
    from sklearn.linear_model import Ridge
    from sklearn.metrics import mean_absolute_error, r2_score

    train, test = _normalized(train_codes, test_codes)
    learnt, expected = (values.astype(np.float64) for values in _columns("targets", train_targets, test_targets))
    model = Ridge(alpha=regularization, solver="cholesky", copy_X=False).fit(train, learnt)
    predicted = model.predict(test).reshape(expected.shape)
    varies = np.ptp(expected, axis=0) > 0
    with np.errstate(invalid="ignore"):
        pearson = [np.corrcoef(target, guess)[0, 1] for target, guess in zip(expected.T, predicted.T, strict=True)]
    r_squared = r2_score(expected, predicted, multioutput="raw_values")
    return {
        "r_squared": np.where(varies, r_squared, math.nan).tolist(),
        "mean_absolute_error": mean_absolute_error(expected, predicted, multioutput="raw_values").tolist(),
        "pearson": np.where(varies, pearson, math.nan).tolist(),
    }


def _normalized(train_codes: np.ndarray, test_codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normalises both in float64 with the training mean and standard deviation; constant dimensions become 0."""
    from sklearn.preprocessing import StandardScaler

    train, test = (np.array(codes, dtype=np.float64) for codes in (train_codes, test_codes))
    scaler = StandardScaler(copy=False).fit(train)
    return scaler.transform(train), scaler.transform(test)


def _columns(what: str, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reshapes both from (N,) or (N, K) to (N, K)."""
    train, test = (np.asarray(values).reshape(len(values), -1) for values in (train, test))
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"test_{what} must have {train.shape[1]} columns like train_{what}, got {test.shape[1]}")
    return train, test


def _has_both(columns: np.ndarray) -> np.ndarray:
    """Tells whether each column of booleans holds both values."""
    return columns.any(axis=0) & ~columns.all(axis=0)


def _mean_of_defined(values: Sequence[float]) -> float:
    return math.nan if np.isnan(values).all() else float(np.nanmean(values))
