"""Bootstrap interval of a mean."""

from __future__ import annotations

import numpy as np


def bootstrap_interval(
    values: np.ndarray, num_resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of `values` over images (Efron, 1979); not in the paper.

    It tells how much the mean would change with other images of the same distribution; not how much with other weights
    or another noise. One resample is held at a time, so that memory is that of a few copies of `values`.

    Args:
        values: (N,), one per image, any unit; at least two.
        num_resamples: Number of resamples; at least 1.
        confidence: Probability with which the interval is to cover the mean, in (0, 1).
        seed: Of the resampling: the same seed gives the same interval.

    Returns:
        Its lower and upper end, in the unit of `values`; NaN for both if a value is not finite (an image that equals
        its reference has an infinite PSNR).

    Raises:
        ValueError: If `values` is not a vector of at least two numbers, or another argument is out of range.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"values must be a vector of at least 2 numbers, got shape {values.shape}")
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, both excluded, got {confidence}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if not np.isfinite(values).all():
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(num_resamples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
