"""Linear probes against scikit-learn's own pipelines and metrics."""

import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import mean_absolute_error, r2_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from diffae_hub.metrics.linear_probe import multiclass_probe, multilabel_probe, regression_probe


def gaussian_classes(count: int, means: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (count, D) around the mean of their class, of a covariance far from the unit one after mixing; labels."""
    random = np.random.default_rng(seed)
    labels = random.integers(len(means), size=count)
    codes = means[labels] + random.normal(size=(count, means.shape[1]))
    mixing = np.random.default_rng(99).normal(size=(means.shape[1],) * 2)
    return 5 + codes @ mixing * np.arange(1, means.shape[1] + 1), labels


def fitted(model: LogisticRegression | Ridge, train: np.ndarray, labels: np.ndarray):  # noqa: ANN201
    return make_pipeline(StandardScaler(), model).fit(train, labels)


@pytest.mark.parametrize("classes", [2, 4])
def test_multiclass_ranks_by_probabilities(classes: int) -> None:
    means = np.random.default_rng(0).normal(size=(classes, 5))
    (train, train_labels), (test, test_labels) = (gaussian_classes(n, means, n) for n in (500, 400))
    probe = multiclass_probe(train, train_labels, test, test_labels, inverse_regularization=0.05)
    model = fitted(LogisticRegression(C=0.05, tol=1e-8), train, train_labels)
    scores, members = model.predict_proba(test), test_labels[:, None] == np.arange(classes)
    np.testing.assert_allclose(probe["auroc_per_class"], roc_auc_score(members, scores, average=None), atol=2e-4)
    assert probe["auroc_macro"] == pytest.approx(np.mean(probe["auroc_per_class"]), abs=1e-12)
    assert probe["accuracy"] == pytest.approx(model.score(test, test_labels), abs=1e-12)
    if classes > 2:  # ranking by the logits themselves would be another measure
        by_logits = roc_auc_score(members, model.decision_function(test), average=None)
        assert np.abs(np.subtract(by_logits, probe["auroc_per_class"])).max() > 0.005


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


def test_multilabel_leaves_out_what_has_one_value_only() -> None:
    random = np.random.default_rng(2)
    train, test = random.normal(3, 2, size=(200, 4)), random.normal(3, 2, size=(150, 4))
    train_labels, test_labels = ((x + random.normal(0, 2, size=x.shape) > 3).astype(int) for x in (train, test))
    complete = multilabel_probe(train, train_labels, test, test_labels, inverse_regularization=0.02)
    for k, auroc in enumerate(complete["auroc_per_attribute"]):
        scores = fitted(LogisticRegression(C=0.02, tol=1e-8), train, train_labels[:, k]).decision_function(test)
        assert auroc == pytest.approx(roc_auc_score(test_labels[:, k], scores), abs=2e-4)
    as_in_celeba = multilabel_probe(train, 2 * train_labels - 1, test, 2 * test_labels - 1, 0.02)
    assert as_in_celeba == complete, "the same figures, bit for bit"
    train_labels[:, 1] = 0  # cannot be learnt
    test_labels[:, 3] = 1  # cannot be ranked
    probe = multilabel_probe(train, train_labels, test, test_labels, 0.02)
    assert probe["left_out"] == [1, 3]
    assert np.isnan(probe["auroc_per_attribute"]).tolist() == [False, True, False, True]
    assert probe["auroc_macro"] == pytest.approx(np.mean(np.array(complete["auroc_per_attribute"])[[0, 2]]))


def test_regression() -> None:
    random = np.random.default_rng(4)
    train, test = random.normal(3, 2, size=(120, 5)), random.normal(3, 2, size=(80, 5))
    directions = random.normal(size=(5, 2))
    train_targets, test_targets = (x @ directions + random.normal(7, 1, size=(len(x), 2)) for x in (train, test))
    probe = regression_probe(train, train_targets, test, test_targets, regularization=20.0)
    predicted = fitted(Ridge(20.0), train, train_targets).predict(test)
    for name, metric in (("r_squared", r2_score), ("mean_absolute_error", mean_absolute_error)):
        np.testing.assert_allclose(probe[name], metric(test_targets, predicted, multioutput="raw_values"), rtol=1e-9)
    pearson = [np.corrcoef(test_targets[:, k], predicted[:, k])[0, 1] for k in range(2)]
    np.testing.assert_allclose(probe["pearson"], pearson, rtol=1e-9)
    single = regression_probe(train, train_targets[:, 1], test, np.full(80, 0.1))
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
