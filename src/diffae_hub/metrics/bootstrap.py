"""Bootstrap interval of a mean."""

from collections.abc import Sequence

import numpy as np


def bootstrap_interval(
    values: np.ndarray | Sequence[float], num_resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Computes the percentile bootstrap interval of the mean of at least two values (Efron, 1979), with scipy.

    It shows how much the mean would change with other images of the same kind, not with other weights or other noise.
    Both ends are NaN if a value is not finite. The same seed gives the same interval.
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
