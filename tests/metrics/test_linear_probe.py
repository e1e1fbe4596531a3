"""Linear probes against scipy's minimiser, counted pairs and numpy's least squares."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax
from scipy.stats import pearsonr

from diffae_hub.metrics.linear_probe import multiclass_probe, multilabel_probe, regression_probe


def gaussian_classes(count: int, means: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (count, D) around the mean of their class, of a covariance far from the unit one after mixing; labels."""
    random = np.random.default_rng(seed)
    labels = random.integers(len(means), size=count)
    codes = means[labels] + random.normal(size=(count, means.shape[1]))
    mixing = np.random.default_rng(99).normal(size=(means.shape[1],) * 2)
    return 5 + codes @ mixing * np.arange(1, means.shape[1] + 1), labels


def pair_auroc(positive: np.ndarray, scores: np.ndarray) -> float:
    """Share of pairs of a positive and a negative that the scores put in order, ties counting half."""
    difference = scores[positive][:, None] - scores[~positive][None, :]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def normalize(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (train - train.mean(0)) / train.std(0), (test - train.mean(0)) / train.std(0)


def softmax_regression(codes: np.ndarray, labels: np.ndarray, classes: int, c: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights (D, classes) and bias that minimise c * sum of negative log-likelihoods + |weights|^2 / 2."""
    size = codes.shape[1] * classes

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = values[:size].reshape(-1, classes), values[size:]
        log_probabilities = log_softmax(codes @ weights + bias, axis=1)
        residual = np.exp(log_probabilities) - np.eye(classes)[labels]
        value = -c * log_probabilities[np.arange(len(labels)), labels].sum() + 0.5 * np.square(weights).sum()
        gradient = np.concatenate([(c * codes.T @ residual + weights).ravel(), c * residual.sum(axis=0)])
        return value, gradient

    found = minimize(loss, np.zeros(size + classes), jac=True, method="BFGS", options={"gtol": 1e-7, "maxiter": 5000})
    return found.x[:size].reshape(-1, classes), found.x[size:]


def test_multiclass_equals_softmax_regression_by_another_minimiser() -> None:
    means = np.random.default_rng(0).normal(size=(4, 5))
    (train, train_labels), (test, test_labels) = (gaussian_classes(n, means, n) for n in (500, 400))
    c = 0.05
    probe = multiclass_probe(train, train_labels, test, test_labels, inverse_regularization=c)
    x, y = normalize(train, test)
    weights, bias = softmax_regression(x, train_labels, 4, c)
    logits = y @ weights + bias
    expected = [pair_auroc(test_labels == k, log_softmax(logits, axis=1)[:, k]) for k in range(4)]
    np.testing.assert_allclose(probe["auroc_per_class"], expected, atol=2e-4)  # 4 of 30,000 pairs
    assert probe["auroc_macro"] == pytest.approx(np.mean(probe["auroc_per_class"]), abs=1e-12)
    assert probe["accuracy"] == pytest.approx((logits.argmax(1) == test_labels).mean(), abs=1e-12)
    # Ranking by the logits themselves would be another measure.
    by_logits = [pair_auroc(test_labels == k, logits[:, k]) for k in range(4)]
    assert np.abs(np.subtract(by_logits, expected)).max() > 0.005


def test_labels_may_be_strings_and_a_class_may_be_missing_in_the_test_set() -> None:
    (train, train_labels), (test, test_labels) = (gaussian_classes(n, 2 * np.eye(3), n) for n in (300, 200))
    names = np.array(["cat", "dog", "frog"])
    by_number = multiclass_probe(train, train_labels, test, test_labels)
    by_name = multiclass_probe(train, names[train_labels], test, names[test_labels])
    assert by_name["classes"] == ["cat", "dog", "frog"]
    assert by_name["auroc_per_class"] == by_number["auroc_per_class"]
    kept = test_labels != 1
    probe = multiclass_probe(train, names[train_labels], test[kept], names[test_labels[kept]])
    assert probe["left_out"] == ["dog"]
    assert math.isnan(probe["auroc_per_class"][1])
    assert probe["auroc_macro"] == pytest.approx((probe["auroc_per_class"][0] + probe["auroc_per_class"][2]) / 2)


def test_multilabel_equals_logistic_regression_by_another_minimiser() -> None:
    random = np.random.default_rng(1)
    train, test = (random.normal(3, 2, size=(n, 6)) for n in (500, 300))
    directions = random.normal(size=(6, 3))
    train_labels, test_labels = (
        (x @ directions + random.normal(0, 4, size=(len(x), 3)) > [[9, 0, -9]]).astype(int) for x in (train, test)
    )
    c = 0.02
    probe = multilabel_probe(train, train_labels, test, test_labels, inverse_regularization=c)
    x, y = normalize(train, test)
    for attribute in range(3):
        # The softmax of two classes has the logistic loss in w1 - w0, and half its squared norm: c / 2 is its c.
        weights, bias = softmax_regression(x, train_labels[:, attribute], 2, c / 2)
        scores = (y @ weights + bias) @ [-1, 1]
        expected = pair_auroc(test_labels[:, attribute] == 1, scores)
        assert probe["auroc_per_attribute"][attribute] == pytest.approx(expected, abs=2e-4)
    assert probe["auroc_macro"] == pytest.approx(np.mean(probe["auroc_per_attribute"]), abs=1e-12)
    assert probe["left_out"] == []


def test_multilabel_leaves_out_what_has_one_value_only() -> None:
    random = np.random.default_rng(2)
    train, test = random.normal(size=(200, 4)), random.normal(size=(150, 4))
    train_labels = (train + random.normal(size=train.shape) > 0).astype(int)
    test_labels = (test + random.normal(size=test.shape) > 0).astype(int)
    complete = multilabel_probe(train, train_labels, test, test_labels)
    as_in_celeba = multilabel_probe(train, 2 * train_labels - 1, test, 2 * test_labels - 1)
    assert as_in_celeba == complete, "the same figures, bit for bit"
    train_labels[:, 1] = 0  # cannot be learnt
    test_labels[:, 3] = 1  # cannot be ranked
    probe = multilabel_probe(train, train_labels, test, test_labels)
    assert probe["left_out"] == [1, 3]
    assert np.isnan(probe["auroc_per_attribute"]).tolist() == [False, True, False, True]
    assert probe["auroc_macro"] == pytest.approx(
        (complete["auroc_per_attribute"][0] + complete["auroc_per_attribute"][2]) / 2
    )


def test_regression_equals_least_squares() -> None:
    random = np.random.default_rng(4)
    train, test = random.normal(3, 2, size=(120, 5)), random.normal(3, 2, size=(80, 5))
    directions = random.normal(size=(5, 2))
    train_targets, test_targets = (x @ directions + random.normal(7, 1, size=(len(x), 2)) for x in (train, test))
    alpha = 20.0
    probe = regression_probe(train, train_targets, test, test_targets, regularization=alpha)
    # Ridge as least squares: a row sqrt(alpha) e_i of target 0 for each weight; the bias is not penalised.
    x, y = normalize(train, test)
    rows = np.block([[x, np.ones((120, 1))], [math.sqrt(alpha) * np.eye(5), np.zeros((5, 1))]])
    solution, *_ = np.linalg.lstsq(rows, np.concatenate([train_targets, np.zeros((5, 2))]), rcond=None)
    predicted = np.column_stack([y, np.ones(80)]) @ solution
    for column in range(2):
        target, prediction = test_targets[:, column], predicted[:, column]
        r_squared = 1 - ((target - prediction) ** 2).sum() / ((target - target.mean()) ** 2).sum()
        assert probe["r_squared"][column] == pytest.approx(r_squared, rel=1e-9)
        assert probe["mean_absolute_error"][column] == pytest.approx(np.abs(target - prediction).mean(), rel=1e-9)
        assert probe["pearson"][column] == pytest.approx(pearsonr(target, prediction).statistic, rel=1e-9)
    constant = np.full(80, 0.1)
    single = regression_probe(train, train_targets[:, 1], test, constant)
    assert math.isnan(single["r_squared"][0]) and math.isnan(single["pearson"][0])
    assert math.isfinite(single["mean_absolute_error"][0])


# ---- bad input -------------------------------------------------------------------------------------------------------

CODES = np.random.default_rng(10).normal(size=(6, 2))
LABELS = np.array([0, 1, 0, 1, 0, 1])


@pytest.mark.parametrize(
    ("probe", "train_labels", "test_labels", "argument"),
    [
        (multiclass_probe, LABELS, LABELS + 1, "test_labels"),
        (multilabel_probe, LABELS, LABELS * 2, "test_labels"),
        (multilabel_probe, np.eye(6), LABELS, "test_labels"),
        (regression_probe, np.eye(6), LABELS, "test_targets"),
    ],
)
def test_bad_labels(probe, train_labels, test_labels, argument: str) -> None:
    with pytest.raises(ValueError, match=argument):
        probe(CODES, train_labels, CODES, test_labels)
