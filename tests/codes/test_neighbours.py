"""Neighbours against distances written out."""

import numpy as np
import pytest

from diffae_hub.codes import nearest_codes


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_are_those_of_brute_force(metric: str) -> None:
    rng = np.random.default_rng(0)
    codes, queries = (rng.normal(size=(count, 6)) * np.arange(1, 7) + 3 for count in (50, 4))
    mean, std = codes.mean(axis=0), codes.std(axis=0)
    distances = []
    for query in (queries - mean) / std:
        others = (codes - mean) / std
        if metric == "cosine":
            distance = 1 - others @ query / np.linalg.norm(others, axis=1) / np.linalg.norm(query)
        else:
            distance = np.sqrt(((others - query) ** 2).sum(axis=1))
        distances.append(distance)
    found, rows = nearest_codes(codes, queries, 5, metric)
    np.testing.assert_array_equal(rows, np.argsort(distances, axis=1)[:, :5])
    np.testing.assert_allclose(found, np.sort(distances, axis=1)[:, :5], atol=1e-5)


def test_bad_arguments() -> None:
    for change in (
        {"num_neighbours": 0},
        {"num_neighbours": 51},
        {"queries": np.ones((1, 1))},
        {"queries": np.full((1, 6), np.inf)},
        {"codes": np.full((50, 6), np.nan)},
        {"codes": np.ones(50)},
        {"metric": "nonsense"},
    ):
        with pytest.raises(ValueError):
            nearest_codes(**{"codes": np.eye(50, 6), "queries": np.ones((1, 6)), **change})
