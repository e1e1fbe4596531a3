"""Directions found in synthetic codes, in which the truth is planted."""

from __future__ import annotations

import numpy as np
import pytest

from diffae_hub.models.attribute_fitting import fit_directions, principal_directions

SCALE = np.linspace(0.5, 3, 16)


@pytest.fixture
def codes() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(4000, 16)) * SCALE + 5


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


@pytest.mark.parametrize("method", ["logistic", "svm", "means"])
def test_a_planted_direction_is_found(codes: np.ndarray, method: str) -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(2, 16))
    truth[1] -= truth[1] @ truth[0] / (truth[0] @ truth[0]) * truth[0]
    labels = ((codes - 5) / SCALE) @ truth.T + 0.3 * rng.normal(size=(4000, 2)) > 0
    fitted = fit_directions(codes, labels, ["first", "second"], method=method)
    for row, wanted, score in zip(fitted.weight, truth, fitted.scores, strict=True):
        assert cosine(row, wanted) > 0.99
        assert score["accuracy"] > 0.9
        assert score["auroc"] > 0.97
    np.testing.assert_allclose(fitted.mean, codes.mean(axis=0))
    np.testing.assert_allclose(fitted.std, codes.std(axis=0))


def test_numbers_by_ridge(codes: np.ndarray) -> None:
    truth = np.random.default_rng(2).normal(size=16)
    ages = (codes - 5) / SCALE @ truth + 40
    fitted = fit_directions(codes, ages, ["age"], method="ridge")
    assert cosine(fitted.weight[0], truth) > 0.999
    assert fitted.scores[0]["r2"] > 0.999
    np.testing.assert_allclose(fitted.bias[0], 40, atol=0.2)


def test_classes_become_attributes(codes: np.ndarray) -> None:
    kinds = np.array(["cat", "dog", "bird"])[codes[:, :3].argmax(axis=1)]
    assert fit_directions(codes, kinds).names == ["bird", "cat", "dog"]
    two = fit_directions(codes, np.where(codes[:, 0] > 5, "up", "down"))
    assert two.names == ["up"]
    assert two.weight[0].argmax() == 0


def test_relatives_stay_together(codes: np.ndarray) -> None:
    """Copies of a code with a random label: whoever sees one copy knows the other's."""
    labels = np.random.default_rng(3).integers(0, 2, 40)
    twice = np.concatenate([codes[:40, :], codes[:40, :]])
    alone = fit_directions(twice, np.tile(labels, 2), method="svm", seed=1).scores[0]["auroc"]
    together = fit_directions(twice, np.tile(labels, 2), groups=np.tile(np.arange(40), 2), method="svm", seed=1)
    assert alone > together.scores[0]["auroc"] + 0.1


def test_principal_directions_are_the_eigenvectors(codes: np.ndarray) -> None:
    mixed = codes @ np.random.default_rng(4).normal(size=(16, 16))
    fitted = principal_directions(mixed, 3)
    values, vectors = np.linalg.eigh(np.corrcoef(mixed.T))
    for index in range(3):
        assert abs(cosine(fitted.weight[index], vectors[:, -1 - index])) > 0.999
        assert fitted.scores[index]["variance"] == pytest.approx(values[-1 - index] / 16, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("labels", {"labels": np.zeros(10)}),
        ("labels", {"labels": np.zeros(4000)}),
        ("labels", {"labels": np.arange(8000).reshape(4000, 2)}),
        ("names", {"names": ["one", "two"]}),
        ("method", {"method": "guess"}),
        ("held_out", {"held_out": 1.0}),
        ("codes", {"codes": np.full((4000, 16), np.nan)}),
        ("codes", {"codes": np.zeros(16)}),
    ],
)
def test_bad_input_is_named(codes: np.ndarray, name: str, change: dict) -> None:
    with pytest.raises(ValueError, match=name):
        fit_directions(**{"codes": codes, "labels": codes[:, 0] > 5, **change})
