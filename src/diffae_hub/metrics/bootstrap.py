"""Bootstrap interval of a mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bootstrap_interval(
    values: np.ndarray | Sequence[float], num_resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean (Efron, 1979), by scipy.

    It says how much the mean would change with other images of the same kind, not with other weights or other noise.

    Args:
        values: (N,), one per image; at least two.
        num_resamples: Number of resamples.
        confidence: Probability with which the interval is to cover the mean.
        seed: The same seed gives the same interval.

    Returns:
        Both ends, in the unit of `values`; NaN if a value is not finite.
    """
    from scipy.stats import bootstrap

    if not np.isfinite(values).all():
        return float("nan"), float("nan")
    interval = bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        n_resamples=num_resamples,
        confidence_level=confidence,
        method="percentile",
        batch=20,  # resamples held in memory at a time
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
