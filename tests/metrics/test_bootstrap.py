"""Bootstrap intervals against the binomial distribution."""

import math

import numpy as np
from scipy.stats import binom

from diffae_hub.metrics.bootstrap import bootstrap_interval


def test_resampled_means_of_zeros_and_ones_are_binomial() -> None:
    # 200 draws with replacement from 5 ones and 195 zeros: a skewed distribution, in steps of 1/200.
    values = np.repeat([1.0, 0.0], [5, 195])
    interval = bootstrap_interval(values, num_resamples=20_000, confidence=0.9)
    np.testing.assert_allclose(interval, binom.ppf([0.05, 0.95], 200, 5 / 200) / 200)


def test_the_seed_and_values_without_spread_or_not_finite() -> None:
    values = np.random.default_rng(2).normal(size=500)
    assert bootstrap_interval(values, 200, seed=1) == bootstrap_interval(values, 200, seed=1)
    assert bootstrap_interval(values, 200, seed=2) != bootstrap_interval(values, 200, seed=1)
    assert bootstrap_interval([2.5] * 10) == (2.5, 2.5)
    for value in (math.inf, math.nan):
        assert all(math.isnan(end) for end in bootstrap_interval([1.0, 2.0, value]))
