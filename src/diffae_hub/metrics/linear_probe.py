"""Linear probes (section 5.2, "Information within latent codes"; tables 10 and 11): what a code says linearly.

Codes are normalised with the mean and standard deviation of the training codes. The models are scikit-learn's, solved
to convergence from a fixed start: the same codes give the same figures, bit for bit on one machine with one number of
threads. 50,000 codes of 512 numbers take about half a minute on one core for 10 classes, 5 seconds per attribute.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_NEWTON_DIMENSIONS = 1024  # up to here Newton's method is faster than L-BFGS, and more exact
_MAX_ITERATIONS = 5000


@dataclass(frozen=True)
class MulticlassProbe:
    """Result of [`multiclass_probe`].

    Args:
        accuracy: Share of test codes whose most probable class is the right one, in [0, 1].
        auroc_macro: Mean of `auroc_per_class` without the classes left out (table 11's average).
        auroc_per_class: Area under the ROC curve of a class's probability against the rest, in the order of `classes`;
            NaN for those left out.
        classes: The labels of the training set, sorted.
        left_out: Classes that no test code, or every test code, has: their AUROC is not defined.
    """

    accuracy: float
    auroc_macro: float
    auroc_per_class: list[float]
    classes: list
    left_out: list


@dataclass(frozen=True)
class MultilabelProbe:
    """Result of [`multilabel_probe`].

    Args:
        auroc_macro: Mean of `auroc_per_attribute` without the attributes left out (table 10's average).
        auroc_per_attribute: Area under the ROC curve; NaN for those left out.
        average_precision_per_attribute: Likewise; the share of codes with the attribute is what chance gives.
        accuracy_per_attribute: At probability 1/2; NaN where the training set has one value only.
        left_out: Names (without names, indices) of attributes with one value only in the training or the test set.
    """

    auroc_macro: float
    auroc_per_attribute: list[float]
    average_precision_per_attribute: list[float]
    accuracy_per_attribute: list[float]
    left_out: list


@dataclass(frozen=True)
class RegressionProbe:
    """Result of [`regression_probe`], one entry per target.

    Args:
        r_squared: 1 - squared error / variance in the test set; at most 1, below 0 if the test mean predicts better;
            NaN where the test set has one value only.
        mean_absolute_error: In the target's unit.
        pearson: Correlation of prediction and target, in [-1, 1]; NaN where either has one value only.
    """

    r_squared: list[float]
    mean_absolute_error: list[float]
    pearson: list[float]


def multiclass_probe(
    train_codes: np.ndarray,
    train_labels: np.ndarray,
    test_codes: np.ndarray,
    test_labels: np.ndarray,
    inverse_regularization: float = 0.1,
) -> MulticlassProbe:
    """Softmax regression on normalised codes by their negative log-likelihood (section 5.2 for CIFAR-10, table 11).

    The paper names no regularisation. `inverse_regularization` weighs the sum over the codes against half the squared
    norm of the weights, so that its influence fades with their number.

    Args:
        train_codes: (N, D), finite.
        train_labels: (N,), integers or strings.
        test_codes: (M, D), finite.
        test_labels: (M,); only classes of the training set.
        inverse_regularization: scikit-learn's C, above 0.

    Raises:
        ValueError: For shapes that do not fit, values that are not finite, labels that are neither integers nor
            strings, fewer than two classes, or classes that only the test set has.
    """
    from scipy.special import log_softmax
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    _check_positive("inverse_regularization", inverse_regularization)
    train, test = _normalized(train_codes, test_codes)
    train_labels = _class_labels("train_labels", train_labels, len(train))
    test_labels = _class_labels("test_labels", test_labels, len(test))
    classes = np.unique(train_labels)
    unknown = np.setdiff1d(test_labels, classes)
    if len(unknown):
        raise ValueError(f"test_labels must be classes of train_labels, {_some(classes)}, got {_some(unknown)} too")
    if len(classes) < 2:
        raise ValueError(f"train_labels must hold at least 2 classes, got {_some(classes)} only")

    model = LogisticRegression(C=inverse_regularization, tol=1e-6, max_iter=_MAX_ITERATIONS).fit(train, train_labels)
    logits = model.decision_function(test)
    if len(classes) == 2:
        logits = np.stack([np.zeros_like(logits), logits], axis=1)
    # Logits of different codes cannot be ranked, they are defined up to a constant per code; probabilities can.
    scores = log_softmax(logits, axis=1)
    members = test_labels[:, None] == classes
    defined = [0 < count < len(test) for count in members.sum(axis=0)]
    auroc = [
        float(roc_auc_score(members[:, column], scores[:, column])) if defined[column] else math.nan
        for column in range(len(classes))
    ]
    return MulticlassProbe(
        accuracy=float((classes[scores.argmax(axis=1)] == test_labels).mean()),
        auroc_macro=_mean_of_defined(auroc),
        auroc_per_class=auroc,
        classes=classes.tolist(),
        left_out=[label for label, is_defined in zip(classes.tolist(), defined, strict=True) if not is_defined],
    )


def multilabel_probe(
    train_codes: np.ndarray,
    train_labels: np.ndarray,
    test_codes: np.ndarray,
    test_labels: np.ndarray,
    inverse_regularization: float = 0.1,
    attribute_names: Sequence[str] | None = None,
) -> MultilabelProbe:
    """A logistic regression per attribute on normalised codes (section 5.2 for CelebA's 40 attributes, table 10).

    Args:
        train_codes: (N, D), finite.
        train_labels: (N, A), or (N,) for one attribute, in {0, 1}; or in {-1, 1} as in CelebA's own files.
        test_codes: (M, D), finite.
        test_labels: (M, A) or (M,), as `train_labels`.
        inverse_regularization: scikit-learn's C, above 0; see [`multiclass_probe`].
        attribute_names: A names, for `left_out`.

    Raises:
        ValueError: For shapes that do not fit, codes that are not finite or labels of other values.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import average_precision_score, roc_auc_score

    _check_positive("inverse_regularization", inverse_regularization)
    train, test = _normalized(train_codes, test_codes)
    train_labels = _columns("train_labels", train_labels, len(train))
    test_labels = _columns("test_labels", test_labels, len(test))
    _check_same_columns("labels", train_labels, test_labels)
    values = np.union1d(train_labels, test_labels)
    if not (np.isin(values, (0, 1)).all() or np.isin(values, (-1, 1)).all()):
        raise ValueError(f"train_labels and test_labels must be 0 or 1 (or -1 or 1), got {_some(values)}")
    count = train_labels.shape[1]
    names = list(range(count)) if attribute_names is None else list(attribute_names)
    if len(names) != count:
        raise ValueError(f"attribute_names must have a name for each of {count} attributes, got {len(names)}")

    solver = "newton-cholesky" if train.shape[1] <= _NEWTON_DIMENSIONS else "lbfgs"
    auroc, precision, accuracy = [math.nan] * count, [math.nan] * count, [math.nan] * count
    left_out = []
    for attribute in range(count):
        learnt, expected = train_labels[:, attribute] == 1, test_labels[:, attribute] == 1
        can_learn, can_rank = learnt.any() and not learnt.all(), expected.any() and not expected.all()
        if not (can_learn and can_rank):
            left_out.append(names[attribute])
        if not can_learn:
            continue
        model = LogisticRegression(C=inverse_regularization, solver=solver, tol=1e-6, max_iter=_MAX_ITERATIONS)
        scores = model.fit(train, learnt).decision_function(test)
        accuracy[attribute] = float(((scores > 0) == expected).mean())
        if can_rank:
            auroc[attribute] = float(roc_auc_score(expected, scores))
            precision[attribute] = float(average_precision_score(expected, scores))
    return MultilabelProbe(_mean_of_defined(auroc), auroc, precision, accuracy, left_out)


def regression_probe(
    train_codes: np.ndarray,
    train_targets: np.ndarray,
    test_codes: np.ndarray,
    test_targets: np.ndarray,
    regularization: float = 1.0,
) -> RegressionProbe:
    """Ridge regression of continuous attributes (pose, age) on normalised codes; not in the paper.

    Args:
        train_codes: (N, D), finite.
        train_targets: (N,) or (N, K), finite, any unit.
        test_codes: (M, D), finite.
        test_targets: (M,) or (M, K), finite.
        regularization: scikit-learn's alpha, above 0: weight of the weights' squared norm, in the target's unit per
            standard deviation of the code, beside the sum of squared errors.

    Raises:
        ValueError: For shapes that do not fit or values that are not finite.
    """
    from sklearn.linear_model import Ridge

    _check_positive("regularization", regularization)
    train, test = _normalized(train_codes, test_codes)
    train_targets = _columns("train_targets", train_targets, len(train)).astype(np.float64)
    test_targets = _columns("test_targets", test_targets, len(test)).astype(np.float64)
    _check_same_columns("targets", train_targets, test_targets)

    model = Ridge(alpha=regularization, solver="cholesky", copy_X=False).fit(train, train_targets)
    predicted = model.predict(test).reshape(test_targets.shape)
    r_squared, pearson = [], []
    for target, prediction in zip(test_targets.T, predicted.T, strict=True):
        varies = np.ptp(target) > 0
        squared_error = np.square(target - prediction).sum()
        r_squared.append(float(1 - squared_error / np.square(target - target.mean()).sum()) if varies else math.nan)
        varies = varies and np.ptp(prediction) > 0
        pearson.append(float(np.corrcoef(target, prediction)[0, 1]) if varies else math.nan)
    return RegressionProbe(r_squared, np.abs(test_targets - predicted).mean(axis=0).tolist(), pearson)


def _normalized(train_codes: np.ndarray, test_codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Copies in float64, minus the training mean, by the training standard deviation.

    A dimension that is constant in training becomes 0 in both: nothing can be learnt from it.
    """
    train, test = (np.array(codes, dtype=np.float64, order="C") for codes in (train_codes, test_codes))
    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1] or not train.size or not len(test):
        raise ValueError(
            f"train_codes and test_codes must have shapes (N, D) and (M, D), none of them 0, got {train.shape} and "
            f"{test.shape}"
        )
    for name, codes in (("train_codes", train), ("test_codes", test)):
        if not np.isfinite(codes).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    constant = train.max(axis=0) == train.min(axis=0)  # their computed deviation may be a rounding error, not 0
    mean = train.mean(axis=0)
    train -= mean
    std = np.sqrt(np.einsum("nd,nd->d", train, train) / len(train))
    std[constant] = 1
    train /= std
    test -= mean
    test /= std
    train[:, constant] = 0
    test[:, constant] = 0
    return train, test


def _class_labels(name: str, labels: np.ndarray, count: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), one label per code, got {labels.shape}")
    if labels.dtype.kind == "O":  # a column of strings of a data frame
        labels = np.array(labels.tolist())
    if labels.dtype.kind == "f" and (labels == np.floor(labels)).all() and np.isfinite(labels).all():
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "biuU":
        unfit = labels[labels != np.floor(labels)] if labels.dtype.kind == "f" else labels
        raise ValueError(f"{name} must be integers or strings, got {labels.dtype}, such as {_some(unfit)}")
    return labels


def _columns(name: str, labels: np.ndarray, count: int) -> np.ndarray:
    """(N,) or (N, K) -> (N, K), finite."""
    labels = np.asarray(labels)
    if labels.ndim not in (1, 2) or len(labels) != count or labels.size == 0:
        raise ValueError(f"{name} must have shape ({count},) or ({count}, K), one row per code, got {labels.shape}")
    if labels.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be numbers, got {labels.dtype}")
    if not np.isfinite(labels).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return labels.reshape(count, -1)


def _check_same_columns(what: str, train: np.ndarray, test: np.ndarray) -> None:
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"test_{what} must have as many columns as train_{what}, {train.shape[1]}, got {test.shape[1]}"
        )


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be above 0 and finite, got {value}")


def _mean_of_defined(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _some(values: np.ndarray) -> str:
    """The first few values, for a message."""
    return ", ".join(map(repr, values[:5].tolist())) + (", ..." if len(values) > 5 else "")
